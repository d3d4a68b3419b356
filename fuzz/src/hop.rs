//! One hop as the proxy makes it: its own server side, its own exchange, on connections that the
//! kernel makes in memory.

use std::cell::RefCell;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use http::Method;
use pannier::error::{Error, Reason};
use pannier::http::body::Replay;
use pannier::http::closing::{Closed, Closing};
use pannier::http::h1::{Conn, parse};
use pannier::http::{Body, Bounds, Handler, Next, RequestHead, Responder};
use pannier::proxy::exchange::{Terms, over_h1};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalRuntime};
use tokio::signal::unix::{SignalKind, signal};

/// Who stands in for the host of a request that names none.
pub(super) const HOST: &str = "orders.shop";

/// Everything ends by itself; what does not is a fault.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bounds of messages. What is fuzzed is smaller, but for the number of fields.
pub(super) const BOUNDS: Bounds = Bounds {
    head_bytes: 64 << 10,
    fields: 100,
    streams: 100,
    least: None,
    head_timeout: PATIENCE,
    body_timeout: PATIENCE,
    idle_timeout: PATIENCE,
};

/// Runs something to its end, which is to come by itself.
pub(super) fn run<T>(what: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: LocalRuntime = runtime();
    }
    RUNTIME
        .with(|runtime| runtime.block_on(async { tokio::time::timeout(PATIENCE / 2, what).await }))
        .expect("a connection whose peer has ended waits for something")
}

fn runtime() -> LocalRuntime {
    let runtime =
        Builder::new_current_thread().enable_all().build_local(Default::default()).expect("a runtime");
    // As in every program of Rust, but libFuzzer's `main` is none: writing to a peer that has closed
    // is an error, and not the end.
    let entered = runtime.enter();
    let _ = signal(SignalKind::pipe()).expect("a signal that can be taken");
    drop(entered);
    runtime
}

/// A connection and its other end. A `TcpStream` is any stream of the kernel's; a pair of Unix
/// sockets is the one that is made quickest.
pub(super) fn pair() -> (TcpStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).expect("a socket that does not block");
    }
    let ours = TcpStream::from_std(OwnedFd::from(ours).into()).expect("a stream of the runtime");
    (ours, theirs)
}

/// Forwards each request of a connection over another, which `dial` opens.
pub(super) struct Hop<D> {
    dial: D,
    idle: RefCell<Option<Conn>>,
    closing: Rc<Closing>,
}

impl<D: Fn() -> TcpStream> Hop<D> {
    pub(super) fn new(dial: D) -> Self {
        Self { dial, idle: RefCell::default(), closing: Rc::default() }
    }

    async fn forward(
        &self,
        head: &RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Result<(), Error> {
        if head.method == Method::CONNECT {
            return Err(Error::new(Reason::HttpUnsupported, "no tunnel here"));
        }
        let kept = self.idle.take().filter(|conn| conn.reader.is_quiet());
        let mut conn = kept.unwrap_or_else(|| Conn::new((self.dial)()));
        let terms = Terms { bounds: &BOUNDS, patience: PATIENCE, host: HOST, sidecar: false, h2: false };
        let done = over_h1(&mut conn, head, &mut Replay::new(body, 0), respond, &terms).await?;
        if done.reusable {
            self.idle.replace(Some(conn));
        }
        Ok(())
    }
}

impl<D: Fn() -> TcpStream> Handler for Hop<D> {
    type Tunnel = ();

    async fn handle(
        &self,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Next<()> {
        head.fields.remove_where(parse::is_own);
        head.upgrade = None;
        if let Err(error) = self.forward(head, body, respond).await
            && !respond.has_begun()
            && error.reason != Reason::HttpDownstreamGone
        {
            let _ = respond.refusal(&error, false).await;
        }
        Next::Request
    }

    async fn tunnel(&self, (): (), _: &mut Body<'_>, _: &mut Responder<'_>) {}

    fn refused(&self, _error: &Error) {}

    fn bounds(&self) -> Bounds {
        BOUNDS
    }

    fn shares_connections(&self) -> bool {
        false
    }

    fn is_draining(&self) -> bool {
        false
    }

    fn closing(&self) -> Closed {
        self.closing.wait()
    }
}
