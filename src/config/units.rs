//! The values that a configuration is written in: times, sizes, rates, hosts with ports. Each
//! parses from the text a person would write and says what it expected when it cannot.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::model::KeyPart;

/// A span of time: `250ms`, `2s`, `5m`, `1h`, `1d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// A number of bytes: `512`, `64KiB`, `1MiB`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// So many per time: `500/s`, `30/m`, `1000/h`, `10000/d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; never 0.
    pub count: u64,
    /// In which time; never zero.
    pub per: Duration,
}

/// A DNS name or address, with a port: `orders.shop:8080`, `10.0.0.7:80`, `[fd00::7]:80`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The name in lower case without a final dot, or the address.
    pub host: Host,
    /// The port; never 0.
    pub port: u16,
}

/// The host of a [`HostPort`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name, in lower case, without a final dot.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// One value, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One value.
    One(T),
    /// A list.
    Many(Vec<T>),
}

/// The addresses of a listener.
pub type Addresses = OneOrMany<SocketAddr>;

impl<T> OneOrMany<T> {
    /// The values, one or many.
    pub fn as_slice(&self) -> &[T] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

impl Rate {
    /// Tokens per second.
    pub fn per_second(self) -> f64 {
        self.count as f64 / self.per.as_secs_f64()
    }
}

/// The words after a number that [`Time`] knows, in nanoseconds, longest first.
const TIME_UNITS: [(&str, u64); 7] = [
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a time; expected a number and a unit, as `250ms`, `2s`, `5m` or `1h`")
        };
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
        let (_, nanos) =
            TIME_UNITS.iter().find(|(unit, _)| *unit == text[digits..].trim()).ok_or_else(wrong)?;
        let nanos = number * *nanos as f64;
        if nanos > 3.2e18 {
            return Err(format!("`{text}` is more than a hundred years"));
        }
        Ok(Time(Duration::from_nanos(nanos.round() as u64)))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos() as u64;
        let (unit, size) = [("d", 5), ("h", 4), ("m", 3), ("s", 2), ("ms", 1), ("us", 0)]
            .iter()
            .map(|(unit, _)| TIME_UNITS.iter().find(|(name, _)| name == unit).expect("a unit of the table"))
            .find(|(_, size)| nanos != 0 && nanos.is_multiple_of(*size))
            .copied()
            .unwrap_or(if nanos == 0 { ("s", 1_000_000_000) } else { ("ns", 1) });
        write!(f, "{}{unit}", nanos / size)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; expected bytes, as `512`, `64KiB` or `1MiB`");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let scale = match text[digits..].trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(scale).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 != 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a rate; expected `500/s`, `30/m`, `1000/h` or `10000/d`");
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let count: u64 = count.trim().parse().map_err(|_| wrong())?;
        let per = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        if count == 0 {
            return Err(format!("`{text}` lets nothing through; a rate is at least 1"));
        }
        Ok(Rate { count, per: Duration::from_secs(per) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            3_600 => "h",
            _ => "d",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is not `host:port`: {why}");
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.port() == 0 {
                return Err(wrong("the port is 0"));
            }
            return Ok(HostPort { host: Host::Address(address.ip()), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
        let port: u16 = port.parse().map_err(|_| wrong("the port is not a number from 1 to 65535"))?;
        if port == 0 {
            return Err(wrong("the port is 0"));
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if name.contains(':') {
            return Err(wrong("an IPv6 address stands in brackets, as `[fd00::7]:80`"));
        }
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > 253 || !name.split('.').all(label_ok) {
            return Err(wrong("the host is not a DNS name"));
        }
        Ok(HostPort { host: Host::Name(name), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Address(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for KeyPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "caller" => KeyPart::Caller,
            "host" => KeyPart::Host,
            "method" => KeyPart::Method,
            _ => match text.strip_prefix("header:") {
                Some(name) if http::HeaderName::from_bytes(name.as_bytes()).is_ok() => {
                    KeyPart::Header(name.to_ascii_lowercase())
                }
                _ => {
                    return Err(format!(
                        "`{text}` is no key; expected `caller`, `host`, `method` or `header:NAME`"
                    ));
                }
            },
        })
    }
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPart::Caller => f.write_str("caller"),
            KeyPart::Host => f.write_str("host"),
            KeyPart::Method => f.write_str("method"),
            KeyPart::Header(name) => write!(f, "header:{name}"),
        }
    }
}

/// Reads a value from its text, or from a bare number where one makes sense.
macro_rules! textual {
    ($type:ident, $description:literal, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
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
                json_schema!({ "type": "string", "description": $description, "pattern": $pattern })
            }
        }
    };
}

textual!(Time, "A time: 250ms, 2s, 5m, 1h, 1d", "^[0-9]+(\\.[0-9]+)? ?(ns|us|ms|s|m|h|d)$");
textual!(Size, "Bytes: 512, 64KiB, 1MiB", "^[0-9]+ ?(B|KiB|MiB|GiB)?$");
textual!(Rate, "A rate: 500/s, 30/m, 1000/h, 10000/d", "^[0-9]+/(s|m|h|d)$");
textual!(HostPort, "host:port", "^.+:[0-9]+$");
textual!(KeyPart, "caller, host, method, or header:NAME", "^(caller|host|method|header:.+)$");
