//! Ways to choose a server, each with the information that its real implementation has.
//!
//! What a policy may know and do is more than each of them needs, hence the allowances for dead code.

mod least_connections;
mod least_request;
mod members;
mod oracle;
mod pannier;
mod peak_ewma;
mod prequal;
mod random;
mod round_robin;

use fastrand::Rng;

use crate::ask::Told;
use crate::events::Nanos;
use crate::measure::Measured;
use crate::plan::Plan;
use crate::requests::TRIED;
use crate::server::Health;
use crate::world::World;

/// A way to run a plan.
type Runs = fn(&Plan) -> Measured;

/// All policies, by name.
pub(crate) const POLICIES: [(&str, Runs); 8] = [
    ("random", run::<random::Random>),
    ("round-robin", run::<round_robin::RoundRobin>),
    ("least-request", run::<least_request::LeastRequest>),
    ("least-connections", run::<least_connections::LeastConnections>),
    ("peak-ewma", run::<peak_ewma::PeakEwma>),
    ("prequal", run::<prequal::Prequal>),
    ("oracle", run::<oracle::Oracle>),
    ("pannier", run::<pannier::Pannier>),
];

pub(crate) fn run<P: Policy>(plan: &Plan) -> Measured {
    World::<P>::new(plan).run()
}

/// Servers, few enough to be handed around.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Few {
    servers: [u16; 8],
    length: u8,
}

impl Few {
    /// One more, unless there are eight.
    pub(crate) fn push(&mut self, server: u16) {
        if usize::from(self.length) < self.servers.len() {
            self.servers[usize::from(self.length)] = server;
            self.length += 1;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.length = 0;
    }
}

impl std::ops::Deref for Few {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &self.servers[..usize::from(self.length)]
    }
}

/// A request that may wait: its slot, and the number that tells it from others that had the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) slot: u32,
    pub(crate) number: u32,
}

/// What a server's side says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) in_flight: u32,
    pub(crate) capacity: f32,
    pub(crate) latency_us: f32,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    /// An answer that says that the server failed.
    Failed,
    /// The server took no connection.
    Unreachable,
    /// The connection broke before an answer came.
    Broken,
    /// The server's side of the policy did not take the request.
    Refused,
    /// The client gave up at its deadline.
    Abandoned,
}

/// What a choice is for.
#[allow(dead_code)]
pub(crate) struct Ask<'a> {
    pub(crate) now: Nanos,
    pub(crate) client: u16,
    pub(crate) ticket: Ticket,
    /// Nanoseconds of work: only who knows everything looks at it.
    pub(crate) work: Nanos,
    /// When its client gives up.
    pub(crate) deadline: Option<Nanos>,
    /// How often it was sent before, and where to, the last first.
    pub(crate) attempt: u8,
    pub(crate) tried: &'a [u16],
    /// What those who were asked have said, in answer to the last `AskThenChoose`.
    pub(crate) told: Option<&'a [Told]>,
}

/// What a client does with a request.
#[allow(dead_code)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Decision {
    Send(u16),
    /// Asks these for their reports, and chooses again when all have answered, or after so many
    /// nanoseconds.
    AskThenChoose(Few, Nanos),
    /// Keeps it until [`Policy::wakes`] names it.
    Wait,
    /// Ends it without an answer.
    Fail,
}

/// How an attempt ended, as its client sees it.
#[allow(dead_code)]
pub(crate) struct Finish {
    pub(crate) ticket: Ticket,
    pub(crate) outcome: Outcome,
    /// Nanoseconds after it was sent.
    pub(crate) latency: Nanos,
    /// What came with the answer; of one that did not come, nothing that means anything.
    pub(crate) report: Report,
}

/// How a server's part in an attempt ended, as its side sees it.
#[allow(dead_code)]
pub(crate) struct Served {
    /// `Abandoned` where it was past its deadline before a worker took it.
    pub(crate) outcome: Outcome,
    /// Nanoseconds after it came.
    pub(crate) latency: Nanos,
    /// How many the server had when it had come, itself included, and how many it has without it.
    pub(crate) met: u32,
    pub(crate) in_flight: u32,
}

/// A change of the world.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// A server that all know from now on.
    Joins(u16),
    /// It takes no new request, and finishes what it has.
    Leaves(u16),
    /// It does what it does so fast from now on.
    Speed(u16, f64),
    Health(u16, Health),
}

/// A way to choose servers: what all clients and all servers know of each other. Methods speak of one
/// client or one server, and use nothing that this one would not have; the oracle alone does.
pub(crate) trait Policy: Sized {
    /// It is told of every speed and failure, and what it keeps waiting travels while it waits.
    const KNOWS_ALL: bool = false;
    /// Its servers drop what waits for a worker and is past its deadline.
    const CARRIES_DEADLINES: bool = false;
    /// Its servers tell their reports with each answer.
    const REPORTS: bool = false;
    /// Times between a client's ticks.
    const TICK: Option<Nanos> = None;

    fn new(plan: &Plan) -> Self;

    /// Chooses for a request. Servers in `probes` are asked for reports, for which nobody waits.
    fn choose(&mut self, ask: &Ask, rng: &mut Rng, probes: &mut Few) -> Decision;

    /// An attempt has ended, in the eyes of its client.
    fn finished(&mut self, now: Nanos, client: u16, server: u16, finish: &Finish);

    /// Whether an attempt that ended like this is followed by another, which would be the n-th again, from
    /// 1. Asked after [`Policy::finished`]; if it is not, the request has ended.
    fn tries_again(&mut self, _client: u16, _outcome: Outcome, _again: u8) -> bool {
        false
    }

    /// A server's report has come, or the news that it cannot be reached.
    fn told(&mut self, _now: Nanos, _client: u16, _server: u16, _report: Option<Report>, _rng: &mut Rng) {}

    /// A client's timer.
    fn tick(&mut self, _now: Nanos, _client: u16, _rng: &mut Rng, _probes: &mut Few) {}

    /// One that waits and shall be chosen for again. Asked after everything that happens, until there is
    /// none.
    fn wakes(&mut self) -> Option<Ticket> {
        None
    }

    /// A client has given up a request that it had not sent, or had back.
    fn abandons(&mut self, _client: u16, _ticket: Ticket) {}

    /// Whether a server's side takes a request that has come; who is refused hears it at once.
    fn admits(&mut self, _now: Nanos, _server: u16, _deadline: Option<Nanos>) -> bool {
        true
    }

    /// A server's worker begins with a request.
    fn starts(&mut self, _now: Nanos, _server: u16) {}

    /// A server is done with a request.
    fn served(&mut self, _now: Nanos, _server: u16, _served: &Served) {}

    /// What a server tells with its answers, and to those who ask.
    fn report(&mut self, _now: Nanos, _server: u16, _in_flight: u32) -> Report {
        Report::default()
    }

    /// The world has changed: joins and leaves, and for who knows all, everything.
    fn turns(&mut self, now: Nanos, turn: Turn);
}

/// The servers among `tried` that are remembered.
pub(crate) fn tried(all: &[u16; TRIED], attempts: u8) -> &[u16] {
    &all[..TRIED.min(usize::from(attempts))]
}
