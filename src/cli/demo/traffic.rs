//! The caller's application: it sends requests over keep-alive connections, at an even rate, and
//! counts every answer. It knows the service by its name, as any client does.
//!
//! It counts honestly: whatever is not the answer that the request asked for, whole and correct,
//! is a failure. The one exception is the stream that is sent against a limit: there a 429 by the
//! limit is what is wanted, and counted apart.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::{interval, timeout};

use super::app;
use super::config::{HOST, PORT};
use super::ended::Result;
use super::place::{Place, Running};
use crate::config::model::Direction;
use crate::telemetry::{self, Metrics};

/// A request without an answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often new requests become due.
const BEAT: Duration = Duration::from_millis(5);

/// Failures are told apart by their words, up to so many.
const KINDS: usize = 16;

/// Requests of one kind, at an even rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    method: &'static str,
    path: &'static str,
    /// Requests a second.
    pub(super) rate: u32,
    /// At most so many at once.
    pub(super) connections: usize,
    /// Whether a refusal by a limit is expected.
    limited: bool,
}

/// What is read.
pub(super) const READS: Stream =
    Stream { method: "GET", path: "/orders", rate: 2_000, connections: 40, limited: false };

/// What is written, which the limit is on. PUT is idempotent: one that was at a pod that died may be
/// sent to another.
pub(super) const WRITES: Stream =
    Stream { method: "PUT", path: "/writes", rate: 50, connections: 4, limited: true };

/// Where the application connects to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// To what the service's name means, as this server says; the rest is done to its packets.
    ByName(SocketAddr),
    /// To the sidecar, which goes by the request's host.
    Explicit(SocketAddr),
}

/// Traffic that is being sent.
pub(super) struct Traffic {
    shared: Arc<Shared>,
    running: Running,
}

struct Shared {
    tally: Mutex<Tally>,
    /// The latencies of reads since they were last taken, in microseconds.
    recent: Mutex<Vec<u32>>,
    /// Of the requests that were answered well.
    latency: Arc<telemetry::Traffic>,
    /// A permit is a request that is due. Closed: no more requests.
    due: [Semaphore; 2],
    number: AtomicU64,
}

/// What came of it so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Reads that were answered.
    pub(super) reads: u64,
    /// Writes that were answered.
    pub(super) writes: u64,
    /// Writes that the limit refused.
    pub(super) refused: u64,
    /// Answers of each pod.
    pub(super) pods: BTreeMap<String, u64>,
    /// What failed, and how often.
    pub(super) failures: BTreeMap<String, u64>,
}

impl Traffic {
    /// Starts to send from `place`.
    pub(super) fn start(place: &Place, way: Way) -> Result<Self> {
        let shared = Arc::new(Shared {
            tally: Mutex::default(),
            recent: Mutex::default(),
            latency: Metrics::new(1).traffic(Direction::Outbound, "orders", "demo"),
            due: [Semaphore::new(0), Semaphore::new(0)],
            number: AtomicU64::default(),
        });
        let sending = shared.clone();
        let running = place.start("traffic", move || async move {
            LocalSet::new().run_until(send(sending, way)).await;
        })?;
        Ok(Self { shared, running })
    }

    /// What came of it so far.
    pub(super) fn tally(&self) -> Tally {
        lock(&self.shared.tally).clone()
    }

    /// The latencies of reads since the last call, in microseconds, sorted.
    pub(super) fn recent(&self) -> Vec<u32> {
        let mut recent = std::mem::take(&mut *lock(&self.shared.recent));
        recent.sort_unstable();
        recent
    }

    /// The latencies of all reads so far.
    pub(super) fn latency(&self) -> telemetry::Latency {
        self.shared.latency.snapshot().latency
    }

    /// Sends nothing new, waits for the answers that are due, and gives what came of it all.
    pub(super) fn finish(self) -> Result<(Tally, telemetry::Latency)> {
        self.shared.due.iter().for_each(Semaphore::close);
        self.running.finish()?;
        Ok((lock(&self.shared.tally).clone(), self.shared.latency.snapshot().latency))
    }
}

