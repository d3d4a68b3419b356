//! Where mesh-wide limits are kept; its password is shown nowhere.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::super::units::Time;

/// The Redis that mesh-wide limits share. Neither its `Debug` nor its serialized form shows the
/// password.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// `redis://[user:password@]host:port[/db]`, or `rediss://` for TLS.
    #[serde(serialize_with = "serialize_without_password")]
    pub url: String,
    /// How long a request may wait for Redis where no lease is at hand. Default 20ms.
    #[serde(default = "Redis::default_budget")]
    pub budget: Time,
    /// What every key begins with; sidecars with another prefix share nothing. Default `pannier`.
    #[serde(default = "Redis::default_prefix")]
    pub prefix: String,
    /// What a bucket holds when Redis has lost, or may have lost, what it knew: `empty`, so that the bound
    /// holds, or `full`. Default `empty`.
    #[serde(default)]
    pub on_new_state: NewState,
}

/// What a bucket holds when Redis has lost what it knew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NewState {
    /// What has accrued since, and nothing else.
    #[default]
    Empty,
    /// A whole burst.
    Full,
}

impl Redis {
    /// The Redis at this URL, and the rest by default.
    pub fn at(url: &str) -> Self {
        Self {
            url: url.into(),
            budget: Self::default_budget(),
            prefix: Self::default_prefix(),
            on_new_state: NewState::Empty,
        }
    }
}

/// A Redis URL as it may be shown: `redis://user:***@host`.
fn without_password(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((user, host)) => {
                let user = user.split_once(':').map_or("", |(user, _)| user);
                format!("{scheme}://{user}:***@{host}")
            }
            None => url.into(),
        },
        None => "***".into(),
    }
}

fn serialize_without_password<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_password(url))
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("url", &without_password(&self.url))
            .field("budget", &self.budget)
            .field("prefix", &self.prefix)
            .field("on_new_state", &self.on_new_state)
            .finish()
    }
}
