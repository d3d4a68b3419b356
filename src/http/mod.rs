//! The wire: HTTP/1.1 by our own strict codec, HTTP/2 by the `h2` crate, and what both have in
//! common: heads, fields and bodies as they cross the proxy.
//!
//! Promises: one reading of every message or none (RFC 9112, RFC 9113); hop-by-hop fields never
//! cross; a body is neither duplicated nor truncated nor gathered in memory; nothing panics on a
//! peer's bytes.

mod announcement;
pub mod authority;
pub mod body;
pub mod claim;
pub mod closing;
pub mod deadline;
pub mod expiry;
pub mod fields;
mod grpc;
pub mod h1;
pub mod h2;
pub mod handler;
pub mod mesh;
mod out;
mod outgoing;
pub mod pump;
pub mod respond;
pub mod upgrade;

use std::time::Duration;

use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::config::units::Rate;
pub use announcement::{Announcement, LOAD_FIELD};
pub use authority::Authority;
pub use body::{Body, BodyError, Frame};
pub use expiry::Expiry;
pub use fields::Fields;
pub use handler::{Handler, Next};
pub use respond::Responder;

/// Fields that begin so are ours alone: they are taken from applications and callers.
pub const OWN_PREFIX: &[u8] = b"x-pannier-";

/// Between sidecars: says that the application spoke HTTP/2, so that its peer is spoken to alike.
pub const PROTOCOL_FIELD: &str = "x-pannier-protocol";

/// Between sidecars over HTTP/2, which has no upgrades: the protocols that a request asks to switch
/// to, and in an answer the one that was switched to.
pub const UPGRADE_FIELD: &str = "x-pannier-upgrade";

/// Tells the application who is calling, as Envoy's field of this name does. Nobody outside can set
/// it: it is taken from every request first.
pub const CALLER_FIELD: &str = "x-forwarded-client-cert";

/// A request's head, without what belongs to the hop it came over.
#[derive(Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Whom the request names: Host, an absolute target, or `:authority`.
    pub authority: Option<Authority>,
    /// Path and query. For CONNECT, `/`.
    pub path: PathAndQuery,
    /// The version that the downstream speaks.
    pub version: Version,
    /// End-to-end fields.
    pub fields: Fields,
    /// What the head says of the body. A request that asks for a tunnel has none.
    pub length: Length,
    /// The protocols that the connection may switch to (RFC 9110 section 7.8): a field of one hop
    /// that every hop offers anew. Few requests have one, so those without have no room for it.
    pub upgrade: Option<Box<HeaderValue>>,
    /// When its caller no longer waits, as far as it has said so: nobody is believed before [`expiry::take`]
    /// has looked at it.
    pub expiry: Option<Expiry>,
}

/// A response's head, without what belongs to the hop it came over.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// End-to-end fields.
    pub fields: Fields,
    /// What the head says of the body. A response to HEAD announces a body that does not follow.
    pub length: Length,
    /// The protocol that the connection switches to, or with status 426 has to.
    pub upgrade: Option<Box<HeaderValue>>,
    /// Between sidecars: how full the pod is that answers.
    pub load: Option<Announcement>,
}

/// What a head says of the length of its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Length {
    /// Nothing is announced, and nothing follows.
    #[default]
    None,
    /// So many bytes.
    Sized(u64),
    /// Until its end is told.
    Stream,
}

/// The bounds of messages, from the configuration: those of a direction, or of one route.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The largest head in bytes.
    pub head_bytes: usize,
    /// The most fields in a head.
    pub fields: usize,
    /// The most requests that an HTTP/2 connection has open at once.
    pub streams: u32,
    /// From a request's first byte to the end of its head.
    pub head_timeout: Duration,
    /// The longest silence inside a body, and the longest that a piece may take to be taken.
    pub body_timeout: Duration,
    /// The least that a request's body must bring, in bytes.
    pub least: Option<Rate>,
    /// How long a downstream connection may idle.
    pub idle_timeout: Duration,
    /// How long it is kept, about.
    pub age: Duration,
}

impl Bounds {
    /// How long one downstream connection is kept: not as long as those that were opened with it, so
    /// that they do not all come again together.
    pub fn lifetime(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);
        self.age.min(LONGEST).mul_f64(0.9 + 0.2 * fastrand::f64())
    }
}

impl RequestHead {
    /// The host that the request names, in lower case and without its port and final dot; empty if
    /// none.
    pub fn host(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::host)
    }

    /// The port that the request names.
    pub fn port(&self) -> Option<u16> {
        self.authority.as_ref().and_then(Authority::port)
    }

    /// Whether it may be run twice (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// Whether the connection or stream becomes a tunnel if the upstream agrees: CONNECT, and what
    /// asks for an upgrade.
    pub fn asks_for_tunnel(&self) -> bool {
        self.upgrade.is_some() || self.method == Method::CONNECT
    }

    /// Whether the answer must be one that a gRPC client understands.
    pub fn is_grpc(&self) -> bool {
        self.version == Version::HTTP_2
            && self.fields.get("content-type").is_some_and(|v| v.starts_with(b"application/grpc"))
    }
}

impl ResponseHead {
    /// A head without fields and body.
    pub fn new(status: StatusCode) -> Self {
        Self { status, fields: Fields::default(), length: Length::None, upgrade: None, load: None }
    }

    /// Says in a field how full the pod is, where there is no other place for that.
    fn put_load(&mut self) {
        if let Some(load) = self.load.take() {
            self.fields.push(HeaderName::from_static(LOAD_FIELD), load.value());
        }
    }

    /// Whether it grants the tunnel that a request asked for: 101 for an upgrade (which of the
    /// offered protocols, it has to say), any success for CONNECT.
    pub fn grants_tunnel(&self, request: &RequestHead) -> bool {
        match self.status {
            StatusCode::SWITCHING_PROTOCOLS => {
                upgrade::is_among(self.upgrade.as_deref(), request.upgrade.as_deref())
            }
            status => request.method == Method::CONNECT && status.is_success(),
        }
    }

    /// As [`may_have_body`], with this status.
    pub fn may_have_body(&self, request_method: &Method) -> bool {
        may_have_body(self.status, request_method)
    }
}

/// Whether a body can follow the head of an answer, by RFC 9110 section 6.4.1.
pub fn may_have_body(status: StatusCode, request_method: &Method) -> bool {
    *request_method != Method::HEAD
        && !(*request_method == Method::CONNECT && status.is_success())
        && !status.is_informational()
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
}
