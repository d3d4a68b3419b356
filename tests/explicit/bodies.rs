//! Bodies of any size pass in constant memory, and a slow reader slows the sender.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::support::loopback::{HOST, Pair, hop};
use crate::support::raw::{Raw, listen};

const MEBI: u64 = 1 << 20;

/// Each body's size; `PANNIER_TEST_BODY_MIB` asks for others, such as 8192.
fn size() -> u64 {
    let asked = std::env::var("PANNIER_TEST_BODY_MIB").ok();
    asked.map_or(64, |mib| mib.parse().expect("a number of MiB")) * MEBI
}

/// More than a pair of sidecars and the kernel may hold of one body.
const FAR_TOO_MUCH: u64 = 64 * MEBI;

/// The most memory that a sidecar may take for one body each way.
const MEMORY: u64 = 48 * MEBI;

#[tokio::test]
async fn large_bodies_pass_and_are_never_gathered() {
    let size = size();
    let piece = vec![b'x'; MEBI as usize];
    let app = listen(move |mut raw: Raw| async move {
        let piece = vec![b'y'; MEBI as usize];
        while let Some(head) = raw.next().await {
            if head.contains("content-length") {
                raw.skip(size).await;
                raw.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).await;
                for _ in 0..size / MEBI {
                    raw.send(&piece).await;
                }
            } else {
                assert_eq!(raw.skip_chunks().await, size);
                raw.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                for _ in 0..size / MEBI {
                    raw.send(format!("{MEBI:x}\r\n")).await;
                    raw.send(&piece).await;
                    raw.send("\r\n").await;
                }
                raw.send("0\r\n\r\n").await;
            }
        }
    })
    .await;
    let pair = Pair::new(app).await;
    let plain = hop(app).await;
    for caller in [&plain, &pair.caller] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {size}\r\n\r\n")).await;
        for _ in 0..size / MEBI {
            raw.send(&piece).await;
        }
        let head = raw.head().await;
        assert!(head.contains(&format!("content-length: {size}\r\n")), "{head}");
        raw.skip(size).await;

        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n")).await;
        for _ in 0..size / MEBI {
            raw.send(format!("{MEBI:x}\r\n")).await;
            raw.send(&piece).await;
            raw.send("\r\n").await;
        }
        raw.send("0\r\n\r\n").await;
        let head = raw.head().await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert_eq!(raw.skip_chunks().await, size);
    }
    for (name, sidecar) in [("plain", &plain), ("caller", &pair.caller), ("orders", &pair.orders)] {
        let peak = sidecar.peak_memory();
        println!("{name}: {} MiB at most", peak / MEBI);
        assert!(peak < MEMORY, "{name} held {} MiB", peak / MEBI);
    }
}

#[tokio::test]
async fn a_server_that_reads_slowly_slows_the_client() {
    let read = Arc::new(Notify::new());
    let reading = read.clone();
    let app = listen(move |mut raw: Raw| {
        let reading = reading.clone();
        async move {
            raw.head().await;
            reading.notified().await;
            raw.skip(FAR_TOO_MUCH).await;
            raw.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for caller in [&plain, &pair.caller] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {FAR_TOO_MUCH}\r\n\r\n")).await;
        let sent = raw.send_until_stuck(&[b'x'; 64 << 10], Duration::from_secs(1)).await;
        assert!(sent < FAR_TOO_MUCH / 2, "{sent} bytes were taken, though nobody reads");
        read.notify_one();
        let mut left = FAR_TOO_MUCH - sent;
        while left > 0 {
            let now = left.min(64 << 10);
            raw.send(vec![b'x'; now as usize]).await;
            left -= now;
        }
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    }
    for sidecar in [&plain, &pair.caller, &pair.orders] {
        assert!(sidecar.peak_memory() < MEMORY, "it was gathered");
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_the_server() {
    let (sent, stuck) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let (count, tell) = (sent.clone(), stuck.clone());
    let app = listen(move |mut raw: Raw| {
        let (count, tell) = (count.clone(), tell.clone());
        async move {
            raw.head().await;
            raw.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {FAR_TOO_MUCH}\r\n\r\n")).await;
            let first = raw.send_until_stuck(&[b'y'; 64 << 10], Duration::from_secs(1)).await;
            count.store(first, Ordering::Relaxed);
            tell.notify_one();
            let mut left = FAR_TOO_MUCH - first;
            while left > 0 {
                let now = left.min(64 << 10);
                raw.send(vec![b'y'; now as usize]).await;
                left -= now;
            }
            raw.rest().await;
        }
    })
    .await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for caller in [&plain, &pair.caller] {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        stuck.notified().await;
        let first = sent.load(Ordering::Relaxed);
        assert!(first < FAR_TOO_MUCH / 2, "{first} bytes were taken, though nobody reads");
        raw.head().await;
        raw.skip(FAR_TOO_MUCH).await;
    }
    for sidecar in [&plain, &pair.caller, &pair.orders] {
        assert!(sidecar.peak_memory() < MEMORY, "it was gathered");
    }
}
