//! Where mesh-wide limits are kept. Its passwords are shown nowhere.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{OneOrMany, RedisUrl, Time};

/// The Redis that mesh-wide limits share: exactly one of `url`, `sentinel` and `cluster`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// One server: `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<RedisUrl>,
    /// A server that sentinels fail over to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<Sentinel>,
    /// A Redis Cluster: some of its nodes, which name the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<OneOrMany<RedisUrl>>,
    /// The ACL user. Default: the URL's; else Redis's own default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file with the password, read at every connect. Default: the URL's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// What `rediss://` trusts and shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// How long a request may wait for Redis where no lease is at hand. Default 20ms.
    #[serde(default = "Redis::default_budget")]
    pub budget: Time,
    /// What every key begins with; sidecars with another prefix share nothing. Default `pannier`.
    #[serde(default = "Redis::default_prefix")]
    pub prefix: String,
    /// What a bucket holds when Redis has lost, or may have lost, what it knew: nothing (`empty`),
    /// or a whole burst (`full`). Default `empty`.
    #[serde(default)]
    pub on_new_state: OnNewState,
}

/// Sentinels, and the master that they watch. It is reached as they are: by TLS if their URLs are
/// `rediss://`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sentinel {
    /// The name that sentinels have for the master.
    pub master: String,
    /// The sentinels: `redis://host[:port]`, or `rediss://`; the port is 26379 by default.
    pub urls: OneOrMany<RedisUrl>,
    /// The ACL user of the sentinels themselves. Default: their URLs'; else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file with the sentinels' own password, read at every connect. Default: their URLs'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// TLS towards Redis. The files are read at every connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisTls {
    /// The roots that its certificate must lead to, in PEM. Default: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Our certificate chain, leaf first, in PEM, where Redis asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name that its certificate must be for. Default: the host that is dialled, which for the
    /// nodes of a cluster and for a sentinel's master is mostly an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// What a bucket holds of which Redis knows nothing, and may have forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNewState {
    /// Nothing: the bound holds through restarts, failovers and flushes.
    #[default]
    Empty,
    /// A whole burst: nobody is refused for what Redis lost.
    Full,
}

impl Redis {
    /// One server, and the rest by default.
    pub fn at(url: RedisUrl) -> Self {
        Self {
            url: Some(url),
            sentinel: None,
            cluster: None,
            user: None,
            password_file: None,
            tls: None,
            budget: Self::default_budget(),
            prefix: Self::default_prefix(),
            on_new_state: OnNewState::default(),
        }
    }
}
