//! Both doors over loopback, spoken to in raw bytes.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::server::{LONGEST, MOST_CONNECTIONS};
use super::*;
use crate::telemetry::openmetrics;

#[derive(Default)]
struct Pod {
    readiness: Mutex<Readiness>,
    upstreams: Mutex<Value>,
    drains: AtomicUsize,
    quits: AtomicUsize,
}

impl View for Pod {
    fn ready(&self) -> Readiness {
        self.readiness.lock().expect("not poisoned").clone()
    }

    fn config(&self) -> Value {
        json!({ "workers": 2 })
    }

    fn upstreams(&self) -> Value {
        self.upstreams.lock().expect("not poisoned").clone()
    }

    fn limits(&self) -> Value {
        json!([])
    }

    fn drain(&self) {
        self.drains.fetch_add(1, Ordering::Relaxed);
    }

    fn quit(&self) {
        self.quits.fetch_add(1, Ordering::Relaxed);
    }
}

impl Pod {
    /// How often it was asked to drain, and to quit.
    fn asked(&self) -> (usize, usize) {
        (self.drains.load(Ordering::Relaxed), self.quits.load(Ordering::Relaxed))
    }
}

struct Served {
    admin: SocketAddr,
    probes: SocketAddr,
    pod: Arc<Pod>,
    metrics: Arc<Metrics>,
    _doors: Doors,
}

fn served() -> Served {
    let listener = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let (admin, probes) = (listener(), listener());
    let (pod, metrics) = (Arc::new(Pod::default()), Metrics::new(1));
    let addresses = (address(&admin), address(&probes));
    let doors = serve(vec![admin], vec![probes], pod.clone(), metrics.clone()).expect("serves");
    Served { admin: addresses.0, probes: addresses.1, pod, metrics, _doors: doors }
}

/// Sends bytes, and reads until the other side ends.
async fn exchange(to: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(to).await.expect("connects");
    stream.write_all(bytes.as_ref()).await.expect("writes");
    read(&mut stream).await
}

async fn read(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that ends by a reset has said what came before.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("UTF-8")
}

async fn get(from: SocketAddr, path: &str) -> String {
    exchange(from, format!("GET {path} HTTP/1.1\r\nHost: {from}\r\n\r\n")).await
}

#[track_caller]
fn assert_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "expected {status}: {answer:?}");
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

#[tokio::test]
async fn each_page_answers() {
    let served = served();
    for (path, body_of) in [
        ("/live", "live\n".to_owned()),
        ("/config", "{\n  \"workers\": 2\n}\n".to_owned()),
        ("/upstreams", "null\n".to_owned()),
        ("/limits?all", "[]\n".to_owned()),
    ] {
        let answer = get(served.admin, path).await;
        assert_status(&answer, 200);
        assert_eq!(body(&answer), body_of, "{path}");
    }
    assert!(get(served.admin, "/config").await.contains("content-type: application/json\r\n"));
    let index = get(served.admin, "/").await;
    for path in ["/live", "/ready", "/metrics", "/config", "/upstreams", "/limits", "/drain", "/quit"] {
        assert!(body(&index).contains(path), "{index}");
    }
}

#[tokio::test]
async fn the_probes_door_has_health_and_metrics_alone() {
    let served = served();
    for path in ["/", "/live", "/ready", "/metrics"] {
        assert_status(&get(served.probes, path).await, 200);
    }
    for path in ["/config", "/upstreams", "/limits", "/drain", "/quit"] {
        let answer = get(served.probes, path).await;
        assert_status(&answer, 404);
        assert!(!body(&answer).contains("/config"), "{answer}");
    }
    for path in ["/drain", "/quit"] {
        let post = format!("POST {path} HTTP/1.1\r\nHost: {}\r\n\r\n", served.probes);
        assert_status(&exchange(served.probes, post).await, 404);
    }
    assert_eq!(served.pod.asked(), (0, 0));
}

