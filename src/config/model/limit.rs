//! Rate limits: which requests they hold for, what is counted apart, and how much is admitted.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::super::units::{OneOrMany, Rate, Time};
use super::{Direction, PathMatch};

/// Text that a value is compared with: a value; a beginning and `*`; or `*`, for any value that is there.
pub type Patterns = OneOrMany<String>;

/// One rate limit: in any window T, at most `rate`·T + `burst` requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Its name, in answers and metrics.
    pub name: String,
    /// Which direction it holds for. Default `outbound`.
    #[serde(default)]
    pub direction: Direction,
    /// The host or hosts it holds for. Default: every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<OneOrMany<String>>,
    /// The path it holds for, matched as a route's. Default: every path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The method or methods it holds for. Default: every method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany<String>>,
    /// Fields that the request must have, each with a value, one of a list, a beginning and `*`, or `*`
    /// for any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, Patterns>,
    /// Whose requests it holds for: SPIFFE ids, or beginnings and `*`. Default: everyone's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<OneOrMany<String>>,
    /// Claims that the request's verified token must have, written as `header`'s fields are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claim: BTreeMap<String, Patterns>,
    /// What is counted apart: `caller`, `host`, `path`, `method`, `header:NAME`, `claim:NAME`.
    /// Default: one count.
    #[serde(default)]
    pub key: Vec<KeyPart>,
    /// Requests per time: `500/s`, `30/m`, `1000/h`, `10000/d`.
    pub rate: Rate,
    /// Requests that may come at once. Default: one second's worth, at least 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
    /// Keys that have a rate of their own. The first that fits holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyRate>,
    /// How many tokens a request takes: a number, or a field that says it. Default 1.
    #[serde(default)]
    pub cost: Cost,
    /// `mesh`: together with every sidecar on the same Redis; `pod`: this one alone.
    /// Default `mesh`; without `redis`, a mesh limit holds per pod.
    #[serde(default)]
    pub scope: Scope,
    /// How long a sidecar may keep a token of a mesh limit, at most (burst − 1)/rate. Longer asks Redis less
    /// often; shorter leaves more of the burst to all at once. Default: burst/(2·rate).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Time>,
    /// Ask Redis for each request, and keep no token. For limits of a few requests. Default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exact: bool,
    /// Count what would be refused, and refuse nothing. Default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub observe: bool,
    /// Tries after the first, and hedges, take tokens too; without one they are not made. Default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub count_retries: bool,
    /// The status of a refusal, from 400 to 599. Default 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// What a mesh limit does while Redis cannot be asked. Default `share`.
    #[serde(default)]
    pub without_redis: WithoutRedis,
}

/// The rate of keys of their own, as of a tenant with a larger plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRate {
    /// A value for each part of `key`, in its order: as it is, a beginning and `*`, or `*` for any.
    pub is: OneOrMany<String>,
    /// Requests per time.
    pub rate: Rate,
    /// Requests that may come at once. Default: one second's worth, at least 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
}

/// One part of a limit's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyPart {
    /// The caller's SPIFFE id: outbound, our own; inbound, the peer's.
    Caller,
    /// The host that the request names.
    Host,
    /// The path, without the query.
    Path,
    /// The method.
    Method,
    /// The value of a field, named in lower case.
    Header(String),
    /// A claim of the request's verified token.
    Claim(String),
}

/// How many tokens a request takes. It is never more than the bucket can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Cost {
    /// So many.
    Fixed(NonZeroU32),
    /// As a field says.
    Field(CostField),
}

/// A field that says what a request costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CostField {
    /// The field's name. Its value is a whole number; 0 counts as 1.
    pub header: String,
    /// The cost where the field is missing, or no number. Default 1.
    #[serde(default = "one")]
    pub default: NonZeroU32,
}

/// Who shares a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every sidecar on the same Redis.
    #[default]
    Mesh,
    /// This sidecar alone.
    Pod,
}

/// What a mesh limit does while Redis cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WithoutRedis {
    /// Admit.
    Open,
    /// Refuse: the bound holds whatever happens.
    Closed,
    /// Each sidecar takes its share of the rate, by the number last seen.
    #[default]
    Share,
}

impl Default for Cost {
    fn default() -> Self {
        Cost::Fixed(NonZeroU32::MIN)
    }
}

/// By hand, not `untagged`: an error inside keeps its place and its words.
impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Cost;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 1, or a block as `{ header: x-cost, default: 1 }`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cost, E> {
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                let cost = text.parse().ok().filter(|_| digits);
                cost.map(Cost::Fixed)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Other(&format!("`{text}`")), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Cost, A::Error> {
                CostField::deserialize(MapAccessDeserializer::new(map)).map(Cost::Field)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl FromStr for KeyPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let expected = "`caller`, `host`, `path`, `method`, `header:NAME` or `claim:NAME`";
            format!("`{text}` is no key; expected {expected}")
        };
        Ok(match text.split_once(':') {
            None if text == "caller" => KeyPart::Caller,
            None if text == "host" => KeyPart::Host,
            None if text == "path" => KeyPart::Path,
            None if text == "method" => KeyPart::Method,
            Some(("header", name)) if ::http::HeaderName::from_bytes(name.as_bytes()).is_ok() => {
                KeyPart::Header(name.to_ascii_lowercase())
            }
            Some(("claim", name)) if !name.is_empty() => KeyPart::Claim(name.into()),
            _ => return Err(wrong()),
        })
    }
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPart::Caller => f.write_str("caller"),
            KeyPart::Host => f.write_str("host"),
            KeyPart::Path => f.write_str("path"),
            KeyPart::Method => f.write_str("method"),
            KeyPart::Header(name) => write!(f, "header:{name}"),
            KeyPart::Claim(name) => write!(f, "claim:{name}"),
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}
