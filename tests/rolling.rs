//! Ten rolling restarts of an upstream under load. Between sidecars no request of any kind fails, while
//! certificates rotate and the configuration is reloaded, too. To plain upstreams no request fails that
//! may be repeated, and none of the others is executed twice.
//!
//! `PANNIER_TEST_REQUESTS` says how many requests each of the two sends at least.

mod support;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use support::authority::Authority;
use support::loopback::{HOST, Loopback};
use support::raw::Raw;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

const RESTARTS: usize = 10;
const CLIENTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(30);

/// What each test sends at least.
fn wanted() -> u64 {
    std::env::var("PANNIER_TEST_REQUESTS").map_or(20_000, |n| n.parse().expect("a number of requests"))
}

/// How often each request was executed, by its id.
type Executed = Arc<Mutex<HashMap<String, u32>>>;

/// An application that ends as a well-behaved one does: what it has begun it answers, and says with it
/// that the connection ends.
struct App {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

impl App {
    async fn start(executed: &Executed) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(accept(listener, stopped, executed.clone()));
        Self { address, stop, running }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        self.running.await.expect("it does not panic");
    }
}

async fn accept(listener: TcpListener, mut stopped: watch::Receiver<bool>, executed: Executed) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        let (stream, _) = accepted.expect("a connection");
        let _ = stream.set_nodelay(true);
        let (executed, mut stopped) = (executed.clone(), stopped.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, executed.clone()));
            let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn answer(request: Request<Incoming>, executed: Executed) -> Result<Response<Full<Bytes>>, Infallible> {
    let id = request.uri().path().to_owned();
    let _ = request.into_body().collect().await;
    *executed.lock().expect("not poisoned").entry(id).or_default() += 1;
    Ok(Response::new(Full::new(Bytes::from_static(b"done"))))
}

/// What clients have seen.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    /// What was not answered with 200, but for POST.
    failed: Mutex<Vec<String>>,
    /// As `failed`, of POST.
    posts: Mutex<Vec<String>>,
    enough: AtomicBool,
}

impl Seen {
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Clients that send until told that it is enough: every third request is a POST.
fn clients(to: SocketAddr) -> (Arc<Seen>, JoinSet<()>) {
    let seen = Arc::new(Seen::default());
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let seen = seen.clone();
        clients.spawn(async move {
            let mut raw = Raw::connect(to).await;
            for n in 0.. {
                if seen.enough.load(Ordering::Relaxed) {
                    break;
                }
                let post = n % 3 == 0;
                let (method, body) =
                    if post { ("POST", "content-length: 4\r\n\r\nbody") } else { ("GET", "\r\n") };
                raw.send(format!("{method} /{client}-{n} HTTP/1.1\r\nhost: {HOST}\r\n{body}")).await;
                let head = raw.head().await;
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let body = raw.take(length.expect("a length")).await;
                if !head.starts_with("HTTP/1.1 200 ") || body != b"done" {
                    let failures = if post { &seen.posts } else { &seen.failed };
                    let what = format!("{method} /{client}-{n}: {}", String::from_utf8_lossy(&body));
                    failures.lock().expect("not poisoned").push(what);
                }
                seen.sent.fetch_add(1, Ordering::Relaxed);
                if head.contains("\r\nconnection: close\r\n") {
                    raw = Raw::connect(to).await;
                }
            }
        });
    }
    (seen, clients)
}

/// Waits until another tenth of what is wanted has been sent.
async fn a_tenth(seen: &Seen) {
    let until = seen.sent() + wanted() / RESTARTS as u64;
    let mut last = (seen.sent(), tokio::time::Instant::now());
    while seen.sent() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if seen.sent() > last.0 {
            last = (seen.sent(), tokio::time::Instant::now());
        }
        assert!(last.1.elapsed() < PATIENCE, "nothing is answered any more");
    }
}

async fn finish(seen: &Seen, mut clients: JoinSet<()>) -> (Vec<String>, Vec<String>) {
    seen.enough.store(true, Ordering::Relaxed);
    while let Some(done) = clients.join_next().await {
        done.expect("every request is answered");
    }
    let take = |failures: &Mutex<Vec<String>>| std::mem::take(&mut *failures.lock().expect("not poisoned"));
    (take(&seen.failed), take(&seen.posts))
}

/// No POST was executed twice.
fn assert_once(executed: &Executed) {
    let executed = executed.lock().expect("not poisoned");
    let is_post = |id: &str| {
        id.rsplit('-').next().and_then(|n| n.parse::<u64>().ok()).expect("an id").is_multiple_of(3)
    };
    let twice: Vec<_> = executed.iter().filter(|(id, n)| **n > 1 && is_post(id)).collect();
    assert!(twice.is_empty(), "executed twice: {twice:?}");
}

