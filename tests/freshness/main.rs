//! Names are as fresh as their records, and no failure of a name's server fails a request: through the
//! real binary, against a DNS server that misbehaves as told.

mod change;
mod clock;
mod failure;
mod server;
mod services;
#[path = "../support/mod.rs"]
mod support;
mod zone;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use server::Server;
use support::loopback::Loopback;

/// What the application calls.
const NAME: &str = "orders.mesh";

/// How long anything may take that has no time of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// Applications on addresses of loopback, all on one port, that count what comes.
struct Apps {
    port: u16,
    seen: BTreeMap<String, Arc<Seen>>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Apps {
    /// One on each of these addresses.
    async fn start(addresses: &[&str]) -> Self {
        let (port, listeners) = 'ports: loop {
            let first = TcpListener::bind((addresses[0], 0)).await.expect("a port");
            let port = first.local_addr().expect("an address").port();
            let mut listeners = vec![first];
            for address in &addresses[1..] {
                match TcpListener::bind((*address, port)).await {
                    Ok(listener) => listeners.push(listener),
                    Err(_) => continue 'ports,
                }
            }
            break (port, listeners);
        };
        let mut seen = BTreeMap::new();
        for (address, listener) in addresses.iter().zip(listeners) {
            let counts = Arc::new(Seen::default());
            seen.insert((*address).to_owned(), counts.clone());
            tokio::spawn(serve(listener, counts));
        }
        Self { port, seen }
    }

    fn requests(&self, address: &str) -> usize {
        self.seen[address].requests.load(Ordering::Relaxed)
    }

    fn connections(&self, address: &str) -> usize {
        self.seen[address].connections.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, seen: Arc<Seen>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        seen.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(answer(stream, seen.clone()));
    }
}

/// Answers every request that has no body.
async fn answer(mut stream: TcpStream, seen: Arc<Seen>) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            seen.requests.fetch_add(1, Ordering::Relaxed);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
        }
    }
}

/// A sidecar that asks this server, and calls an upstream `orders` with more lines in braces.
async fn sidecar(server: &Server, apps: &Apps, dns: &str, upstream: &str) -> Loopback {
    let dns = format!("{}{dns}", server.yaml());
    Loopback::asking(&dns, "caller", &orders(apps, upstream)).await
}

fn orders(apps: &Apps, more: &str) -> String {
    format!("upstreams: {{ orders: {{ address: \"{NAME}:{}\"{more} }} }}\n", apps.port)
}

/// Requests on one connection, on and on: whatever does not succeed is noted.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(sidecar: &Loopback, apps: &Apps) -> Self {
        let (outbound, host) = (sidecar.outbound(), format!("{NAME}:{}", apps.port));
        let (stop, sent, failed) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::default());
        let task = tokio::spawn(send(outbound, host, stop.clone(), sent.clone(), Arc::clone(&failed)));
        Self { stop, sent, failed, task }
    }

    /// Waits for so many more answers.
    async fn more(&self, answers: usize) {
        let until = self.sent.load(Ordering::Relaxed) + answers;
        eventually("answers", async || self.sent.load(Ordering::Relaxed) >= until).await;
    }

    /// Ends it: no request has failed.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic");
        let failed = self.failed.lock().expect("unpoisoned");
        let sent = self.sent.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of {sent} requests failed: {:?}", failed.len(), failed.first());
    }
}

async fn send(
    to: SocketAddr,
    host: String,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
) {
    let mut stream = TcpStream::connect(to).await.expect("the sidecar");
    while !stop.load(Ordering::Relaxed) {
        let answer = ask(&mut stream, &host).await;
        if !answer.as_ref().is_ok_and(|head| head.starts_with("HTTP/1.1 200")) {
            failed.lock().expect("unpoisoned").push(format!("{answer:?}"));
        }
        if answer.is_err() {
            stream = TcpStream::connect(to).await.expect("the sidecar");
        }
        sent.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// One request, and its answer's head.
async fn ask(stream: &mut TcpStream, host: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
    });
    stream.read_exact(&mut vec![0; length.unwrap_or(0)]).await?;
    Ok(head)
}

/// One request on a connection of its own, and its answer's head.
async fn once(sidecar: &Loopback, apps: &Apps) -> String {
    let mut stream = TcpStream::connect(sidecar.outbound()).await.expect("the sidecar");
    ask(&mut stream, &format!("{NAME}:{}", apps.port)).await.expect("an answer")
}

/// What `/upstreams` says.
async fn upstreams(sidecar: &Loopback) -> Value {
    sidecar.get("/upstreams").await.expect("an answer").json()
}

/// Waits until it is so.
async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begin = tokio::time::Instant::now();
    while !so().await {
        assert!(begin.elapsed() < PATIENCE, "no {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The addresses of orders' endpoints, ascending.
async fn endpoints(sidecar: &Loopback) -> Vec<IpAddr> {
    let all = upstreams(sidecar).await;
    let list = all["upstreams"][0]["endpoints"].as_array().expect("a list").clone();
    let address =
        |endpoint: &Value| endpoint["address"].as_str().and_then(|at| at.parse::<SocketAddr>().ok());
    let mut addresses: Vec<IpAddr> = list.iter().filter_map(address).map(|at| at.ip()).collect();
    addresses.sort_unstable();
    addresses
}
