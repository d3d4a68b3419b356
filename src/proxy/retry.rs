//! Whether a request that failed is sent again. One function asks all of it: whether that is safe,
//! whether the route wants it, and whether it can be afforded. [`Tries::again`].
//!
//! Promise: what may have been processed goes again only if its method may be run twice (RFC 9110
//! section 9.2.2), and nothing of which an answer has begun.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use http::header::RETRY_AFTER;
use tokio::time::Instant;

use super::budget::{Budget, Second};
use crate::config::model::{Retries, RetryOn};
use crate::error::{Error, REFUSED_FIELD, Reason, Retry};
use crate::http::body::Replay;
use crate::http::{RequestHead, ResponseHead};
use crate::limit::Again;

/// The longest that an upstream's `Retry-After` is waited for where the request has no deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// When a route sends requests again.
#[derive(Debug)]
pub(super) struct Policy {
    most: u8,
    /// How long one try may take to the head of its answer.
    try_timeout: Option<Duration>,
    connect: bool,
    refused: bool,
    reset: bool,
    timeout: bool,
    /// A bit for each status from 400 on.
    statuses: [u128; 2],
    /// A bit for each status of gRPC.
    grpc: u32,
    first_pause: Duration,
    longest_pause: Duration,
}

impl Policy {
    /// What the configuration says.
    pub(super) fn new(config: &Retries) -> Self {
        let rules = config.rules();
        let has = |on| rules.on.contains(&on);
        let mut policy = Self {
            most: rules.most,
            try_timeout: rules.try_timeout.map(|time| time.0),
            connect: has(RetryOn::Connect),
            refused: has(RetryOn::Refused),
            reset: has(RetryOn::Reset),
            timeout: has(RetryOn::Timeout),
            statuses: [0; 2],
            grpc: 0,
            first_pause: rules.backoff.first.0,
            longest_pause: rules.backoff.most.0,
        };
        policy.try_timeout = policy.try_timeout.filter(|_| policy.timeout && policy.most > 0);
        for on in &rules.on {
            match on {
                RetryOn::Status(status) => policy.set(status.as_u16()),
                RetryOn::ServerErrors => (500..600).for_each(|status| policy.set(status)),
                RetryOn::Grpc(code) => policy.grpc |= 1 << code,
                RetryOn::Connect | RetryOn::Refused | RetryOn::Reset | RetryOn::Timeout => {}
            }
        }
        policy
    }

    fn set(&mut self, status: u16) {
        if let Some((bits, bit)) = place(status).and_then(|(i, bit)| Some((self.statuses.get_mut(i)?, bit))) {
            *bits |= bit;
        }
    }

    /// How long one try may take to the head of its answer.
    pub(super) fn try_timeout(&self) -> Option<Duration> {
        self.try_timeout
    }

    /// Whether it matters what an answer is, or that it has begun.
    pub(super) fn judges(&self) -> bool {
        self.most > 0 && (self.statuses != [0; 2] || self.grpc != 0 || self.try_timeout.is_some())
    }

    /// Whether a request may go on a connection that its peer may be closing, as far as the route is
    /// concerned: it is sent again if so.
    pub(super) fn takes_resets(&self) -> bool {
        self.most > 0 && self.reset
    }

    fn wants(&self, cause: Cause) -> bool {
        match cause {
            Cause::Connect => self.connect,
            Cause::Refused => self.refused,
            Cause::Reset => self.reset,
            Cause::Timeout => self.timeout,
            Cause::Status(status) => self.wants_status(status),
            Cause::Grpc(code) => self.wants_grpc(code),
            Cause::Other => false,
        }
    }

    fn wants_status(&self, status: StatusCode) -> bool {
        place(status.as_u16())
            .is_some_and(|(i, bit)| self.statuses.get(i).is_some_and(|bits| bits & bit != 0))
    }

    fn wants_grpc(&self, code: u8) -> bool {
        code < 32 && self.grpc & (1 << code) != 0
    }

    /// The pause before try number `tries`, from 1: anything up to its bound, so that those who failed
    /// together do not come again together.
    fn pause(&self, tries: u8) -> Duration {
        let bound = self.first_pause.saturating_mul(1 << (tries - 1).min(20)).min(self.longest_pause);
        bound.mul_f64(fastrand::f64())
    }
}

/// Where a status has its bit.
fn place(status: u16) -> Option<(usize, u128)> {
    let at = status.checked_sub(400)?;
    Some((usize::from(at / 100), 1 << (at % 100)))
}

/// What a try failed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// No connection could be made.
    Connect,
    /// The peer has not taken the request.
    Refused,
    /// The connection was lost before an answer.
    Reset,
    /// No answer began in the time of one try.
    Timeout,
    /// It was answered so.
    Status(StatusCode),
    /// It was answered so in gRPC.
    Grpc(u8),
    /// Anything that another try would not help.
    Other,
}

