//! Hops as the proxy makes them: its own server sides, its own exchanges, on connections that the
//! kernel makes in memory.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, Method, header};
use pannier::error::{Error, Reason};
use pannier::http::body::Replay;
use pannier::http::closing::{Closed, Closing};
use pannier::http::h1::{Conn, parse};
use pannier::http::mesh::{self, Link};
use pannier::http::{Announcement, Body, Bounds, CALLER_FIELD, Handler, Next, RequestHead, Responder};
use pannier::proxy::exchange::{Terms, over_h1, over_mesh};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalRuntime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// Who stands in for the host of a request that names none.
pub(super) const HOST: &str = "orders.shop";

/// The longest that anything waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// The bounds of messages. What is fuzzed is smaller, but for the number of fields.
pub(super) const BOUNDS: Bounds = Bounds {
    head_bytes: 64 << 10,
    fields: 100,
    streams: 100,
    least: None,
    head_timeout: PATIENCE,
    body_timeout: PATIENCE,
    idle_timeout: PATIENCE,
    age: PATIENCE,
};

/// Runs something to its end, which is to come by itself: time stands still while anything can be
/// done, and what then still waits waits for ever.
pub(super) fn run<T>(what: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: LocalRuntime = runtime();
    }
    RUNTIME
        .with(|runtime| runtime.block_on(async { timeout(PATIENCE / 2, what).await }))
        .expect("a connection whose peer has ended waits for something")
}

fn runtime() -> LocalRuntime {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build_local(Default::default()).expect("a runtime");
    // As in every program of Rust, but libFuzzer's `main` is none: writing to a peer that has closed
    // is an error, and not the end.
    let entered = runtime.enter();
    let _ = signal(SignalKind::pipe()).expect("a signal that can be taken");
    drop(entered);
    runtime
}

/// Waits until nothing can be done any more.
pub(super) async fn settle() {
    sleep(Duration::from_millis(1)).await;
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

/// Forwards each request that it is given.
pub(super) struct Hop {
    way: Way,
    closing: Rc<Closing>,
    /// What it was asked to forward, in order.
    pub asked: RefCell<Vec<(Asked, HeaderMap)>>,
}

/// A request's method, target and host.
pub(super) type Asked = (Method, String, Vec<u8>);

/// What is asked by a head.
pub(super) fn asked(head: &RequestHead) -> Asked {
    let host = head.authority.as_ref().map_or(HOST, |authority| authority.as_str());
    (head.method.clone(), head.path.to_string(), host.into())
}

/// Takes from a request what only a sidecar may say, and what this hop ends.
pub(super) fn take(head: &mut RequestHead) {
    head.fields.remove_where(|name| {
        parse::is_own(name)
            || name.eq_ignore_ascii_case(CALLER_FIELD.as_bytes())
            || name.eq_ignore_ascii_case(b"te")
    });
    head.upgrade = None;
}

/// How a hop reaches its upstream.
enum Way {
    /// By HTTP/1, over connections that `dial` opens.
    Http1 { dial: Rc<dyn Fn() -> TcpStream>, idle: RefCell<Option<Conn>> },
    /// By the transport between sidecars.
    Mesh(Link),
}

impl Hop {
    /// A hop to a server of HTTP/1.
    pub(super) fn plain(dial: Rc<dyn Fn() -> TcpStream>) -> Self {
        Self::new(Way::Http1 { dial, idle: RefCell::default() })
    }

    /// A hop to another sidecar, which then makes a [`Hop::plain`].
    pub(super) fn pair(dial: Rc<dyn Fn() -> TcpStream>) -> Self {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (link, task) = mesh::connect(ours, &BOUNDS);
        spawn_local(task);
        spawn_local(mesh::serve(theirs, Rc::new(Self::plain(dial))));
        Self::new(Way::Mesh(link))
    }

    fn new(way: Way) -> Self {
        Self { way, closing: Rc::default(), asked: RefCell::default() }
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
        let sidecar = matches!(self.way, Way::Mesh(_));
        let terms = Terms {
            bounds: &BOUNDS,
            begun: tokio::time::Instant::now(),
            patience: PATIENCE,
            host: HOST,
            sidecar,
            h2: false,
            own: None,
            left: head.expiry.map(|_| PATIENCE),
            judge: &|_| Ok(()),
            heard: &Cell::new(None),
            announces: None,
        };
        let body = Replay::new(body, 0);
        match &self.way {
            Way::Mesh(link) => {
                over_mesh(link.clone(), head, &body, respond, &terms).await?;
            }
            Way::Http1 { dial, idle } => {
                let kept = idle.take().filter(|conn| conn.reader.is_quiet());
                let mut conn = kept.unwrap_or_else(|| Conn::new(dial()));
                if over_h1(&mut conn, head, &body, respond, &terms).await?.reusable {
                    idle.replace(Some(conn));
                }
            }
        }
        Ok(())
    }
}

impl Handler for Hop {
    type Tunnel = ();

    async fn handle(
        &self,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Next<()> {
        take(head);
        let mut fields = head.fields.to_map();
        fields.remove(header::HOST);
        self.asked.borrow_mut().push((asked(head), fields));
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

    fn announces(&self) -> Option<Announcement> {
        None
    }

    fn is_draining(&self) -> bool {
        false
    }

    fn closing(&self) -> Closed {
        self.closing.wait()
    }
}
