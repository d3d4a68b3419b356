//! What a user writes, one to one with the YAML. Every field has a default that a careful
//! operator would choose; unknown fields are errors.

mod balance;
mod http;
mod jwt;
mod limit;
mod redis;
mod retries;
mod upstream;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::text::{addresses, socket, socket_list, socket_lists};
use super::units::{Addresses, ByteRate, OneOrMany, Percent, Time};
pub use balance::{Ejection, Most, Queue, Sticky};
pub use http::{Http, HttpOverrides, MOST_HEADERS};
pub use jwt::{Issuer, Jwt};
pub use limit::{Cost, CostField, KeyPart, KeyRate, Limit, Patterns, Scope, WithoutRedis};
pub use redis::{OnNewState, Redis, RedisTls, Sentinel};
pub use retries::{Backoff, Hedge, HedgeAfter, Retries, RetryBudget, RetryOn, RetryRules};
pub use upstream::{KeepAlive, Upstream};

/// A sidecar's whole configuration. An empty file is valid.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Where the sidecar listens.
    pub listen: Listen,
    /// Where inbound requests go when nothing is redirected (explicit mode).
    #[serde(deserialize_with = "socket", skip_serializing_if = "Option::is_none")]
    pub application: Option<SocketAddr>,
    /// Worker threads. Default: the container's CPU limit, rounded up; else the machine's cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<NonZeroUsize>,
    /// The topology zone that this pod is in: endpoints in it come first, as far as they have room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// This workload's certificate. Without it, nothing is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Whose JSON Web Tokens are believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// How names are resolved.
    pub dns: Dns,
    /// The services that this pod calls, by a name of your choice.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Which upstream takes which request. Each upstream's own `address` is routed to it unless
    /// a route here names that host.
    pub routes: Vec<Route>,
    /// Rate limits.
    pub limits: Vec<Limit>,
    /// Traffic that the pod sends.
    pub outbound: Outbound,
    /// Traffic that is sent to the pod.
    pub inbound: Inbound,
    /// The Redis that mesh-wide limits share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// Limits on HTTP messages, both directions; `outbound.http` and `inbound.http` say what
    /// differs for one.
    pub http: Http,
    /// How the sidecar stops.
    pub drain: Drain,
}

/// Listening addresses: one, or a list. Port 0 takes a free port; the log and `/config` report it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// What the pod sends. Default `[127.0.0.1:15001, "[::1]:15001"]`.
    #[serde(deserialize_with = "addresses")]
    pub outbound: Addresses,
    /// What is sent to the pod. Default `[0.0.0.0:15006, "[::]:15006"]`.
    #[serde(deserialize_with = "addresses")]
    pub inbound: Addresses,
    /// The pod's DNS queries, UDP and TCP. Default `127.0.0.1:15053`.
    #[serde(deserialize_with = "addresses")]
    pub dns: Addresses,
    /// Configuration, drain, status: loopback only. Default `127.0.0.1:15000`.
    #[serde(deserialize_with = "addresses")]
    pub admin: Addresses,
    /// `/live`, `/ready` and `/metrics`, nothing else. Default `0.0.0.0:15020`.
    #[serde(deserialize_with = "addresses")]
    pub probes: Addresses,
}

/// Files with this workload's SPIFFE certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The roots that peers are verified against.
    pub bundle: PathBuf,
    /// How new connections between sidecars agree on their keys: `x25519mlkem768` or `x25519`.
    /// Default `x25519mlkem768`.
    #[serde(default)]
    pub key_exchange: KeyExchange,
}

/// How the two ends of a connection agree on its keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyExchange {
    /// Post-quantum: traffic that is recorded today stays closed to a quantum computer.
    #[default]
    X25519Mlkem768,
    /// Not so, and a new connection costs less. One end that says so is enough.
    X25519,
}

/// Name resolution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Servers to ask. Default: those of `/etc/resolv.conf`.
    #[serde(deserialize_with = "socket_list")]
    pub servers: Vec<SocketAddr>,
    /// Servers for the names at and below a domain, the longest domain first: where the mesh's
    /// endpoint zone is, as `endpoints.mesh: [10.96.0.20:53]`. Default: none.
    #[serde(deserialize_with = "socket_lists")]
    pub domains: BTreeMap<String, Vec<SocketAddr>>,
    /// The shortest time an answer is kept, whatever its TTL. Default 0s.
    pub min_ttl: Time,
    /// The longest time an answer is kept, whatever its TTL. Default 5m.
    pub max_ttl: Time,
    /// The longest time that "there is no such name" is believed, whatever its SOA says
    /// (RFC 2308). Default 30s.
    pub max_negative_ttl: Time,
    /// The share of its TTL by which a refresh comes earlier or later than another's, so that
    /// names learned together are not asked for together. Default 5%.
    pub jitter: Percent,
    /// How long an expired answer serves while no server answers: the maximum stale timer of
    /// RFC 8767. Default 1h.
    pub stale: Time,
    /// How long one query to one server may take. Default 2s.
    pub timeout: Time,
    /// How long all queries for one answer may take, over all servers: the query resolution
    /// timer of RFC 8767. Default 10s.
    pub resolution_timeout: Time,
    /// How long a query of the pod waits before it gets an expired answer: the client response
    /// timer of RFC 8767. Requests never wait for a name that is known. Default 1800ms.
    pub answer_timeout: Time,
    /// The longest pause before a name that could not be refreshed is asked for again: the
    /// failure recheck timer of RFC 8767. Default 10s.
    pub recheck: Time,
    /// Whether names are asked for in letters of mixed case, which the server has to repeat: a
    /// forger would have to guess them too. Some servers do not repeat them. Default false.
    pub mixed_case: bool,
}