/// A try that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    /// What of.
    pub cause: Cause,
    /// Whether the request may have been processed.
    pub retry: Retry,
    /// Whether it went on a connection that others had used: then its close says nothing of the endpoint.
    pub reused: bool,
    /// How long the upstream asks to be left alone.
    pub after: Option<Duration>,
}

impl Failure {
    /// A try of which no answer has begun in time.
    pub(super) const TOO_SLOW: Self =
        Self { cause: Cause::Timeout, retry: Retry::Idempotent, reused: false, after: None };

    /// What an error says.
    pub(super) fn of(error: &Error, reused: bool) -> Self {
        let cause = match (error.reason, error.retry) {
            (_, Retry::Never) => Cause::Other,
            (Reason::PoolConnect | Reason::PoolConnectTimeout, _) => Cause::Connect,
            (Reason::TlsHandshake | Reason::TlsIdentity, _) => Cause::Connect,
            (Reason::UpstreamReset, Retry::Idempotent) => Cause::Reset,
            // There is none to have: that nobody took it is true, and asking again is no help.
            (Reason::PoolFull, _) => Cause::Other,
            (_, Retry::Unprocessed) => Cause::Refused,
            (_, Retry::Idempotent) => Cause::Other,
        };
        Self { cause, retry: error.retry, reused, after: None }
    }

    /// What an answer's head says, if it is one of a failure. The peer is `sidecar`: then it says itself
    /// whether it is the one who refused, and whether the application has seen the request.
    pub(super) fn answered(head: &ResponseHead, grpc: bool, sidecar: bool) -> Option<Self> {
        let code = if grpc { head.fields.grpc_status() } else { None };
        let cause = match code {
            Some(0) => return None,
            Some(code) => Cause::Grpc(code),
            None if head.status.is_client_error() || head.status.is_server_error() => {
                Cause::Status(head.status)
            }
            None => return None,
        };
        let refused = head.fields.get(REFUSED_FIELD).filter(|_| sidecar).and_then(Reason::named);
        let retry = match refused {
            Some(reason) if reason.precedes_the_application() => Retry::Unprocessed,
            _ => Retry::Idempotent,
        };
        // A date, which nothing is waited for, is as good as a long time.
        let after = head.fields.get(RETRY_AFTER.as_str()).map(|after| {
            let seconds = std::str::from_utf8(after).ok().and_then(|text| text.trim().parse().ok());
            seconds.map_or(Duration::MAX, Duration::from_secs)
        });
        Some(Self { cause, retry, reused: false, after })
    }
}

/// When a request goes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// At once.
    None,
    /// After so long if it goes to an endpoint that was tried already, else at once.
    IfTried(Duration),
    /// After so long.
    Always(Duration),
}

/// Why a request does not go again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Not {
    /// Its answer has begun.
    Begun,
    /// It may have been processed, and must not be twice.
    Safe,
    /// Its body was not kept.
    Kept,
    /// The route does not want it, after this failure.
    Wanted,
    /// It was sent as often as the route says.
    Left,
    /// Its time would be over.
    InTime,
    /// The upstream's budget has been used up.
    Affordable,
    /// A limit that counts every try has no token at hand.
    Allowed,
}

impl fmt::Display for Not {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Not::Begun => "an answer has begun",
            Not::Safe => "it may have been processed",
            Not::Kept => "its body was too large to be kept",
            Not::Wanted => "the route does not ask for it",
            Not::Left => "it was sent as often as the route says",
            Not::InTime => "no time was left",
            Not::Affordable => "the upstream's retry_budget is used up",
            Not::Allowed => "a limit that counts retries has no token for it",
        })
    }
}

impl Not {
    /// The failure that is answered then: with why it was the last, where the upstream's state is not all
    /// there is to say.
    pub(super) fn told(self, error: Error) -> Error {
        match self {
            Not::InTime | Not::Affordable | Not::Allowed => {
                Error { detail: format!("{}; not sent again: {self}", error.detail).into(), ..error }
            }
            Not::Begun | Not::Safe | Not::Kept | Not::Wanted | Not::Left => error,
        }
    }
}

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    policy: &'a Policy,
    budget: &'a Budget,
    /// The limits that count every try.
    limits: Option<&'a Again>,
    idempotent: bool,
    /// When its time is over.
    ends: Option<Instant>,
    /// How often it has been sent again.
    again: Cell<u8>,
    /// Whether it has been sent again though it may have been processed.
    repeated: Cell<bool>,
}

impl<'a> Tries<'a> {
    /// None yet.
    pub(super) fn new(
        policy: &'a Policy,
        budget: &'a Budget,
        idempotent: bool,
        ends: Option<Instant>,
    ) -> Self {
        let (again, repeated) = (Cell::new(0), Cell::new(false));
        Self { policy, budget, limits: None, idempotent, ends, again, repeated }
    }

