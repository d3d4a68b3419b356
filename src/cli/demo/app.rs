//! The application of an endpoint: it takes orders over plain HTTP/1.1, and knows nothing of
//! Pannier.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::ended::{Result, cannot};
use super::place::{Place, Running};

/// The field that tells which pod answered.
pub(super) const POD: &str = "x-pod";

/// A listening application. Dropped, it is gone as one that was killed: its connections break.
#[derive(Debug)]
pub(super) struct App {
    address: SocketAddr,
    seen: Arc<Seen>,
    _running: Running,
}

#[derive(Debug)]
struct Seen {
    pod: String,
    /// How long it works on each request.
    work: Duration,
    begun: Instant,
    /// When the last request came, in microseconds after `begun`, and never 0 then.
    last: AtomicU64,
}

impl App {
    /// Starts the application of `pod`. Port 0 takes a free one.
    pub(super) fn start(place: &Place, pod: &str, listen: SocketAddr, work: Duration) -> Result<Self> {
        let listening = || {
            let listener = TcpListener::bind(listen)?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>((listener.local_addr()?, listener))
        };
        let step = format!("start the application of {pod} on {listen}");
        let bound = place.enter(listening).and_then(|bound| bound).map_err(cannot(step))?;
        let (address, listener) = bound;
        let seen =
            Arc::new(Seen { pod: pod.into(), work, begun: Instant::now(), last: AtomicU64::default() });
        let state = seen.clone();
        let running = place.start("application", move || serve(listener, state))?;
        Ok(Self { address, seen, _running: running })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// When the last request came.
    pub(super) fn last_request(&self) -> Option<Instant> {
        match self.seen.last.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(self.seen.begun + Duration::from_micros(micros)),
        }
    }
}

async fn serve(listener: TcpListener, seen: Arc<Seen>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, say: the next may succeed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let seen = seen.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, seen.clone()));
            // How a connection ends is its client's affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let micros = seen.begun.elapsed().as_micros() as u64;
    seen.last.fetch_max(micros.max(1), Ordering::Relaxed);
    let text = body(request.method().as_str(), request.uri().path());
    // It reads what it is sent, as an application does.
    let whole = request.into_body().collect().await.is_ok();
    tokio::time::sleep(seen.work).await;
    let answer = Response::builder().status(if whole { 200 } else { 400 }).header(POD, &seen.pod);
    Ok(answer.body(Full::new(text.into())).unwrap_or_default())
}

/// What the application answers to a request. Whoever asked can tell that the answer is his.
pub(super) fn body(method: &str, path: &str) -> String {
    format!("{method} {path}: done\n")
}