fn list(endpoints: &[SocketAddr]) -> String {
    let quoted: Vec<_> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    format!("upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [{}]", quoted.join(", "))
}

/// Waits until the sidecar knows these applications, and no others.
async fn known(sidecar: &Loopback, apps: &[App]) {
    let mut wanted: Vec<String> = apps.iter().map(|app| app.address.to_string()).collect();
    wanted.sort_unstable();
    let begin = tokio::time::Instant::now();
    loop {
        let seen = sidecar.get("/upstreams").await.expect("an answer").json();
        let list = seen["upstreams"][0]["endpoints"].as_array().expect("a list");
        let mut addresses: Vec<&str> =
            list.iter().filter_map(|endpoint| endpoint["address"].as_str()).collect();
        addresses.sort_unstable();
        if addresses == wanted {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{addresses:?}, and not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_plain_upstream() {
    let executed = Executed::default();
    let mut apps = vec![App::start(&executed).await, App::start(&executed).await];
    let plain = |apps: &[App]| list(&apps.iter().map(|app| app.address).collect::<Vec<_>>()) + " } }\n";
    let sidecar = Loopback::start("caller", &plain(&apps)).await;
    let (seen, clients) = clients(sidecar.outbound());
    for _ in 0..RESTARTS {
        a_tenth(&seen).await;
        // The next one is there before the one before it ends, and is known a little after that.
        apps.push(App::start(&executed).await);
        let ends = apps.remove(0);
        let (config, ends) = (plain(&apps), ends.end());
        let publish = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            sidecar.configure(&config);
        };
        tokio::join!(ends, publish);
        // The next restart is another: however fast the machine, one is over before the next begins.
        known(&sidecar, &apps).await;
    }
    let (failed, posts) = finish(&seen, clients).await;
    println!("{} requests, {RESTARTS} restarts: {} POSTs failed", seen.sent(), posts.len());
    assert!(
        failed.is_empty(),
        "{} of {} failed: {:?}",
        failed.len(),
        seen.sent(),
        &failed[..failed.len().min(5)]
    );
    // Each of them was on a connection as its upstream ended: never more than there were.
    assert!(posts.len() <= RESTARTS * CLIENTS, "{posts:?}");
    assert_once(&executed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_sidecars() {
    let executed = Executed::default();
    let app = App::start(&executed).await;
    let files = TempDir::with_prefix("pannier-rolling-").expect("a temporary directory");
    let authority = Authority::new("cluster.local");
    let issue = |name: &str| authority.issue_into(&files.path().join(name), &format!("ns/shop/sa/{name}"));
    let orders = issue("orders").yaml()
        + &format!(
            "application: {}\ninbound: {{ mtls: strict }}\ndrain: {{ accept: 500ms, timeout: 1s }}\n",
            app.address
        );
    let mut sidecars =
        vec![Loopback::start("orders", &orders).await, Loopback::start("orders", &orders).await];
    let identity = issue("caller");
    let secure = |sidecars: &[Loopback]| {
        let inbound: Vec<_> = sidecars.iter().map(Loopback::inbound).collect();
        let peer = ", mtls: { peer: \"spiffe://cluster.local/ns/shop/sa/orders\" } } }\n";
        identity.yaml() + &list(&inbound) + peer
    };
    let caller = Loopback::start("caller", &secure(&sidecars)).await;
    let (seen, clients) = clients(caller.outbound());
    for restart in 0..RESTARTS {
        a_tenth(&seen).await;
        if restart % 3 == 1 {
            // Both sides have new certificates from here on.
            issue("orders");
            issue("caller");
        }
        sidecars.push(Loopback::start("orders", &orders).await);
        let mut ends = sidecars.remove(0);
        ends.process().signal(Signal::TERM);
        tokio::time::sleep(Duration::from_millis(50)).await;
        caller.configure(&secure(&sidecars));
        let ended = tokio::task::spawn_blocking(move || ends.process().wait(PATIENCE)).await;
        assert!(ended.expect("it ends").success());
    }
    let (failed, posts) = finish(&seen, clients).await;
    println!("{} requests of every kind, {RESTARTS} restarts", seen.sent());
    assert!(failed.is_empty() && posts.is_empty(), "of {}: {failed:?} {posts:?}", seen.sent());
    assert_once(&executed);
    app.end().await;
}
