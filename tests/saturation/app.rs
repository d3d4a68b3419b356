//! An application that takes as long as it is told, fails when it is told, and counts what it has.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// An application, as long as the test's runtime lives. It speaks HTTP/1.1 and HTTP/2 with prior knowledge.
///
/// `/hold` is answered when [`release`](Self::release) says so, whatever else is as it was told.
#[derive(Clone)]
pub(crate) struct App {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    name: &'static str,
    answers: Mutex<Answers>,
    /// Hands: who has none waits for one.
    hands: Semaphore,
    released: Semaphore,
    /// Requests that it has now, the most that it ever had at once, and all.
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
    /// Of those, such as are held.
    held: AtomicUsize,
    heads: Mutex<Vec<HeaderMap>>,
}

/// How it answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answers {
    /// With this status.
    pub(crate) status: u16,
    /// After so long.
    pub(crate) after: Duration,
    /// With a field.
    pub(crate) field: Option<(&'static str, &'static str)>,
    /// With this as its trailers.
    pub(crate) trailer: Option<(&'static str, &'static str)>,
}

impl Default for Answers {
    fn default() -> Self {
        Self { status: 200, after: Duration::ZERO, field: None, trailer: None }
    }
}

impl App {
    /// An application that says its name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::with_hands(name, Semaphore::MAX_PERMITS).await
    }

    /// One that does so many requests at once; the others wait for it.
    pub(crate) async fn with_hands(name: &'static str, hands: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            name,
            answers: Mutex::default(),
            hands: Semaphore::new(hands),
            released: Semaphore::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            heads: Mutex::default(),
        });
        let app = Self { address, state: state.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, state.clone()));
            }
        });
        app
    }

    /// How it answers from now on.
    pub(crate) fn answers(&self, answers: Answers) {
        *self.state.answers.lock().expect("not poisoned") = answers;
    }

    /// From now on with this status.
    pub(crate) fn status(&self, status: u16) {
        self.state.answers.lock().expect("not poisoned").status = status;
    }

    /// From now on after so many milliseconds.
    pub(crate) fn after(&self, millis: u64) {
        self.state.answers.lock().expect("not poisoned").after = Duration::from_millis(millis);
    }

    /// Answers so many of those that are held, or will be.
    pub(crate) fn release(&self, n: usize) {
        self.state.released.add_permits(n);
    }

    /// Requests that it has taken.
    pub(crate) fn all(&self) -> usize {
        self.state.all.load(SeqCst)
    }

    /// Requests that it holds.
    pub(crate) fn held(&self) -> usize {
        self.state.held.load(SeqCst)
    }

    /// The most requests that it had at once, since it was last asked for this.
    pub(crate) fn most(&self) -> usize {
        self.state.most.swap(self.state.now.load(SeqCst), SeqCst)
    }

    /// The fields of every request that it has taken.
    pub(crate) fn heads(&self) -> Vec<HeaderMap> {
        self.state.heads.lock().expect("not poisoned").clone()
    }
}

/// Counts something while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one(count: &'a AtomicUsize, most: Option<&AtomicUsize>) -> Self {
        let now = count.fetch_add(1, SeqCst) + 1;
        if let Some(most) = most {
            most.fetch_max(now, SeqCst);
        }
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

async fn converse(stream: TcpStream, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(request, state.clone()));
    // HTTP/2 begins with `PRI`.
    let mut first = [0; 2];
    while stream.peek(&mut first).await.unwrap_or(0) == 1 {
        sleep(Duration::from_millis(1)).await;
    }
    let io = TokioIo::new(stream);
    // How a connection ends is its client's affair.
    if first == *b"PR" {
        drop(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await);
    } else {
        drop(http1::Builder::new().serve_connection(io, service).await);
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let _now = Counted::one(&state.now, Some(&state.most));
    state.all.fetch_add(1, SeqCst);
    let (parts, body) = request.into_parts();
    state.heads.lock().expect("not poisoned").push(parts.headers);
    let _ = body.collect().await;
    let answers = *state.answers.lock().expect("not poisoned");
    if parts.uri.path() == "/hold" {
        let _held = Counted::one(&state.held, None);
        state.released.acquire().await.expect("never closed").forget();
    } else if !answers.after.is_zero() {
        let _hand = state.hands.acquire().await.expect("never closed");
        sleep(answers.after).await;
    }
    let body = Full::new(state.name.into());
    let mut response = Response::new(match answers.trailer {
        Some(trailer) => body.with_trailers(async move { Some(Ok(fields(trailer))) }).boxed(),
        None => body.boxed(),
    });
    *response.status_mut() = StatusCode::from_u16(answers.status).expect("a status");
    if let Some(field) = answers.field {
        response.headers_mut().extend(fields(field));
    }
    Ok(response)
}

fn fields((name, value): (&'static str, &'static str)) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
}
