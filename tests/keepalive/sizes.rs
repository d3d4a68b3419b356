//! How many connections there may be, over all workers, and who gets one.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::server::{Keeps, serve};
use crate::support::loopback::{Loopback, upstream};
use crate::{Client, Served};

/// Connections that this machine has to `port` of loopback and that are open or being opened: its own
/// sockets, as the kernel lists them.
fn open_to(server: SocketAddr) -> usize {
    const ESTABLISHED: &str = "01";
    const SYN_SENT: &str = "02";
    let remote = format!(":{:04X}", server.port());
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[2].ends_with(&remote) && [ESTABLISHED, SYN_SENT].contains(&row[3])).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_one_connection_more_than_there_may_be() {
    const MOST: usize = 10;
    let (seen, app) = serve(Keeps { requests: 40, ..Keeps::default() }).await;
    let sidecar =
        Loopback::with_workers(2, "caller", &upstream(app, ", max_connections: 10, connect_timeout: 15s"))
            .await;
    let ended = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let ended = ended.clone();
        move || {
            let mut most = 0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(open_to(app));
                std::thread::sleep(Duration::from_millis(1));
            }
            most
        }
    });
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
    ended.store(true, Ordering::Relaxed);
    let most = watcher.join().expect("the watcher");
    assert_eq!(seen.requests(), 5000);
    assert!((2..=MOST).contains(&most), "{most} connections were open at once");
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