/// Mutual TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mtls {
    /// `require`, `prefer` or `off`. Default `require`.
    #[serde(default = "Mtls::default_mode")]
    pub mode: MtlsMode,
    /// The SPIFFE id that every endpoint must prove. Default: any id of our own trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// Whether an upstream is spoken to over mutual TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MtlsMode {
    /// Always.
    Require,
    /// Where the peer speaks it: an aid while migrating, not a protection.
    Prefer,
    /// Never.
    Off,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The host or hosts that a request must name, without regard to case, `host` or
    /// `host:port`; `*` is any. Default `*`.
    #[serde(default = "Route::default_host")]
    pub host: OneOrMany<String>,
    /// The path: text is a prefix of whole segments (`/v1/` takes `/v1` and `/v1/x`, not
    /// `/v1x`); `{ exact: /health }` is that path alone. Default `/`.
    #[serde(default)]
    pub path: PathMatch,
    /// The upstream that takes the request.
    pub upstream: String,
    /// From the request's head to the end of the answer. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Time>,
    /// As `http.body_timeout`, for what takes this route. Default: the direction's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_timeout: Option<Time>,
    /// As `http.min_body_rate`, for what takes this route. Default: the direction's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_body_rate: Option<ByteRate>,
    /// How often a request that failed may be sent again, where that is safe: a number, or a block
    /// that says more. Default 2.
    #[serde(default)]
    pub retries: Retries,
    /// When a request that may be run twice is sent to a second endpoint too. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// What keeps requests to one endpoint, as far as that has room: `{ header: NAME }` or `{ cookie: NAME }`.
    /// Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
}

/// How a path is matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum PathMatch {
    /// A prefix of whole segments.
    Prefix(String),
    /// Exactly this path.
    Exact(ExactPath),
}

/// By hand, not `untagged`: an error inside keeps its place and its words.
impl<'de> Deserialize<'de> for PathMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = PathMatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, as `/v1/` for a prefix, or `{ exact: /health }`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PathMatch, E> {
                Ok(PathMatch::Prefix(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PathMatch, A::Error> {
                ExactPath::deserialize(MapAccessDeserializer::new(map)).map(PathMatch::Exact)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// `{ exact: /path }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExactPath {
    /// The path, beginning with `/`.
    pub exact: String,
}

/// A direction of traffic, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What the pod sends.
    #[default]
    Outbound,
    /// What is sent to the pod.
    Inbound,
}

impl Direction {
    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

/// Traffic that the pod sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Outbound {
    /// What happens to a request whose host has a route, but whose original address is not that
    /// upstream's: `original` sends it where it was going, `route` believes the host, `refuse`
    /// answers 421. Default `original`.
    pub on_mismatch: OnMismatch,
    /// Ports carried as bytes, without looking for HTTP. Default 25, 587, 3306, 5432, 6379,
    /// 9300, 11211.
    pub opaque_ports: Vec<u16>,
    /// How long a silent new connection waits before its original destination is dialled, so
    /// that a server that speaks first is heard. Default 100ms.
    pub detect_timeout: Time,
    /// The most connections that the application may have open; what comes beyond is closed.
    /// Default 16384.
    pub max_connections: NonZeroU32,
    /// How long a connection to an original destination that is no upstream's may take. Default 2s.
    pub connect_timeout: Time,
    /// What differs from `http` for what the pod sends.
    #[serde(skip_serializing_if = "HttpOverrides::is_empty")]
    pub http: HttpOverrides,
}

/// What to do with a request whose host and original address disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnMismatch {
    /// Send it to its original destination.
    #[default]
    Original,
    /// Send it where the host's route says.
    Route,
    /// Answer 421.
    Refuse,
}

/// Traffic that is sent to the pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Inbound {
    /// `strict`: mTLS only; `permissive`: plaintext too; `off`. Default `permissive` with an
    /// identity, else `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<InboundMtls>,
    /// Who may call. Default: whoever `mtls` lets in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Allow>>,
    /// Requests that the application serves at once before they wait for each other: callers are told how
    /// much of it is taken. Default: it is learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<NonZeroU32>,
    /// The most requests that the application is given at once, of all callers; what comes beyond is refused
    /// unread, so that callers go elsewhere. `learned`: twice what it answers without their waiting for each
    /// other. Default: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<Most>,
    /// Paths by which the application's health is asked for: they are never refused for being too many.
    pub probes: Vec<PathMatch>,
    /// Ports carried as bytes. Default as outbound's.
    pub opaque_ports: Vec<u16>,
    /// As outbound's.
    pub detect_timeout: Time,
    /// The most connections that callers may have open; what comes beyond is closed. Default 16384.
    pub max_connections: NonZeroU32,
    /// How long a connection to the application may take. Default 2s.
    pub connect_timeout: Time,
    /// What differs from `http` for what is sent to the pod.
    #[serde(skip_serializing_if = "HttpOverrides::is_empty")]
    pub http: HttpOverrides,
}

/// Which connections are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InboundMtls {
    /// Mutual TLS alone.
    Strict,
    /// Mutual TLS, and plaintext.
    Permissive,
    /// Plaintext; TLS passes untouched to the application.
    Off,
}

/// One rule of who may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// A SPIFFE id; `*` at its end takes any rest.
    pub caller: String,
    /// The path, matched as a route's. Default: every path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The method or methods. Default: every method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany<String>>,
}

/// How the sidecar stops, on SIGTERM or `POST /drain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long new connections are still served, while endpoints learn. Default 5s.
    pub accept: Time,
    /// How long requests in flight may take to finish after that, and the application to go. Default 30s.
    pub timeout: Time,
}
