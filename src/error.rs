//! One error for the data path: what failed, at which stage, whose side it was, whether the
//! request may be tried again, and what the caller is told.
//!
//! [`Reason`] is the one closed list of refusals. Metrics, the log and the `x-pannier-refused`
//! field of an answer use its names and nothing else, so a name seen in one can be looked up in
//! the others.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

/// The field in which an answer made by Pannier says which stage refused, and why.
pub const REFUSED_FIELD: &str = "x-pannier-refused";

/// Whose fault it was, as an operator asks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The peer that sent us the request.
    Downstream,
    /// The peer that we sent the request to.
    Upstream,
    /// Pannier's own decision: policy, limits, configuration.
    Pannier,
}

/// Whether a request that failed may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Proven that no upstream processed it: any method may go again.
    Unprocessed,
    /// It may have been processed: idempotent methods only (RFC 9110 section 9.2.2).
    Idempotent,
    /// Never: an answer has begun, or trying again would not help.
    Never,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $status:ident, grpc $grpc:literal, $side:ident;)+) => {
        /// Why Pannier refused or failed a request or connection, as `stage.reason`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in declaration order; `reason as usize` indexes it.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)+];

            /// The name in metrics, logs and `x-pannier-refused`.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)+ }
            }

            /// The status of an HTTP answer.
            pub const fn status(self) -> StatusCode {
                match self { $(Reason::$variant => StatusCode::$status,)+ }
            }

            /// The `grpc-status` of an answer to a gRPC request.
            pub const fn grpc_status(self) -> u8 {
                match self { $(Reason::$variant => $grpc,)+ }
            }

            /// Whose side failed.
            pub const fn side(self) -> Side {
                match self { $(Reason::$variant => Side::$side,)+ }
            }
        }
    };
}