impl Shared {
    fn count(&self, stream: &Stream, outcome: Outcome, took: Duration) {
        if let (Outcome::Answered { .. }, false) = (&outcome, stream.limited) {
            self.latency.finished(0, 200, took);
            lock(&self.recent).push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
        lock(&self.tally).count(stream, outcome);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// How many requests failed.
    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// How many requests were sent and have an outcome.
    pub(super) fn sent(&self) -> u64 {
        self.reads + self.writes + self.refused + self.failed()
    }

    fn failure(&mut self, why: String) {
        let known = self.failures.len() < KINDS || self.failures.contains_key(&why);
        *self.failures.entry(if known { why } else { "other failures".into() }).or_default() += 1;
    }

    fn count(&mut self, stream: &Stream, outcome: Outcome) {
        match outcome {
            Outcome::Answered { pod } => {
                *self.pods.entry(pod).or_default() += 1;
                if stream.limited {
                    self.writes += 1;
                } else {
                    self.reads += 1;
                }
            }
            Outcome::Refused => self.refused += 1,
            Outcome::Failed(why) => self.failure(why),
        }
    }
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered { pod: String },
    Refused,
    Failed(String),
}

async fn send(shared: Arc<Shared>, way: Way) {
    let client = Rc::new(Client::new(way));
    let mut connections = tokio::task::JoinSet::new();
    for (index, stream) in [READS, WRITES].into_iter().enumerate() {
        tokio::task::spawn_local(pace(shared.clone(), index, stream.rate));
        for _ in 0..stream.connections {
            connections.spawn_local(connection(shared.clone(), index, stream, client.clone()));
        }
    }
    connections.join_all().await;
}

/// Makes requests due, evenly. What cannot be sent in a tenth of a second is not sent later.
async fn pace(shared: Arc<Shared>, index: usize, rate: u32) {
    let due = &shared.due[index];
    let mut beat = interval(BEAT);
    let (begun, mut made) = (Instant::now(), 0);
    while !due.is_closed() {
        beat.tick().await;
        let all = (begun.elapsed().as_secs_f64() * f64::from(rate)) as usize;
        let room = (rate as usize).div_ceil(10).saturating_sub(due.available_permits());
        due.add_permits((all - made).min(room));
        made = all;
    }
}

async fn connection(shared: Arc<Shared>, index: usize, stream: Stream, client: Rc<Client>) {
    let mut open = None;
    while let Ok(due) = shared.due[index].acquire().await {
        due.forget();
        let path = format!("{}/{}", stream.path, shared.number.fetch_add(1, Ordering::Relaxed));
        let begun = Instant::now();
        let outcome = timeout(PATIENCE, client.exchange(&mut open, &stream, &path)).await;
        let outcome = match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(why)) => Outcome::Failed(why),
            Err(_) => Outcome::Failed(format!("no answer within {PATIENCE:?}")),
        };
        if matches!(outcome, Outcome::Failed(_)) {
            open = None;
        }
        shared.count(&stream, outcome, begun.elapsed());
    }
}

/// What all connections have in common.
struct Client {
    way: Way,
    host: String,
}

type Sender = SendRequest<Full<Bytes>>;

impl Client {
    fn new(way: Way) -> Self {
        Self { way, host: format!("{HOST}:{PORT}") }
    }

    /// One request and its answer, over the open connection or a new one.
    async fn exchange(
        &self,
        open: &mut Option<Sender>,
        stream: &Stream,
        path: &str,
    ) -> std::result::Result<Outcome, String> {
        let reusable = match open.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let mut sender = match reusable {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let body = if stream.limited { Bytes::from_static(b"{\"count\": 1}\n") } else { Bytes::new() };
        let request = Request::builder().method(stream.method).uri(path).header("host", &self.host);
        let request = request.body(Full::new(body)).map_err(|e| explain("a request", &e))?;
        let answer = sender.send_request(request).await.map_err(|e| explain("a request", &e))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|e| explain("an answer's body", &e))?.to_bytes();
        *open = Some(sender);
        let field = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        Ok(judge(stream, path, head.status, field(app::POD), field("x-pannier-refused"), &body))
    }

