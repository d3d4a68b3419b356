//! Load: many keep-alive connections from one pod, and a tally of every answer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::app::REQUEST_ID;
use super::client::{Answer, request};
use super::lab::Pod;
use super::namespace::Running;

/// A request without an answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// What to send, where to, and how much of it. Each request carries an id of its own, which
/// applications keep.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Where to connect.
    pub(crate) to: SocketAddr,
    /// The authority that each request names.
    pub(crate) host: String,
    /// The method.
    pub(crate) method: &'static str,
    /// The path.
    pub(crate) path: String,
    /// Fields beside the host.
    pub(crate) fields: Vec<(&'static str, &'static str)>,
    /// The body.
    pub(crate) body: Bytes,
    /// How many connections, each with one request at a time.
    pub(crate) connections: usize,
    /// How many requests in all; none: until stopped.
    pub(crate) requests: Option<u64>,
    /// How long each connection waits between its requests.
    pub(crate) pause: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Answers by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Answers by the pod whose application gave them.
    pub(crate) pods: BTreeMap<String, u64>,
    /// Refusals by `x-pannier-refused`.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Requests without an answer, by why.
    pub(crate) failures: BTreeMap<String, u64>,
    /// When each request that was answered with 200 was sent, and when it was answered.
    pub(crate) times: Vec<(Instant, Instant)>,
}

/// Load that is being sent.
pub(crate) struct Sending {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    running: Running<()>,
}

impl Load {
    /// `GET /` on 8 connections until stopped, without a pause.
    pub(crate) fn new(to: SocketAddr, host: &str) -> Self {
        Self {
            to,
            host: host.to_owned(),
            method: "GET",
            path: "/".to_owned(),
            fields: Vec::new(),
            body: Bytes::new(),
            connections: 8,
            requests: None,
            pause: Duration::ZERO,
        }
    }

    /// Starts sending from `pod`.
    pub(crate) fn start(self, pod: &Pod) -> Sending {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (stopped, counted) = (stop.clone(), tally.clone());
        let running = pod.start(move || async move {
            let load = Arc::new(self);
            let begun = Arc::new(AtomicU64::new(0));
            let mut connections = JoinSet::new();
            for _ in 0..load.connections {
                connections.spawn(connection(load.clone(), begun.clone(), stopped.clone(), counted.clone()));
            }
            while let Some(ended) = connections.join_next().await {
                ended.expect("a connection's task");
            }
        });
        Sending { stop, tally, running }
    }

    /// Sends all of `requests` from `pod`.
    pub(crate) fn run(self, pod: &Pod) -> Tally {
        assert!(self.requests.is_some(), "load that never ends has to be started and stopped");
        self.start(pod).finish()
    }
}

impl Sending {
    /// The tally so far.
    pub(crate) fn so_far(&self) -> Tally {
        self.tally.lock().expect("not poisoned").clone()
    }

    /// Waits until all is sent.
    pub(crate) fn finish(self) -> Tally {
        self.running.join();
        self.tally.lock().expect("not poisoned").clone()
    }

    /// Sends nothing new, and waits for the answers that are due.
    pub(crate) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }
}

impl Tally {
    /// How many requests were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.statuses.values().sum::<u64>() + self.failures.values().sum::<u64>()
    }

    /// How many were answered with 200.
    pub(crate) fn ok(&self) -> u64 {
        self.statuses.get(&200).copied().unwrap_or(0)
    }

    /// Fails unless every request was answered with 200.
    pub(crate) fn assert_all_ok(&self) {
        assert!(self.sent() > 0, "nothing was sent");
        assert_eq!(self.ok(), self.sent(), "requests failed: {self:#?}");
    }

    fn count(&mut self, outcome: io::Result<Answer>, sent: Instant) {
        match outcome {
            Ok(answer) => {
                *self.statuses.entry(answer.status.as_u16()).or_default() += 1;
                if answer.status == 200 {
                    self.times.push((sent, Instant::now()));
                }
                if let Some(pod) = answer.pod() {
                    *self.pods.entry(pod.to_owned()).or_default() += 1;
                }
                if let Some(refused) = answer.refused() {
                    *self.refused.entry(refused.to_owned()).or_default() += 1;
                }
            }
            Err(error) => *self.failures.entry(error.to_string()).or_default() += 1,
        }
    }
}

/// Sends on one connection, which is replaced when its peer closes it between requests.
async fn connection(load: Arc<Load>, begun: Arc<AtomicU64>, stop: Arc<AtomicBool>, tally: Arc<Mutex<Tally>>) {
    let mut open = None;
    while !stop.load(Ordering::Relaxed)
        && load.requests.is_none_or(|most| begun.fetch_add(1, Ordering::Relaxed) < most)
    {
        let sent = Instant::now();
        let outcome = tokio::time::timeout(PATIENCE, one(&load, &mut open)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(io::Error::other(format!("no answer in {PATIENCE:?}"))));
        if outcome.is_err() {
            open = None;
        }
        tally.lock().expect("not poisoned").count(outcome, sent);
        if !load.pause.is_zero() {
            tokio::time::sleep(load.pause).await;
        }
    }
}

async fn one(load: &Load, open: &mut Option<SendRequest<Full<Bytes>>>) -> io::Result<Answer> {
    let reusable = match open.take() {
        Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
        None => None,
    };
    let mut sender = match reusable {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(load.to).await.map_err(|e| explain("connect", &e))?;
            let _ = stream.set_nodelay(true);
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|e| explain("handshake", &e))?;
            tokio::spawn(connection);
            sender.ready().await.map_err(|e| explain("handshake", &e))?;
            sender
        }
    };
    let mut request = request(load.method, &load.host, &load.path, load.body.clone());
    request.headers_mut().insert(REQUEST_ID, NEXT_ID.fetch_add(1, Ordering::Relaxed).into());
    for (name, value) in &load.fields {
        request.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    let (parts, body) = sender.send_request(request).await.map_err(|e| explain("request", &e))?.into_parts();
    let body = body.collect().await.map_err(|e| explain("body", &e))?.to_bytes();
    *open = Some(sender);
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

/// An error with its causes, since hyper's own words hide them.
fn explain(stage: &str, error: &dyn std::error::Error) -> io::Error {
    let mut text = format!("{stage}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    io::Error::other(text)
}