reasons! {
    /// The original destination is one of the sidecar's own ports.
    InterceptOwnPort = "intercept.own_port", FORBIDDEN, grpc 7, Downstream;
    /// The original destination is not an address of this pod.
    InterceptNotLocal = "intercept.not_local", FORBIDDEN, grpc 7, Downstream;
    /// Nothing says where the connection was meant to go.
    InterceptNoDestination = "intercept.no_destination", FORBIDDEN, grpc 7, Downstream;
    /// The listener has `max_connections` open.
    ListenFull = "listen.full", SERVICE_UNAVAILABLE, grpc 14, Pannier;
    /// The message has more than one reading, or none (RFC 9112).
    HttpMalformed = "http.malformed", BAD_REQUEST, grpc 13, Downstream;
    /// The head is larger than `http.max_header_bytes`, or has too many fields.
    HttpHeadTooLarge = "http.head_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, grpc 8, Downstream;
    /// The head did not arrive within `http.header_timeout`.
    HttpHeadTimeout = "http.head_timeout", REQUEST_TIMEOUT, grpc 4, Downstream;
    /// The body stopped arriving for longer than `http.body_timeout`.
    HttpBodyTimeout = "http.body_timeout", REQUEST_TIMEOUT, grpc 4, Downstream;
    /// The body came more slowly than `http.min_body_rate`.
    HttpBodySlow = "http.body_slow", REQUEST_TIMEOUT, grpc 4, Downstream;
    /// Nothing of the answer was taken for longer than `http.body_timeout`.
    HttpAnswerTimeout = "http.answer_timeout", REQUEST_TIMEOUT, grpc 4, Downstream;
    /// The HTTP version is not 1.0, 1.1 or 2.
    HttpVersion = "http.version", HTTP_VERSION_NOT_SUPPORTED, grpc 12, Downstream;
    /// The method or transfer coding is not carried here.
    HttpUnsupported = "http.unsupported", NOT_IMPLEMENTED, grpc 12, Downstream;
    /// The request expects something other than 100 (Continue).
    HttpExpectation = "http.expectation", EXPECTATION_FAILED, grpc 12, Downstream;
    /// An HTTP/2 peer sends frames that neither ask for nor bring anything, faster than any use of
    /// the protocol takes.
    HttpFlood = "http.flood", TOO_MANY_REQUESTS, grpc 8, Downstream;
    /// The downstream went away before its answer.
    HttpDownstreamGone = "http.downstream_gone", BAD_REQUEST, grpc 1, Downstream;
    /// No route takes the request, and there is no original destination.
    RouteNone = "route.none", NOT_FOUND, grpc 12, Pannier;
    /// The authority and the original destination disagree, and `on_mismatch` is `refuse`.
    RouteMismatch = "route.host_mismatch", MISDIRECTED_REQUEST, grpc 7, Pannier;
    /// The caller's identity may not do this.
    AuthDenied = "auth.denied", FORBIDDEN, grpc 7, Pannier;
    /// mTLS is required here, and the connection has none.
    AuthPlaintext = "auth.plaintext", FORBIDDEN, grpc 16, Downstream;
    /// A limit has no token left.
    LimitExhausted = "limit.exhausted", TOO_MANY_REQUESTS, grpc 8, Pannier;
    /// A limit could not be asked, and `without_redis` is `closed`.
    LimitUnavailable = "limit.unavailable", SERVICE_UNAVAILABLE, grpc 14, Pannier;
    /// The upstream's name has no answer yet, and never had one.
    DnsNoAnswer = "dns.no_answer", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The upstream's name does not exist.
    DnsNoSuchName = "dns.no_such_name", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The upstream's name exists, and has no address, or no such service.
    DnsNoAddress = "dns.no_address", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The application has as many requests as it is given at once (`inbound.max_in_flight`).
    AdmitFull = "admit.full", SERVICE_UNAVAILABLE, grpc 14, Pannier;
    /// The upstream has no endpoint.
    BalanceNoEndpoint = "balance.no_endpoint", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// Every endpoint is at its capacity, or the upstream at `max_in_flight`.
    BalanceFull = "balance.full", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The endpoint, or the application behind its sidecar, refused the connection or could not be reached.
    PoolConnect = "pool.connect", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The endpoint did not accept within `connect_timeout`.
    PoolConnectTimeout = "pool.connect_timeout", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The upstream has `max_connections` open.
    PoolFull = "pool.full", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The endpoint is the listener that the request came in by: it would never arrive.
    PoolLoop = "pool.loop", LOOP_DETECTED, grpc 9, Pannier;
    /// The TLS handshake failed.
    TlsHandshake = "tls.handshake", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The peer's certificate is not the identity that is required.
    TlsIdentity = "tls.identity", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The answer did not come within the route's `timeout`.
    UpstreamTimeout = "upstream.timeout", GATEWAY_TIMEOUT, grpc 4, Upstream;
    /// The connection was lost before an answer.
    UpstreamReset = "upstream.reset", BAD_GATEWAY, grpc 14, Upstream;
    /// The answer is not valid HTTP.
    UpstreamMalformed = "upstream.malformed", BAD_GATEWAY, grpc 13, Upstream;
    /// The upstream refused the stream before processing it.
    UpstreamRefused = "upstream.refused", SERVICE_UNAVAILABLE, grpc 14, Upstream;
    /// The upstream answered with a failure after which the route sends requests again, and no other
    /// try came about.
    UpstreamStatus = "upstream.status", BAD_GATEWAY, grpc 14, Upstream;
    /// This sidecar is shutting down.
    DrainDraining = "drain.draining", SERVICE_UNAVAILABLE, grpc 14, Pannier;
}

impl Reason {
    /// The reason of this name, as `x-pannier-refused` has it: parameters may follow.
    pub fn named(name: &[u8]) -> Option<Self> {
        let name = name.split(|byte| *byte == b';').next().unwrap_or(name);
        Self::ALL.iter().copied().find(|reason| reason.name().as_bytes() == name)
    }