    async fn connect(&self) -> std::result::Result<Sender, String> {
        let to = match self.way {
            Way::Explicit(sidecar) => sidecar,
            Way::ByName(server) => SocketAddr::new(resolve(server).await?, PORT),
        };
        let stream = TcpStream::connect(to).await.map_err(|e| explain("connect", &e))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| explain("connect", &e))?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}

/// What the service's name means.
async fn resolve(server: SocketAddr) -> std::result::Result<IpAddr, String> {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    config.connections.iter_mut().for_each(|connection| connection.port = server.port());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
    let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .build()
        .map_err(|e| explain("resolve", &e))?;
    let found = resolver.ipv4_lookup(format!("{HOST}.")).await.map_err(|e| explain("resolve", &e))?;
    let mut addresses = found.answers().iter().filter_map(|record| record.data.ip_addr());
    addresses.next().ok_or_else(|| format!("resolve: {HOST} has no address"))
}

/// Says what an answer is.
fn judge(
    stream: &Stream,
    path: &str,
    status: StatusCode,
    pod: Option<&str>,
    refused: Option<&str>,
    body: &[u8],
) -> Outcome {
    match (status, pod, refused) {
        (StatusCode::OK, Some(pod), _) if body == app::body(stream.method, path).as_bytes() => {
            Outcome::Answered { pod: pod.into() }
        }
        (StatusCode::OK, ..) => Outcome::Failed("an answer that belongs to another request".into()),
        (StatusCode::TOO_MANY_REQUESTS, _, Some(why)) if stream.limited && why.starts_with("limit.") => {
            Outcome::Refused
        }
        (status, _, Some(why)) => Outcome::Failed(format!("{}: {status}, {why}", stream.method)),
        (status, _, None) => Outcome::Failed(format!("{}: {status}", stream.method)),
    }
}

/// An error with its causes, since hyper's own words hide them.
fn explain(stage: &str, error: &dyn Error) -> String {
    let mut text = format!("{stage}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(stream: &Stream, status: u16, refused: Option<&str>, body: &str) -> Outcome {
        let status = StatusCode::from_u16(status).expect("a status");
        judge(stream, "/orders/7", status, Some("orders-1"), refused, body.as_bytes())
    }

    #[test]
    fn only_the_right_answer_is_one() {
        assert_eq!(
            judged(&READS, 200, None, "GET /orders/7: done\n"),
            Outcome::Answered { pod: "orders-1".into() }
        );
        for wrong in ["GET /orders/8: done\n", "GET /orders/7: do", ""] {
            assert!(matches!(judged(&READS, 200, None, wrong), Outcome::Failed(_)), "{wrong:?}");
        }
        assert!(matches!(judged(&READS, 204, None, "GET /orders/7: done\n"), Outcome::Failed(_)));
    }

    #[test]
    fn a_refusal_is_expected_by_the_limit_and_of_writes_alone() {
        let exhausted = Some("limit.exhausted;limit=\"writes\"");
        assert_eq!(judged(&WRITES, 429, exhausted, ""), Outcome::Refused);
        for (stream, status, why) in [
            (&READS, 429, exhausted),
            (&WRITES, 429, None),
            (&WRITES, 429, Some("auth.denied")),
            (&WRITES, 503, exhausted),
        ] {
            assert!(matches!(judged(stream, status, why, ""), Outcome::Failed(_)), "{status} {why:?}");
        }
    }

    #[test]
    fn every_outcome_counts_and_kinds_of_failures_are_bounded() {
        let mut tally = Tally::default();
        for i in 0..100 {
            tally.count(&READS, Outcome::Failed(format!("failure {i}")));
        }
        tally.count(&WRITES, Outcome::Refused);
        tally.count(&READS, Outcome::Answered { pod: "one".into() });
        assert_eq!((tally.failed(), tally.sent()), (100, 102));
        assert!(tally.failures.len() <= KINDS + 1);
    }
}
