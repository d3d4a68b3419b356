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

use super::{Door, View};
use crate::telemetry::Metrics;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One door's pages.
pub(super) struct Pages {
    door: Door,
    view: Arc<dyn View>,
    metrics: Arc<Metrics>,
}

type Answer = Response<Full<Bytes>>;

struct Page {
    path: &'static str,
    /// GET stands for HEAD too.
    method: Method,
    about: &'static str,
    on_probes: bool,
    answer: fn(&Pages) -> Answer,
}

static PAGES: [Page; 9] = [
    Page {
        path: "/",
        method: Method::GET,
        about: "this list",
        on_probes: true,
        answer: |pages| text(StatusCode::OK, pages.list()),
    },
    Page {
        path: "/live",
        method: Method::GET,
        about: "200 while the process works",
        on_probes: true,
        answer: |_| text(StatusCode::OK, "live\n".into()),
    },
    Page {
        path: "/ready",
        method: Method::GET,
        about: "200 when it can serve; 503, and why, when it cannot",
        on_probes: true,
        answer: Pages::ready,
    },
    Page {
        path: "/metrics",
        method: Method::GET,
        about: "metrics, as OpenMetrics text",
        on_probes: true,
        answer: |pages| answer(StatusCode::OK, OPENMETRICS, pages.metrics.encode()),
    },
    Page {
        path: "/config",
        method: Method::GET,
        about: "the running configuration, without secrets",
        on_probes: false,
        answer: |pages| json(&pages.view.config()),
    },
    Page {
        path: "/upstreams",
        method: Method::GET,
        about: "upstreams and their endpoints, and how full they are",
        on_probes: false,
        answer: |pages| json(&pages.view.upstreams()),
    },
    Page {
        path: "/limits",
        method: Method::GET,
        about: "limits, with their leases and decisions",
        on_probes: false,
        answer: |pages| json(&pages.view.limits()),
    },
    Page {
        path: "/drain",
        method: Method::POST,
        about: "let callers learn, finish what is in flight, then end with the application, as SIGTERM does",
        on_probes: false,
        answer: Pages::drain,
    },
    Page {
        path: "/quit",
        method: Method::POST,
        about: "finish what is in flight, then end, whether the application has gone or not",
        on_probes: false,
        answer: Pages::quit,
    },
];

impl Pages {
    pub(super) fn new(door: Door, view: Arc<dyn View>, metrics: Arc<Metrics>) -> Self {
        Self { door, view, metrics }
    }

    pub(super) fn answer<B>(&self, request: &Request<B>) -> Answer {
        if self.door == Door::Admin
            && let Err(why) = from_an_operator(request)
        {
            return text(StatusCode::FORBIDDEN, why.into());
        }
        let path = request.uri().path();
        let Some(page) = self.pages().find(|page| page.path == path) else {
            // The path is not repeated: it is a peer's.
            let message = format!("There is no such page. There are:\n{}", self.list());
            return text(StatusCode::NOT_FOUND, message);
        };
        let wanted = request.method();
        if wanted == page.method || (wanted == Method::HEAD && page.method == Method::GET) {
            return (page.answer)(self);
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
        let admin = self.door == Door::Admin;
        PAGES.iter().filter(move |page| admin || page.on_probes)
    }

    fn list(&self) -> String {
        let mut list = String::new();
        for Page { path, method, about, .. } in self.pages() {
            writeln!(list, "{method:<4} {path:<10} {about}").expect("a String takes every write");
        }
        list
    }

    fn ready(&self) -> Answer {
        let readiness = self.view.ready();
        let mut message = String::from(if readiness.ready() { "ready\n" } else { "not ready\n" });
        let plaintext = self.metrics.plaintext().then_some("traffic is plaintext: no identity is configured");
        let reasons = readiness.why_not.iter().map(|why| ("because", why.as_str()));
        let notes = readiness.notes.iter().map(String::as_str).chain(plaintext).map(|note| ("note", note));
        for (label, line) in reasons.chain(notes) {
            writeln!(message, "{label}: {line}").expect("a String takes every write");
        }
        let status = if readiness.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, message)
    }

    fn drain(&self) -> Answer {
        self.view.drain();
        text(StatusCode::ACCEPTED, "draining\n".into())
    }

    fn quit(&self) -> Answer {
        self.view.quit();
        text(StatusCode::ACCEPTED, "quitting\n".into())
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
