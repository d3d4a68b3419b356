//! An application that keeps its connections as it is told, and says where it took each request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::raw::{Raw, listen};

/// How an application keeps connections.
#[derive(Debug, Clone)]
pub(crate) struct Keeps {
    /// How long one may idle.
    pub(crate) idle: Duration,
    /// How many requests one takes; it then closes without a word.
    pub(crate) requests: usize,
    /// Fields of its answers.
    pub(crate) fields: &'static str,
    /// Whether it resets what it closes.
    pub(crate) resets: bool,
}

impl Default for Keeps {
    fn default() -> Self {
        Self { idle: Duration::from_secs(3600), requests: usize::MAX, fields: "", resets: false }
    }
}

/// What an application has seen.
#[derive(Default)]
pub(crate) struct Seen {
    connections: AtomicUsize,
    open: AtomicUsize,
    requests: AtomicUsize,
}

impl Seen {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Starts one. It acts on a request once all of it has come.
pub(crate) async fn serve(keeps: Keeps) -> (Arc<Seen>, SocketAddr) {
    let seen = Arc::new(Seen::default());
    let noted = seen.clone();
    let address = listen(move |raw| {
        let (noted, keeps) = (noted.clone(), keeps.clone());
        async move {
            let number = noted.connections.fetch_add(1, Ordering::SeqCst) + 1;
            noted.open.fetch_add(1, Ordering::SeqCst);
            one(raw, number, &noted, &keeps).await;
            noted.open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    (seen, address)
}

async fn one(mut raw: Raw, number: usize, seen: &Seen, keeps: &Keeps) {
    for request in 1..=keeps.requests {
        let Ok(Some(head)) = tokio::time::timeout(keeps.idle, raw.next_or_gone()).await else { break };
        if head.contains("content-length: 4") {
            raw.take(4).await;
        }
        seen.requests.fetch_add(1, Ordering::SeqCst);
        let body = format!("{number} {request}");
        let (length, fields) = (body.len(), keeps.fields);
        raw.offer(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{fields}\r\n{body}")).await;
    }
    if keeps.resets {
        raw.reset();
    }
}
