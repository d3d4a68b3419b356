//! Applications that know nothing of Pannier.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::lab::Pod;
use super::namespace::Running;

/// The field by which the load's requests are told apart.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// A listening application. It dies, and its connections with it, when dropped.
pub(crate) struct App {
    address: SocketAddr,
    seen: Arc<Seen>,
    _running: Running<()>,
}

/// What an application has seen, and how slow it is.
struct Seen {
    pod: String,
    connections: AtomicU64,
    delay: AtomicU64,
    requests: Mutex<Vec<Instant>>,
    posts: Mutex<Vec<String>>,
    waiting: AtomicU64,
}

/// What an application speaks.
#[derive(Clone)]
enum Speaks {
    Http1,
    Http2,
    Greeting(Bytes),
    Proxy,
}

impl Pod {
    /// An HTTP/1.1 application.
    ///
    /// `/echo` answers with the request's body, `/wait/250` after so many milliseconds more than
    /// the others. Every other path answers with JSON that tells
    /// what arrived: `pod`, `peer`, `method`, `path`, `version`, `headers`, `body` (its length).
    /// Each answer carries `x-pod`.
    pub(crate) fn app(&self, listen: SocketAddr) -> App {
        App::start(self, listen, Speaks::Http1)
    }

    /// The same over HTTP/2 with prior knowledge.
    pub(crate) fn h2_app(&self, listen: SocketAddr) -> App {
        App::start(self, listen, Speaks::Http2)
    }

    /// A server that speaks first, as MySQL's does: `greeting`, then whatever it is sent, back.
    pub(crate) fn greeting_app(&self, listen: SocketAddr, greeting: &'static [u8]) -> App {
        App::start(self, listen, Speaks::Greeting(Bytes::from_static(greeting)))
    }

    /// A proxy that grants every CONNECT, and is itself whom it connects to: it says whom it was asked
    /// for, and then whatever it is sent, back.
    pub(crate) fn proxy_app(&self, listen: SocketAddr) -> App {
        App::start(self, listen, Speaks::Proxy)
    }
}

impl App {
    fn start(pod: &Pod, listen: SocketAddr, speaks: Speaks) -> Self {
        let seen = Arc::new(Seen {
            pod: pod.name().to_owned(),
            connections: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            requests: Mutex::default(),
            posts: Mutex::default(),
            waiting: AtomicU64::new(0),
        });
        let (bound, listening) = mpsc::channel();
        let state = seen.clone();
        let running = pod.start(move || async move {
            let listener = TcpListener::bind(listen).await;
            let _ = bound.send(listener.as_ref().map_err(ToString::to_string).map(|l| l.local_addr()));
            if let Ok(listener) = listener {
                accept(listener, speaks, state).await;
            }
        });
        let bound = listening.recv().expect("the application's thread lives");
        let address = bound.unwrap_or_else(|e| panic!("{}: cannot listen on {listen}: {e}", pod.name()));
        Self { address: address.expect("bound"), seen, _running: running }
    }

    /// Kills it, its port and its connections, and gives the ids of the POSTs that it had taken.
    pub(crate) fn kill(self) -> Vec<String> {
        let seen = self.seen.clone();
        drop(self);
        std::mem::take(&mut seen.posts.lock().expect("not poisoned"))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long each answer waits from now on.
    pub(crate) fn delay(&self, delay: Duration) {
        self.seen.delay.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// How many connections it has accepted.
    pub(crate) fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// How many requests it is holding, for as long as it was told to.
    pub(crate) fn waiting(&self) -> u64 {
        self.seen.waiting.load(Ordering::Relaxed)
    }

    /// When each of its requests arrived.
    pub(crate) fn requests(&self) -> Vec<Instant> {
        self.seen.requests.lock().expect("not poisoned").clone()
    }
}

async fn accept(listener: TcpListener, speaks: Speaks, seen: Arc<Seen>) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        seen.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(converse(stream, peer, speaks.clone(), seen.clone()));
    }
}

/// Serves one connection; how it ends is its client's affair.
async fn converse(stream: TcpStream, peer: SocketAddr, speaks: Speaks, seen: Arc<Seen>) {
    let service = service_fn(|request| answer(request, peer, seen.clone()));
    match speaks {
        Speaks::Http1 => drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await),
        Speaks::Http2 => {
            let builder = http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        }
        Speaks::Greeting(greeting) => drop(greet(stream, &greeting).await),
        Speaks::Proxy => drop(connect(stream).await),
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    seen: Arc<Seen>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    seen.requests.lock().expect("not poisoned").push(Instant::now());
    if request.method() == Method::POST
        && let Some(id) = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok())
    {
        seen.posts.lock().expect("not poisoned").push(id.to_owned());
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let wait = parts.uri.path().strip_prefix("/wait/").and_then(|millis| millis.parse().ok()).unwrap_or(0);
    let delay = Duration::from_micros(seen.delay.load(Ordering::Relaxed)) + Duration::from_millis(wait);
    if !delay.is_zero() {
        seen.waiting.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(delay).await;
        seen.waiting.fetch_sub(1, Ordering::Relaxed);
    }
    let headers: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let told = || {
        json!({
            "pod": seen.pod,
            "peer": peer.to_string(),
            "method": parts.method.as_str(),
            "path": parts.uri.path_and_query().map(|path| path.as_str()),
            "version": if parts.version == Version::HTTP_2 { "2" } else { "1.1" },
            "headers": headers,
            "body": body.len(),
        })
        .to_string()
        .into()
    };
    let body = if parts.uri.path() == "/echo" { body.clone() } else { told() };
    let answer = Response::builder().header("x-pod", &seen.pod).body(Full::new(body));
    Ok(answer.expect("a valid answer"))
}

async fn connect(mut stream: TcpStream) -> std::io::Result<Infallible> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    stream.write_all(b"HTTP/1.1 200 Established\r\n\r\n").await?;
    greet(stream, line).await
}

async fn greet(mut stream: TcpStream, greeting: &[u8]) -> std::io::Result<Infallible> {
    stream.write_all(greeting).await?;
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => stream.write_all(&buffer[..n]).await?,
        }
    }
}
