//! Names to addresses, for exactly as long as their records live.
//!
//! - [`Resolver`] keeps every watched name fresh in the background: one task and one query in
//!   flight per name and family, refreshed ahead of expiry, so that no request ever waits for DNS
//!   once a name is known. A failure, or one answer that a name is gone, never empties a set that
//!   works; see [`State`].
//! - [`EndpointSource`] is where an upstream's endpoints come from, a list or names, behind one
//!   interface.
//! - [`Capture`] answers the pod's own queries; [`authority`] serves whoever has records to say, by
//!   the rules; [`Responder`] is that over a small table of names, for trials.
//!
//! Everything here runs on the control runtime. What workers see is a `watch` channel.

pub mod authority;
mod capture;
mod family;
mod forward;
mod hosts;
mod kept;
mod meaning;
mod query;
mod record;
mod resolver;
mod responder;
mod rotation;
mod seen;
mod server;
mod servers;
mod source;
mod system;
#[cfg(test)]
mod tests;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use tokio::time::Instant;

use crate::error::Reason;

pub use capture::{Capture, CaptureSnapshot};
pub use resolver::Resolver;
pub use responder::{Responder, Zone};
pub use seen::{NameSnapshot, Snapshot};
pub use server::Server;
pub use servers::ServerSnapshot;
pub use source::{EndpointSource, Resolution, Target};
pub use system::ConfigError;

/// What is known of a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// IPv4 first, then IPv6, each in ascending order without duplicates. The same `Arc` for as
    /// long as the set is the same.
    pub addresses: Arc<[IpAddr]>,
    /// The services, where they were asked for, in order of priority; else empty.
    pub services: Arc<[Service]>,
    /// When the first of the addresses is past its TTL; `None` without addresses, or where nothing
    /// expires (an address given as such).
    pub expires: Option<Instant>,
    /// How far to trust it.
    pub state: State,
    /// Of IPv4 and IPv6, whether servers have been asked to the end, whatever came of it.
    pub families: [bool; 2],
}

/// A place where a service is to be had (SRV, RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Service {
    /// Those with the least are asked before all others.
    pub priority: u16,
    /// Its share beside others of the same priority.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// The full name that has its addresses, in lower case, without a final dot.
    pub target: Arc<str>,
    /// The target's addresses, ascending, where the server gave them along; else empty.
    pub addresses: Arc<[IpAddr]>,
}

/// How far an answer can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No answer yet; the first query is under way.
    Pending,
    /// Within its TTL, or being refreshed this moment.
    Fresh,
    /// Past its TTL, served because no server could refresh it (RFC 8767).
    Stale {
        /// Which server said what.
        why: Arc<str>,
    },
    /// There is no address.
    Failed {
        /// [`Reason::DnsNoSuchName`] or [`Reason::DnsNoAddress`] where servers say that there is
        /// none, or [`Reason::DnsNoAnswer`] where none could say.
        reason: Reason,
        /// Which server said what.
        why: Arc<str>,
    },
}

impl State {
    /// `pending`, `fresh`, `stale` or `failed`.
    pub fn name(&self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Fresh => "fresh",
            State::Stale { .. } => "stale",
            State::Failed { .. } => "failed",
        }
    }

    /// What went wrong, where something did.
    pub fn why(&self) -> Option<&Arc<str>> {
        match self {
            State::Pending | State::Fresh => None,
            State::Stale { why } | State::Failed { why, .. } => Some(why),
        }
    }
}

impl Answer {
    /// Nothing known yet.
    pub(crate) fn pending() -> Self {
        Self {
            addresses: Arc::new([]),
            services: Arc::new([]),
            expires: None,
            state: State::Pending,
            families: [false; 2],
        }
    }

    /// An address given as such: it is its own answer, for good.
    pub(crate) fn literal(address: IpAddr) -> Self {
        Self {
            addresses: Arc::new([address]),
            services: Arc::new([]),
            expires: None,
            state: State::Fresh,
            families: [true; 2],
        }
    }
}
