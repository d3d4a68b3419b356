//! What is said of a service that the pod calls.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{EndpointName, HostPort, OneOrMany, Time};
use super::{Ejection, Mtls, Queue, RetryBudget};

/// A service that this pod calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// What applications dial, `host:port`: a Service name whose addresses are matched against
    /// original destinations.
    pub address: HostPort,
    /// What requests are balanced over: a name that resolves to every endpoint (a headless
    /// Service) with the target port, the name of SRV records (`_http._tcp.orders.shop`, which
    /// brings ports, priorities and weights along), or a list of `ip:port`. Default: `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<OneOrMany<EndpointName>>,
    /// How long an endpoint that joins others takes less than its share: from a tenth to all of
    /// it. Default 10s; `0s`: its whole share at once.
    #[serde(default = "Upstream::default_slow_start")]
    pub slow_start: Time,
    /// Mutual TLS towards its endpoints. Default: `prefer` with an identity, else `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// Requests that one endpoint serves at once, for all callers together; it is given no more. Default:
    /// what its sidecar announces, or what is learned from how long its answers take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<NonZeroU32>,
    /// When endpoints that fail are passed over.
    #[serde(default)]
    pub ejection: Ejection,
    /// Requests that wait while there is no room for them.
    #[serde(default)]
    pub queue: Queue,
    /// Of very many endpoints, how many this sidecar uses of each priority, family and zone: each sidecar
    /// others. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<NonZeroU32>,
    /// The most requests that this sidecar has in flight to the upstream. Default: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<NonZeroU32>,
    /// The most connections that this sidecar opens to the upstream. Default: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZeroU32>,
    /// How many of its requests may be second ones, over all routes to it.
    #[serde(default, skip_serializing_if = "RetryBudget::is_default")]
    pub retry_budget: RetryBudget,
    /// How long a connection, with its TLS handshake, may take. Default 2s.
    #[serde(default = "Upstream::default_connect_timeout")]
    pub connect_timeout: Time,
    /// How its endpoints keep idle plain connections. Default: it is learned from what they say
    /// and do.
    #[serde(default, skip_serializing_if = "KeepAlive::is_empty")]
    pub keep_alive: KeepAlive,
    /// How long a connection may idle, whatever its endpoint allows. Default 5m.
    #[serde(default = "Upstream::default_idle_timeout")]
    pub idle_timeout: Time,
    /// Between sidecars: how long a peer may be silent while an answer is due. Its connection is
    /// then given up, and what may be sent again is. Default 10s.
    #[serde(default = "Upstream::default_peer_timeout")]
    pub peer_timeout: Time,
}

/// What is known beforehand of how endpoints keep idle plain connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeepAlive {
    /// How long an endpoint keeps an idle connection; ours are used no longer than a margin before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Time>,
    /// How many requests an endpoint takes on one connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<NonZeroU32>,
}

impl KeepAlive {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