    /// Every one after the first takes a token of these limits too.
    pub(super) fn counted_by(self, limits: &'a Again) -> Self {
        Self { limits: Some(limits), ..self }
    }

    /// When the time for all of them is over.
    pub(super) fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// How long one is waited for, if another may follow it.
    pub(super) fn try_timeout(&self) -> Option<Duration> {
        self.policy.try_timeout
    }

    /// Whether the next is the first.
    pub(super) fn is_first(&self) -> bool {
        self.again.get() == 0
    }

    /// Whether the request, whose body this is, is sent again after a failure, and when; or why not.
    /// Counts it as sent again.
    pub(super) fn again(&self, failure: Failure, begun: bool, body: &Replay<'_, '_>) -> Result<Pause, Not> {
        let Failure { cause, retry, reused, after } = failure;
        if begun {
            return Err(Not::Begun);
        }
        // Is it safe? What may have been processed because its connection was lost is sent once more,
        // not as often as it takes; that a used connection was closed is no failure of the endpoint.
        let loses = cause == Cause::Reset && !reused;
        let safe = match retry {
            Retry::Unprocessed => true,
            Retry::Idempotent => self.idempotent && !(loses && self.repeated.get()),
            Retry::Never => false,
        };
        if !safe {
            return Err(Not::Safe);
        }
        if !body.is_kept() {
            return Err(Not::Kept);
        }
        // A request that was not taken from a used connection goes on a new one whatever the route says.
        let unsent = reused && retry == Retry::Unprocessed && self.is_first();
        // Is it wanted?
        if !unsent && !self.policy.wants(cause) {
            return Err(Not::Wanted);
        }
        if !unsent && self.again.get() >= self.policy.most {
            return Err(Not::Left);
        }
        // Can it be afforded?
        let now = Instant::now();
        let pause = self.pause(cause, reused, after);
        if let Pause::Always(pause) = pause {
            let time = self.ends.map_or(LONGEST_WAIT, |ends| ends.saturating_duration_since(now));
            if pause >= time {
                return Err(Not::InTime);
            }
        }
        // That a used connection turned out to be closed is no failure to be asked about again.
        if !reused && !self.budget.take(Second::Retry, now) {
            return Err(Not::Affordable);
        }
        let executed = retry != Retry::Unprocessed || !reused;
        if executed && !self.is_allowed(if reused { None } else { Some(Second::Retry) }) {
            return Err(Not::Allowed);
        }
        self.again.set(self.again.get().saturating_add(1));
        if loses && retry == Retry::Idempotent {
            self.repeated.set(true);
        }
        Ok(pause)
    }

    /// What is said of an answer to the request `asked` by its head: when the request goes again
    /// instead, with the error that stands for the answer. None: it is the answer.
    pub(super) fn judge(
        &self,
        answer: &ResponseHead,
        asked: &RequestHead,
        sidecar: bool,
        body: &Replay<'_, '_>,
    ) -> Option<(Pause, Error)> {
        let failure = Failure::answered(answer, asked.is_grpc(), sidecar)?;
        let pause = self.again(failure, false, body).ok()?;
        let status = answer.status.as_u16();
        let detail = match failure.cause {
            Cause::Grpc(code) => format!("it answered with status {code} of gRPC"),
            _ => format!("it answered with status {status}"),
        };
        Some((pause, Error::new(Reason::UpstreamStatus, detail).retry(failure.retry)))
    }

    /// Whether a first try that is slow may have a second one beside it; that is counted as one that may
    /// have been processed.
    pub(super) fn hedge(&self) -> bool {
        let afforded =
            self.budget.take(Second::Hedge, Instant::now()) && self.is_allowed(Some(Second::Hedge));
        if afforded {
            self.repeated.set(true);
        }
        afforded
    }

    /// Whether the limits that count every try have a token for this one, which the budget may have paid for.
    fn is_allowed(&self, paid: Option<Second>) -> bool {
        let allowed = self.limits.is_none_or(Again::take);
        if let Some(second) = paid.filter(|_| !allowed) {
            self.budget.unsent(second);
        }
        allowed
    }

    fn pause(&self, cause: Cause, reused: bool, after: Option<Duration>) -> Pause {
        let pause = || self.policy.pause(self.again.get().saturating_add(1));
        match cause {
            _ if reused => Pause::None,
            Cause::Timeout | Cause::Status(_) | Cause::Grpc(_) => {
                Pause::Always(pause().max(after.unwrap_or_default()))
            }
            Cause::Connect | Cause::Refused | Cause::Reset | Cause::Other => Pause::IfTried(pause()),
        }
    }
}

#[cfg(test)]
mod tests;
