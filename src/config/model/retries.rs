//! When a request that failed is sent again, and when a second one is sent before the first has been
//! answered.

use std::fmt;
use std::str::FromStr;

use http::StatusCode;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::super::problem::did_you_mean;
use super::super::units::{Percent, Rate, Time};

/// What a route says of requests that failed: how often they are sent again, or that and more.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Retries {
    /// How often.
    Most(u8),
    /// How often, when and how fast.
    Rules(RetryRules),
}

impl Retries {
    /// What holds, with defaults where nothing was said.
    pub fn rules(&self) -> RetryRules {
        match self {
            Retries::Most(most) => RetryRules { most: *most, ..RetryRules::default() },
            Retries::Rules(rules) => rules.clone(),
        }
    }
}

/// By hand, not `untagged`: an error inside keeps its place and its words.
impl<'de> Deserialize<'de> for Retries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Retries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 0 to 255, or a block as `{ most: 2, on: [connect, 503] }`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Retries, E> {
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                let most = text.parse().ok().filter(|_| digits);
                most.map(Retries::Most)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Other(&format!("`{text}`")), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Retries, A::Error> {
                RetryRules::deserialize(MapAccessDeserializer::new(map)).map(Retries::Rules)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// When a request that failed is sent again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryRules {
    /// How often a request may be sent again. Default 2.
    pub most: u8,
    /// After which failures, as far as sending it again is safe: `connect` (no connection was made, to the
    /// endpoint or by its sidecar to the application), `refused` (the peer did not take the request),
    /// `reset` (the connection was lost before an answer), `timeout` (`try_timeout`), a status from 400 to
    /// 599, `5xx`, or a status of gRPC that comes instead of an answer, as `unavailable`. Default
    /// `[connect, refused, reset]`.
    pub on: Vec<RetryOn>,
    /// How long one try may take to the head of its answer, as long as another one may follow.
    /// Default: no bound but `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub try_timeout: Option<Time>,
    /// The pause before an endpoint is tried again, and after answers and timeouts.
    pub backoff: Backoff,
}

/// A pause is anything up to its bound by chance; the bound is doubled each time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// The bound of the first. Default 20ms.
    pub first: Time,
    /// The bound of the longest. Default 500ms.
    pub most: Time,
}

/// A failure after which a request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// No connection could be made.
    Connect,
    /// The peer has not taken the request.
    Refused,
    /// The connection was lost before an answer.
    Reset,
    /// No answer began within `try_timeout`.
    Timeout,
    /// An answer with this status.
    Status(StatusCode),
    /// An answer with any status from 500.
    ServerErrors,
    /// A status of gRPC in place of an answer.
    Grpc(u8),
}

/// What is no status: its word, and what it stands for.
const WORDS: [(&str, RetryOn); 5] = [
    ("connect", RetryOn::Connect),
    ("refused", RetryOn::Refused),
    ("reset", RetryOn::Reset),
    ("timeout", RetryOn::Timeout),
    ("5xx", RetryOn::ServerErrors),
];

/// The statuses of gRPC by their numbers, from 1 on.
const GRPC: [&str; 16] = [
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

impl FromStr for RetryOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, on)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*on);
        }
        if let Some(at) = GRPC.iter().position(|word| *word == text) {
            return Ok(RetryOn::Grpc(at as u8 + 1));
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let failure = |status: &u16| (400..600).contains(status);
            let status = text.parse().ok().filter(failure).and_then(|s| StatusCode::from_u16(s).ok());
            return status
                .map(RetryOn::Status)
                .ok_or_else(|| format!("`{text}` is no status of a failure; expected one from 400 to 599"));
        }
        let known = WORDS.iter().map(|(word, _)| *word).chain(GRPC);
        let hint = did_you_mean(text, known);
        let expected = "; expected `connect`, `refused`, `reset`, `timeout`, a status as `503`, `5xx`, or a \
                        status of gRPC as `unavailable`";
        Err(format!("`{text}` is no failure{}", if hint.is_empty() { expected } else { &hint }))
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetryOn::Status(status) => f.write_str(status.as_str()),
            RetryOn::Grpc(code) => {
                f.write_str(GRPC.get(usize::from(*code).wrapping_sub(1)).unwrap_or(&"unknown"))
            }
            other => f.write_str(WORDS.iter().find(|(_, on)| on == other).map_or("", |(word, _)| word)),
        }
    }
}

/// When a request that may be run twice is sent to a second endpoint too, because the first has not
/// answered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// After so long, as `50ms`; or after as long as a share of the route's requests lately took at
    /// most, as `p95`.
    pub after: HedgeAfter,
}

/// How long a first endpoint may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeAfter {
    /// So long.
    Time(Time),
    /// As long as so many of a hundred take at most: 1 to 99.
    Percentile(u8),
}

impl FromStr for HedgeAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(share) = text.strip_prefix('p') else {
            let time = text.parse().map(HedgeAfter::Time);
            return time.map_err(|why: String| why + "; or a share, as `p95`");
        };
        let digits = share.bytes().all(|b| b.is_ascii_digit());
        let share = share.parse().ok().filter(|share| digits && (1..100).contains(share));
        share
            .map(HedgeAfter::Percentile)
            .ok_or_else(|| format!("`{text}` is no share; expected `p1` to `p99`"))
    }
}

impl fmt::Display for HedgeAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HedgeAfter::Time(time) => time.fmt(f),
            HedgeAfter::Percentile(share) => write!(f, "p{share}"),
        }
    }
}

/// How many requests to an upstream may be second ones: together with every route to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryBudget {
    /// As a share of its requests. Default 20%.
    pub share: Percent,
    /// And beyond that, so that there are some where requests are few. Default 10/s.
    pub least: Rate,
}

impl RetryBudget {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_by_time_and_share() {
        for text in ["50ms", "2s", "p1", "p95", "p99"] {
            assert_eq!(text.parse::<HedgeAfter>().unwrap().to_string(), text);
        }
        for (text, why) in
            [("p0", "`p1` to `p99`"), ("p100", "`p1`"), ("p", "`p1`"), ("p+5", "`p1`"), ("soon", "`p95`")]
        {
            let error = text.parse::<HedgeAfter>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn failures_by_their_words() {
        for text in ["connect", "refused", "reset", "timeout", "5xx", "400", "503", "599"] {
            assert_eq!(text.parse::<RetryOn>().unwrap().to_string(), text);
        }
        for (i, text) in GRPC.iter().enumerate() {
            let on: RetryOn = text.parse().unwrap();
            assert_eq!((on, on.to_string().as_str()), (RetryOn::Grpc(i as u8 + 1), *text));
        }
        for text in ["600", "200", "0", "99999999999", "399"] {
            let error = text.parse::<RetryOn>().unwrap_err();
            assert!(error.contains("expected one from 400 to 599"), "{error}");
        }
        for (text, hint) in [("conect", "did you mean `connect`"), ("", "expected `connect`"), ("4xx", "5xx")]
        {
            let error = text.parse::<RetryOn>().unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }
}