    /// Whether the sidecar that gives it for a refusal has not handed the request on: the
    /// application behind it has seen nothing of it.
    pub const fn precedes_the_application(self) -> bool {
        match self {
            Reason::InterceptOwnPort
            | Reason::InterceptNotLocal
            | Reason::InterceptNoDestination
            | Reason::ListenFull
            | Reason::RouteNone
            | Reason::RouteMismatch
            | Reason::AuthDenied
            | Reason::AuthPlaintext
            | Reason::LimitExhausted
            | Reason::LimitUnavailable
            | Reason::DnsNoAnswer
            | Reason::DnsNoSuchName
            | Reason::DnsNoAddress
            | Reason::AdmitFull
            | Reason::BalanceNoEndpoint
            | Reason::BalanceFull
            | Reason::PoolConnect
            | Reason::PoolConnectTimeout
            | Reason::PoolFull
            | Reason::PoolLoop
            | Reason::TlsHandshake
            | Reason::TlsIdentity
            | Reason::UpstreamRefused
            | Reason::DrainDraining => true,
            Reason::HttpMalformed
            | Reason::HttpHeadTooLarge
            | Reason::HttpHeadTimeout
            | Reason::HttpBodyTimeout
            | Reason::HttpBodySlow
            | Reason::HttpAnswerTimeout
            | Reason::HttpVersion
            | Reason::HttpUnsupported
            | Reason::HttpExpectation
            | Reason::HttpFlood
            | Reason::HttpDownstreamGone
            | Reason::UpstreamTimeout
            | Reason::UpstreamReset
            | Reason::UpstreamMalformed
            | Reason::UpstreamStatus => false,
        }
    }
}

/// A failure on the data path.
#[derive(Debug, Clone)]
pub struct Error {
    /// Which stage, and why.
    pub reason: Reason,
    /// May the request be sent again.
    pub retry: Retry,
    /// What an operator needs to know beyond the reason: addresses, the system's own words.
    pub detail: Cow<'static, str>,
    /// The upstream concerned, once one is known.
    pub upstream: Option<Arc<str>>,
    /// When trying again may help, for `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The limit that refused.
    pub limit: Option<Arc<Limited>>,
}

/// A limit that refuses, as the answer names it.
#[derive(Debug, PartialEq, Eq)]
pub struct Limited {
    /// Its name, of letters, digits, `-`, `_` and `.`.
    pub name: Arc<str>,
    /// The status of the answer, if it is not the reason's.
    pub status: Option<StatusCode>,
    /// The requests of its rate,
    pub quota: u64,
    /// and the time that they are for.
    pub window: Duration,
}

/// A result on the data path.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure that is not to be retried.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            retry: Retry::Never,
            detail: detail.into(),
            upstream: None,
            retry_after: None,
            limit: None,
        }
    }

    /// States what is known about trying again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The status of an HTTP answer.
    pub fn status(&self) -> StatusCode {
        let own = self.limit.as_ref().and_then(|limit| limit.status);
        own.filter(|_| self.reason == Reason::LimitExhausted).unwrap_or(self.reason.status())
    }

    /// Names the upstream.
    #[must_use]
    pub fn upstream(mut self, upstream: &Arc<str>) -> Self {
        self.upstream = Some(upstream.clone());
        self
    }

    /// Says when trying again may help.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Names the limit that refused.
    #[must_use]
    pub fn limited(mut self, by: Arc<Limited>) -> Self {
        self.limit = Some(by);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.name())?;
        if let Some(upstream) = &self.upstream {
            write!(f, " (upstream {upstream})")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indexed() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(Reason::ALL.iter().filter(|r| r.name() == reason.name()).count(), 1);
            assert_eq!(Reason::named(reason.name().as_bytes()), Some(*reason));
            assert!(reason.status().is_client_error() || reason.status().is_server_error());
        }
    }
}
