//! What each path answers.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use super::{Health, View};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One door's pages.
pub(super) struct Pages {
    health: Arc<dyn Health>,
    /// What is shown to the operator alone; none on the probes' door.
    view: Option<Arc<dyn View>>,
}

type Answer = Response<Full<Bytes>>;

struct Page {
    path: &'static str,
    /// GET stands for HEAD too.
    method: Method,
    about: &'static str,
    answer: Answers,
}

/// Whom a page is for, and what it answers.
#[derive(Clone, Copy)]
enum Answers {
    Everybody(fn(&Pages) -> Answer),
    Operator(fn(&dyn View) -> Answer),
}

static PAGES: [Page; 9] = [
    Page {
        path: "/",
        method: Method::GET,
        about: "this list",
        answer: Answers::Everybody(|pages| text(StatusCode::OK, pages.list())),
    },
    Page {
        path: "/live",
        method: Method::GET,
        about: "200 while the process works",
        answer: Answers::Everybody(|_| text(StatusCode::OK, "live\n".into())),
    },
    Page {
        path: "/ready",
        method: Method::GET,
        about: "200 when it can serve; 503, and why, when it cannot",
        answer: Answers::Everybody(Pages::ready),
    },
    Page {
        path: "/metrics",
        method: Method::GET,
        about: "metrics, as OpenMetrics text",
        answer: Answers::Everybody(|pages| answer(StatusCode::OK, OPENMETRICS, pages.health.metrics())),
    },
    Page {
        path: "/config",
        method: Method::GET,
        about: "the running configuration, without secrets",
        answer: Answers::Operator(|view| json(&view.config())),
    },
    Page {
        path: "/upstreams",
        method: Method::GET,
        about: "upstreams and their endpoints, and how full they are",
        answer: Answers::Operator(|view| json(&view.upstreams())),
    },
    Page {
        path: "/limits",
        method: Method::GET,
        about: "limits, with their leases and decisions",
        answer: Answers::Operator(|view| json(&view.limits())),
    },
    Page {
        path: "/drain",
        method: Method::POST,
        about: "let callers learn, finish what is in flight, then end with the application, as SIGTERM does",
        answer: Answers::Operator(|view| {
            view.drain();
            text(StatusCode::ACCEPTED, "draining\n".into())
        }),
    },
    Page {
        path: "/quit",
        method: Method::POST,
        about: "finish what is in flight, then end, whether the application has gone or not",
        answer: Answers::Operator(|view| {
            view.quit();
            text(StatusCode::ACCEPTED, "quitting\n".into())
        }),
    },
];

impl Pages {
    pub(super) fn probes(health: Arc<dyn Health>) -> Self {
        Self { health, view: None }
    }

    pub(super) fn admin(health: Arc<dyn Health>, view: Arc<dyn View>) -> Self {
        Self { health, view: Some(view) }
    }

    pub(super) fn answer<B>(&self, request: &Request<B>) -> Answer {
        if self.view.is_some()
            && let Err(why) = from_an_operator(request)
        {
            return text(StatusCode::FORBIDDEN, why.into());
        }
        let path = request.uri().path();
        let Some(page) = self.pages().find(|page| page.path == path) else { return self.no_such_page() };
        let wanted = request.method();
        if wanted == page.method || (wanted == Method::HEAD && page.method == Method::GET) {
            return match (page.answer, &self.view) {
                (Answers::Everybody(answer), _) => answer(self),
                (Answers::Operator(answer), Some(view)) => answer(&**view),
                (Answers::Operator(_), None) => self.no_such_page(),
            };
        }
        let (allow, message) = match page.method {
            Method::POST => ("POST", format!("{} takes POST\n", page.path)),
            _ => ("GET, HEAD", format!("{} takes GET\n", page.path)),
        };
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, message);
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        answer
    }

    fn pages(&self) -> impl Iterator<Item = &'static Page> {
        let operator = self.view.is_some();
        PAGES.iter().filter(move |page| operator || matches!(page.answer, Answers::Everybody(_)))
    }

    fn no_such_page(&self) -> Answer {
        // The path is not repeated: it is a peer's.
        text(StatusCode::NOT_FOUND, format!("There is no such page. There are:\n{}", self.list()))
    }

    fn list(&self) -> String {
        let mut list = String::new();
        for Page { path, method, about, .. } in self.pages() {
            writeln!(list, "{method:<4} {path:<10} {about}").expect("a String takes every write");
        }
        list
    }

    fn ready(&self) -> Answer {
        let readiness = self.health.ready();
        let mut message = String::from(if readiness.ready() { "ready\n" } else { "not ready\n" });
        let reasons = readiness.why_not.iter().map(|why| ("because", why.as_str()));
        let notes = readiness.notes.iter().map(|note| ("note", note.as_str()));
        for (label, line) in reasons.chain(notes) {
            writeln!(message, "{label}: {line}").expect("a String takes every write");
        }
        let status = if readiness.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, message)
    }
}

/// Refuses what a web page made a browser on this machine send: a request for a name that the
/// page's author has pointed here (DNS rebinding), or a POST from another origin. Whoever types
/// the address, `curl` and scripts are not affected.
fn from_an_operator<B>(request: &Request<B>) -> Result<(), &'static str> {
    const NAME: &str = "Here, the Host has to be an IP address or localhost, so that no web page can \
                        use this port through a browser.\n";
    const CROSS_ORIGIN: &str = "Web pages may not POST here.\n";

    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let fields = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
    if !target.into_iter().chain(fields).all(is_address) {
        return Err(NAME);
    }
    if request.method() == Method::POST && request.headers().contains_key(ORIGIN) {
        return Err(CROSS_ORIGIN);
    }
    Ok(())
}

fn is_address(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, message: String) -> Answer {
    answer(status, TEXT, message)
}

fn json(value: &Value) -> Answer {
    answer(StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
