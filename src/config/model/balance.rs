//! How requests are spread over endpoints, and what an endpoint or the application takes.

use std::fmt;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::units::{Percent, Time};

/// When an endpoint that fails is passed over: ejected for a while, then tried by one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ejection {
    /// After so many answers in a row with a server's error (5xx, but 501). Default 5.
    pub errors: NonZeroU32,
    /// After so many failures in a row without an answer of the application: resets, timeouts, 502, 503 and
    /// 504. One that cannot be connected to is passed over at once. Default 3.
    pub lost: NonZeroU32,
    /// When so large a part of its answers are errors, and three times as large a one as of all. Default
    /// 20%.
    pub ratio: Percent,
    /// No more than this part of the endpoints that can be reached is ejected at once; one always may be. Default 30%.
    pub share: Percent,
    /// For how long; four times as long each time that it then fails again. Default 2s.
    pub pause: Time,
    /// And no longer. Default 2m.
    pub longest: Time,
}

/// Requests that wait while an upstream has as many as it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// How many may wait; 0: none, they are refused at once. Default 1024.
    pub requests: u32,
    /// How long each may, if its own deadline is not sooner. Default 1s.
    pub time: Time,
}

/// What keeps requests to one endpoint, as far as that has room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Sticky {
    /// The value of a field, by its name.
    Header(String),
    /// The value of a cookie, by its name.
    Cookie(String),
}

/// By hand: an error keeps its place and its words.
impl<'de> Deserialize<'de> for Sticky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Either {
            header: Option<String>,
            cookie: Option<String>,
        }

        struct One;

        impl<'de> Visitor<'de> for One {
            type Value = Sticky;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`{ header: NAME }` or `{ cookie: NAME }`")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Sticky, A::Error> {
                match Either::deserialize(MapAccessDeserializer::new(map))? {
                    Either { header: Some(name), cookie: None } => Ok(Sticky::Header(name)),
                    Either { header: None, cookie: Some(name) } => Ok(Sticky::Cookie(name)),
                    Either { header: None, cookie: None } => Err(de::Error::missing_field("header")),
                    _ => Err(de::Error::custom("expected one of `header` and `cookie`, not both")),
                }
            }
        }

        deserializer.deserialize_any(One)
    }
}

/// How many requests the application is given at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Most {
    /// So many.
    Number(NonZeroU32),
    /// As many as it answers without their waiting for each other, and as many again.
    Learned,
}

impl Serialize for Most {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Most::Number(number) => number.serialize(serializer),
            Most::Learned => serializer.serialize_str(LEARNED),
        }
    }
}

const LEARNED: &str = "learned";

/// By hand, not `untagged`: an error keeps its words.
impl<'de> Deserialize<'de> for Most {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Most;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 1, or `learned`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Most, E> {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                match text.parse() {
                    Ok(number) if digits => Ok(Most::Number(number)),
                    _ if text == LEARNED => Ok(Most::Learned),
                    _ => Err(E::invalid_value(Unexpected::Other(&format!("`{text}`")), &self)),
                }
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Most {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Most".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "How many requests the application is given at once.",
            "anyOf": [{ "type": "integer", "minimum": 1, "maximum": u32::MAX }, { "const": LEARNED }]
        })
    }
}
