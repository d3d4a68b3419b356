//! How the values of [`units`](super::units) stand in a configuration: read from text, with
//! words of their own for what was expected; written as text; described to the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::model::{HedgeAfter, KeyPart, RetryOn};
use super::units::{
    Addresses, ByteRate, EndpointName, HostPort, OneOrMany, Percent, Rate, RedisUrl, Size, Time,
};

/// A type that is written as text: reads it with its own words for what was expected, writes it,
/// and describes it to the schema.
macro_rules! textual {
    ($type:ident, $expected:literal, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text::new($expected))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

textual!(Time, "a time, as `250ms`, `2s`, `5m` or `1h`", {
    "type": "string",
    "description": "A time: 250ms, 2s, 5m, 1h, 1d",
    "pattern": "^[0-9]+(\\.[0-9]+)? ?(ns|us|ms|s|m|h|d)$"
});
textual!(Size, "a size, as `512`, `64KiB` or `1MiB`", {
    "type": ["string", "integer"],
    "description": "Bytes: 512, 64KiB, 1MiB",
    "minimum": 0,
    "pattern": "^[0-9]+( ?(B|KiB|MiB|GiB))?$"
});
textual!(Rate, "a rate, as `500/s`, `30/m`, `1000/h` or `10000/d`", {
    "type": "string",
    "description": "A rate: 500/s, 30/m, 1000/h, 10000/d",
    "pattern": "^[0-9]+/(s|m|h|d)$"
});
textual!(ByteRate, "bytes per time, as `600/m` or `240/s`, or `off`", {
    "type": "string",
    "description": "Bytes per time: 600/m, 240/s; or off",
    "pattern": "^([0-9]+/(s|m|h|d)|off)$"
});
textual!(Percent, "a share, as `5%`", {
    "type": "string",
    "description": "A share: 5%",
    "pattern": "^([0-9]|[1-9][0-9]|100)%$"
});
textual!(HostPort, "`host:port`, as `orders.shop:8080` or `[fd00::7]:80`", {
    "type": "string",
    "description": "host:port",
    "pattern": "^.+:[0-9]+$"
});
textual!(EndpointName, "`host:port`, as `orders-headless.shop:8080`, or an SRV name, as `_http._tcp.orders.shop`", {
    "type": "string",
    "description": "host:port, or an SRV name: _http._tcp.orders.shop",
    "pattern": "^(.+:[0-9]+|_.+)$"
});
textual!(RedisUrl, "the URL of a Redis, as `redis://redis.mesh:6379`", {
    "type": "string",
    "description": "redis://[user:password@]host[:port][/db], or rediss:// for TLS",
    "pattern": "^rediss?://.+$"
});
textual!(KeyPart, "`caller`, `host`, `path`, `method`, `header:NAME` or `claim:NAME`", {
    "type": "string",
    "description": "caller, host, path, method, header:NAME, or claim:NAME",
    "pattern": "^(caller|host|path|method|header:.+|claim:.+)$"
});
textual!(HedgeAfter, "a time, as `50ms`, or a share, as `p95`", {
    "type": "string",
    "description": "A time, or what a share of requests takes at most: 50ms, p95",
    "pattern": "^([0-9]+(\\.[0-9]+)? ?(ns|us|ms|s|m|h|d)|p[1-9][0-9]?)$"
});
textual!(RetryOn, "a failure, as `connect`, `reset`, `503`, `5xx` or `unavailable`", {
    "type": ["string", "integer"],
    "description": "A failure: connect, refused, reset, timeout, a status from 400 to 599, 5xx, or a status of gRPC, as unavailable",
    "minimum": 400,
    "maximum": 599,
    "pattern": "^([45][0-9][0-9]|5xx|[a-z_]+)$"
});

/// Reads a value from its text.
struct Text<T> {
    expected: &'static str,
    value: PhantomData<T>,
}

impl<T> Text<T> {
    fn new(expected: &'static str) -> Self {
        Self { expected, value: PhantomData }
    }
}

impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// A socket address, read with words of our own where it is wrong.
pub(super) struct Socket(SocketAddr);

impl FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Socket).map_err(|_| {
            format!("`{text}` is not `ip:port`; expected an address, as `127.0.0.1:8080` or `[::1]:8080`")
        })
    }
}

impl<'de> Deserialize<'de> for Socket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text::new("`ip:port`, as `127.0.0.1:8080` or `[::1]:8080`"))
    }
}

/// `deserialize_with` of an optional socket address.
pub(super) fn socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    Socket::deserialize(deserializer).map(|socket| Some(socket.0))
}

/// `deserialize_with` of a list of socket addresses.
pub(super) fn socket_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    Vec::<Socket>::deserialize(deserializer).map(|list| list.into_iter().map(|socket| socket.0).collect())
}

/// `deserialize_with` of lists of socket addresses by domain, each one address or a list.
pub(super) fn socket_lists<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Vec<SocketAddr>>, D::Error> {
    let lists = BTreeMap::<String, OneOrMany<Socket>>::deserialize(deserializer)?;
    let sockets = |list: OneOrMany<Socket>| list.as_slice().iter().map(|socket| socket.0).collect();
    Ok(lists.into_iter().map(|(domain, list)| (domain, sockets(list))).collect())
}

/// `deserialize_with` of [`Addresses`].
pub(super) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Addresses, D::Error> {
    Ok(match OneOrMany::<Socket>::deserialize(deserializer)? {
        OneOrMany::One(one) => OneOrMany::One(one.0),
        OneOrMany::Many(many) => OneOrMany::Many(many.into_iter().map(|socket| socket.0).collect()),
    })
}

/// By hand, not `untagged`: an error inside keeps its place and its words.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value, or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany<T>, E> {
                T::deserialize(text.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<OneOrMany<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMany::Many)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}