#[tokio::test]
async fn ready_says_why_not() {
    let served = served();
    served.metrics.identity(Some(std::time::SystemTime::now()));
    let answer = get(served.probes, "/ready").await;
    assert_status(&answer, 200);
    assert_eq!(body(&answer), "ready\n");

    *served.pod.readiness.lock().expect("not poisoned") = Readiness {
        why_not: vec!["the certificate is not loaded".into(), "the sidecar drains".into()],
        notes: vec!["the last reload was refused".into()],
    };
    served.metrics.identity(None);
    let answer = get(served.probes, "/ready").await;
    assert_status(&answer, 503);
    assert_eq!(
        body(&answer),
        "not ready\n\
         because: the certificate is not loaded\n\
         because: the sidecar drains\n\
         note: the last reload was refused\n\
         note: traffic is plaintext: no identity is configured\n"
    );
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let served = served();
    let answer = get(served.probes, "/metrics").await;
    assert_status(&answer, 200);
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
    assert_eq!(openmetrics::parse(body(&answer)).value("pannier_plaintext", &[]), Some(1.0));
}

#[tokio::test]
async fn only_a_post_drains_or_quits() {
    let served = served();
    for (path, asked) in [("/drain", (1, 0)), ("/quit", (1, 1))] {
        let before = served.pod.asked();
        let head = |method: &str| format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n\r\n", served.admin);
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            let answer = exchange(served.admin, head(method)).await;
            assert_status(&answer, 405);
            assert!(answer.contains("allow: POST\r\n"), "{answer}");
        }
        assert_eq!(served.pod.asked(), before);
        assert_status(&exchange(served.admin, head("POST")).await, 202);
        assert_eq!(served.pod.asked(), asked);
    }

    let answer = exchange(served.admin, "POST /ready HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 405 ") && answer.contains("allow: GET, HEAD\r\n"), "{answer}");
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let served = served();
    let answer = exchange(served.probes, "HEAD /live HTTP/1.1\r\nHost: pod\r\n\r\n").await;
    assert_status(&answer, 200);
    assert!(answer.contains("content-length: 5\r\n"), "{answer}");
    assert_eq!(body(&answer), "");
}

