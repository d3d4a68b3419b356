//! How many connections there may be, over all workers, and who gets one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::server::{Keeps, serve};
use crate::support::loopback::{Loopback, upstream};
use crate::{Client, Served};

/// An application that knows of each new connection how many of the others its caller still had open: what
/// a caller has closed is over on loopback before he connects again. Its address, and the most.
fn counting() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let most = Arc::new(AtomicUsize::new(0));
    let counted = most.clone();
    std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for (number, stream) in listener.incoming().flatten().enumerate() {
            open.retain(is_open);
            open.push(stream.try_clone().expect("a descriptor"));
            counted.fetch_max(open.len(), Ordering::Relaxed);
            std::thread::spawn(move || answer(stream, number + 1));
        }
    });
    (address, most)
}

fn is_open(stream: &TcpStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).expect("a poll");
    fds[0].revents().is_empty()
}

/// Answers each request, and never closes.
fn answer(mut stream: TcpStream, number: usize) -> Option<()> {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    for request in 1.. {
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line).ok()? > 2 {
            length = if line.starts_with("content-length: 4") { 4 } else { length };
            line.clear();
        }
        if line.is_empty() {
            break;
        }
        reader.read_exact(&mut [0; 4][..length]).ok()?;
        std::thread::sleep(Duration::from_micros(200));
        let body = format!("{number} {request}");
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).ok()?;
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_one_connection_more_than_there_may_be() {
    const MOST: usize = 10;
    let (app, most) = counting();
    let more = ", max_connections: 10, connect_timeout: 15s, keep_alive: { requests: 20 }";
    let sidecar = Loopback::with_workers(2, "caller", &upstream(app, more)).await;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..500 {
        let mut client = Client::new(&sidecar).await;
        clients.spawn(async move {
            for _ in 0..10 {
                client.ask(if n % 4 == 0 { "POST" } else { "GET" }).await;
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("every request is answered");
    }
    let most = most.load(Ordering::Relaxed);
    assert_eq!(most, MOST, "connections that were open at once");
}

#[tokio::test]
async fn what_another_worker_keeps_idle_is_handed_over() {
    let (seen, app) = serve(Keeps::default()).await;
    let more = ", max_connections: 1, keep_alive: { timeout: 60s, requests: 1000 }";
    let sidecar = Loopback::with_workers(2, "caller", &upstream(app, more)).await;
    // Connections go to the worker that has the fewest: these are on one each.
    let (mut one, mut other) = (Client::new(&sidecar).await, Client::new(&sidecar).await);
    for n in 0..20 {
        let client = if n % 2 == 0 { &mut one } else { &mut other };
        assert_eq!(client.ask("POST").await, Served { connection: 1, request: n + 1 });
    }
    assert_eq!(seen.connections(), 1);
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_not_run_down() {
    // So slow to take connections that those which are opened at once can be counted.
    let (seen, app) = serve(Keeps::default()).await;
    let sidecar = Loopback::start("caller", &upstream(app, "")).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut client = Client::new(&sidecar).await;
        clients.spawn(async move { client.ask("GET").await });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("every request is answered");
    }
    assert!(seen.open() <= 200 && seen.requests() == 200);
}
