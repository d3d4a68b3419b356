//! The cache as an operator sees it, on `/upstreams`.

use std::net::IpAddr;

use serde::Serialize;

use super::Service;
use super::servers::ServerSnapshot;

/// The whole cache as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Names that were known already when somebody wanted them.
    pub hits: u64,
    /// Names that had to be asked for.
    pub misses: u64,
    /// Queries for what was known already, to keep it fresh.
    pub refreshes: u64,
    /// Refreshes that failed and left records in service past their TTL.
    pub stale: u64,
    /// Queries sent to servers.
    pub queries: u64,
    /// Queries that brought neither records nor a denial.
    pub failures: u64,
    /// In the order of the configuration.
    pub servers: Vec<ServerSnapshot>,
    /// In alphabetical order.
    pub names: Vec<NameSnapshot>,
}

/// One name as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct NameSnapshot {
    /// The name, in lower case.
    pub name: String,
    /// What it resolves to now.
    pub addresses: Vec<IpAddr>,
    /// The services that it names, where it is an SRV name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// `pending`, `fresh`, `stale` or `failed`.
    pub state: &'static str,
    /// Seconds until the first record is past its TTL; negative when stale.
    pub ttl_left: Option<f64>,
    /// Which server said what, when the last query of any kind went wrong.
    pub last_error: Option<String>,
}