#[tokio::test]
async fn an_unknown_path_is_told_what_there_is() {
    let served = served();
    for path in ["/nothing", "/ready/", "//ready", "/READY", "/%72eady", "/../ready"] {
        let answer = get(served.admin, path).await;
        assert_status(&answer, 404);
        assert!(body(&answer).contains("POST /drain"), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_nothing_breaks() {
    let served = served();
    let long =
        format!("GET /live HTTP/1.1\r\nHost: {}\r\nx: {}\r\n\r\n", served.probes, "a".repeat(64 << 10));
    let many = format!("GET /live HTTP/1.1\r\n{}\r\n", "x: 1\r\n".repeat(1000));
    for (bytes, status) in [
        ("\r\n\r\n\r\nwhat?\r\n\r\n".as_bytes(), Some(400)),
        (b"GET /live HTTP/1.1\r\nbad name: 1\r\n\r\n", Some(400)),
        (b"GET /live HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", Some(400)),
        (b"GET /live\r\n\r\n", Some(400)),
        (long.as_bytes(), Some(431)),
        (many.as_bytes(), Some(431)),
        // The beginning of a TLS ClientHello, and of an HTTP/2 connection.
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Some(400)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
        (&[0xff; 4096], Some(400)),
    ] {
        let answer = exchange(served.probes, bytes).await;
        match status {
            Some(status) => assert_status(&answer, status),
            None => assert!(!answer.contains(" 200 "), "{answer}"),
        }
        assert_status(&get(served.probes, "/live").await, 200);
    }
}

#[tokio::test]
async fn one_request_a_connection() {
    let served = served();
    let twice = "GET /live HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    let answer = exchange(served.probes, twice).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1);
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_has_said_all_is_still_answered() {
    let served = served();
    let mut stream = TcpStream::connect(served.probes).await.expect("connects");
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    stream.shutdown().await.expect("shuts down");
    assert_status(&read(&mut stream).await, 200);
}

#[tokio::test]
async fn a_web_page_cannot_use_the_admin_door() {
    let served = served();
    let admin = served.admin;
    let post = |host: &str, fields: &str| format!("POST /quit HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    for refused in [
        post("evil.example", ""),
        post("localhost.evil.example:15000", ""),
        post("127.0.0.1.nip.example", ""),
        post("127.0.0.1", "Origin: http://evil.example\r\n"),
        post("127.0.0.1", "Origin: null\r\n"),
        "GET /config HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(),
        "GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n".to_owned(),
        "GET http://evil.example/config HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_owned(),
        "GET /config HTTP/1.1\r\nHost: \r\n\r\n".to_owned(),
    ] {
        assert_status(&exchange(admin, &refused).await, 403);
    }
    assert_eq!(served.pod.asked(), (0, 0));
    for host in ["localhost", "LOCALHOST:15000", "127.0.0.1:15000", "[::1]:15000", "[::1]"] {
        let answer = exchange(admin, format!("GET /config HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_status(&answer, 200);
    }
    let answer = exchange(admin, "GET /config HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    // Whoever probes a pod calls it as they like.
    let answer = exchange(served.probes, "GET /ready HTTP/1.1\r\nHost: pod.example\r\n\r\n").await;
    assert_status(&answer, 200);
}

/// Time is paused, so it runs as soon as nothing else does: the deadline comes at once.
#[tokio::test(start_paused = true)]
async fn a_slow_request_ends_at_the_deadline() {
    let served = served();
    for begun in ["", "G", "GET /live HTTP/1.1\r\nHost: a\r\n"] {
        let start = Instant::now();
        assert_eq!(exchange(served.probes, begun).await, "");
        let took = start.elapsed();
        assert!(took >= LONGEST && took < LONGEST + Duration::from_secs(1), "{begun:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_ends_at_the_deadline() {
    let served = served();
    // More than the sockets between them hold.
    const LENGTH: usize = 32 << 20;
    *served.pod.upstreams.lock().expect("not poisoned") = Value::String("a".repeat(LENGTH));
    let mut stream = TcpStream::connect(served.admin).await.expect("connects");
    stream.write_all(b"GET /upstreams HTTP/1.0\r\n\r\n").await.expect("writes");
    tokio::time::sleep(LONGEST * 2).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.is_empty() && answer.len() < LENGTH, "{} bytes came", answer.len());
    assert_status(&get(served.admin, "/live").await, 200);
}

#[tokio::test]
async fn clients_that_hold_connections_keep_no_one_out() {
    let served = served();
    let mut held = Vec::new();
    for _ in 0..MOST_CONNECTIONS * 3 {
        let mut stream = TcpStream::connect(served.probes).await.expect("connects");
        stream.write_all(b"GET /live HTTP/1.1\r\n").await.expect("writes");
        held.push(stream);
    }
    assert_status(&get(served.probes, "/live").await, 200);
    // The oldest made room.
    assert_eq!(read(&mut held[0]).await, "");
    // The youngest may still finish.
    let youngest = held.last_mut().expect("many");
    youngest.write_all(b"Host: a\r\n\r\n").await.expect("writes");
    assert_status(&read(youngest).await, 200);
}

#[tokio::test]
async fn many_at_once_are_all_answered() {
    let served = served();
    let asking: Vec<_> = (0..MOST_CONNECTIONS)
        .map(|_| {
            let from = served.probes;
            tokio::spawn(async move { get(from, "/metrics").await })
        })
        .collect();
    for asked in asking {
        let answer = asked.await.expect("no panic");
        assert_status(&answer, 200);
        openmetrics::parse(body(&answer));
    }
}

#[tokio::test]
async fn the_doors_close_when_dropped() {
    let Served { probes, _doors, .. } = served();
    assert_status(&get(probes, "/live").await, 200);
    drop(_doors);
    tokio::task::yield_now().await;
    TcpStream::connect(probes).await.expect_err("nobody listens");
}
