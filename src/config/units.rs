//! The values that a configuration is written in: times, sizes, rates, hosts with ports. Each
//! parses from the text a person would write and says what it expected when it cannot.

mod host;
mod redis_url;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

pub use host::{EndpointName, Host, HostPort};
pub(super) use host::{parse_port, split_port};
pub use redis_url::RedisUrl;

/// A span of time: `250ms`, `2s`, `5m`, `1h`, `1d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// A number of bytes: `512`, `64KiB`, `1MiB`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// So many per time: `500/s`, `30/m`, `1000/h`, `10000/d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many: 1 to 2^32-1.
    pub count: u64,
    /// In which time; never zero.
    pub per: Duration,
}

/// Bytes per time, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRate(pub Option<Rate>);

/// A share: `0%` to `100%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u8);

impl Percent {
    /// As a part of 1.
    pub fn of_one(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

/// One value, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "OneOrMany_{T}")]
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

/// The units of [`Time`], with their nanoseconds, longest first.
const TIME_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A hundred years: more is a slip of the pen, and would overflow clocks when added to now.
const LONGEST: u128 = 36_525 * 86_400_000_000_000;

/// The text cut after its leading digits; `None` where it begins with none. Stricter than
/// `parse::<u64>()`, which takes a sign.
fn split_digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

impl FromStr for Time {
    type Err = String;

    /// Exact integer arithmetic: what [`Display`](fmt::Display) writes reads back as the same.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a time; expected a number and a unit, as `250ms`, `2s`, `5m` or `1h`")
        };
        let (whole, rest) = split_digits(text).ok_or_else(wrong)?;
        let (fraction, unit) = match rest.strip_prefix('.') {
            Some(rest) => split_digits(rest).ok_or_else(wrong)?,
            None => ("", rest),
        };
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let (_, size) = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let too_long = || format!("`{text}` is more than a hundred years");
        let whole: u64 = whole.parse().map_err(|_| too_long())?;
        let mut nanos = u128::from(whole) * size;
        let mut digit_size = *size;
        for digit in fraction.bytes() {
            digit_size /= 10;
            nanos += u128::from(digit - b'0') * digit_size;
        }
        if nanos > LONGEST {
            return Err(too_long());
        }
        let per_second = TIME_UNITS[3].1;
        Ok(Time(Duration::new((nanos / per_second) as u64, (nanos % per_second) as u32)))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        let (unit, size) =
            TIME_UNITS.iter().find(|(_, size)| nanos.is_multiple_of(*size)).unwrap_or(&("ns", 1));
        write!(f, "{}{unit}", nanos / size)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; expected bytes, as `512`, `64KiB` or `1MiB`");
        let (number, unit) = split_digits(text).ok_or_else(wrong)?;
        let too_large = || format!("`{text}` is more bytes than can be counted");
        let number: u64 = number.parse().map_err(|_| too_large())?;
        let scale = match unit {
            "" | "B" | " B" => 1,
            "KiB" | " KiB" => 1 << 10,
            "MiB" | " MiB" => 1 << 20,
            "GiB" | " GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(scale).map(Size).ok_or_else(too_large)
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

/// The largest count of a [`Rate`]: a burst's largest too.
const MOST_PER_TIME: u64 = u32::MAX as u64;

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a rate; expected `500/s`, `30/m`, `1000/h` or `10000/d`");
        let (count, unit) = split_digits(text).ok_or_else(wrong)?;
        let per = match unit {
            "/s" => 1,
            "/m" => 60,
            "/h" => 3_600,
            "/d" => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = count
            .parse()
            .ok()
            .filter(|count| *count <= MOST_PER_TIME)
            .ok_or_else(|| format!("`{text}` is too much; a rate is at most {MOST_PER_TIME}"))?;
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

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(ByteRate(None)),
            _ => text.parse().map(|rate| ByteRate(Some(rate))).map_err(|why: String| why + ", or `off`"),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => rate.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a share; expected `0%` to `100%`");
        match split_digits(text).ok_or_else(wrong)? {
            (number, "%") => number.parse().ok().filter(|n| *n <= 100).map(Percent).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::model::KeyPart;

    fn time(text: &str) -> Result<Duration, String> {
        text.parse::<Time>().map(|time| time.0)
    }

    #[test]
    fn times() {
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("2 m"), Ok(Duration::from_secs(120)));
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        assert_eq!(time("0.1ns"), Ok(Duration::ZERO));
        assert_eq!(time("36525d"), Ok(Duration::from_secs(36_525 * 86_400)));
        for text in [
            "", "5", "s", "1.5.5s", ".5s", "5.s", "-5s", "+5s", " 5s", "5s ", "5  s", "NaNs", "infs", "1e3s",
            "5S", "٣s",
        ] {
            assert!(time(text).unwrap_err().contains("is not a time"), "{text:?}");
        }
        for text in
            ["36525.1d", "18446744073709551615d", "18446744073709551616ns", "99999999999999999999999s"]
        {
            assert!(time(text).unwrap_err().contains("more than a hundred years"), "{text:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!("512".parse(), Ok(Size(512)));
        assert_eq!("64 KiB".parse(), Ok(Size(64 << 10)));
        assert_eq!("18446744073709551615".parse(), Ok(Size(u64::MAX)));
        for text in ["", "KiB", "1.5KiB", "-1", "+1", "1kb", "1 ", " 1"] {
            assert!(text.parse::<Size>().unwrap_err().contains("is not a size"), "{text:?}");
        }
        for text in ["18446744073709551616", "18446744073709551615KiB", "17179869184GiB"] {
            assert!(text.parse::<Size>().unwrap_err().contains("more bytes"), "{text:?}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!("30/m".parse(), Ok(Rate { count: 30, per: Duration::from_secs(60) }));
        for text in ["", "5", "/s", "5/", "5/ms", "+5/s", "-5/s", "5 /s", "1.5/s", "5/s/s"] {
            assert!(text.parse::<Rate>().unwrap_err().contains("is not a rate"), "{text:?}");
        }
        assert_eq!("off".parse(), Ok(ByteRate(None)));
        assert_eq!("30/m".parse::<ByteRate>().unwrap().to_string(), "30/m");
        assert!("0".parse::<ByteRate>().unwrap_err().ends_with("or `off`"));
        assert!("0/s".parse::<Rate>().unwrap_err().contains("at least 1"));
        assert!("4294967296/s".parse::<Rate>().unwrap_err().contains("at most 4294967295"));
        assert!("99999999999999999999/s".parse::<Rate>().unwrap_err().contains("at most 4294967295"));
    }

    #[test]
    fn hosts_with_ports() {
        for (text, shown) in [
            ("Orders.Shop.:8080", "orders.shop:8080"),
            ("10.0.0.7:80", "10.0.0.7:80"),
            ("[FD00::7]:80", "[fd00::7]:80"),
            ("[::ffff:10.0.0.7]:80", "10.0.0.7:80"),
            ("_grpc.x:1", "_grpc.x:1"),
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), shown);
        }
        for (text, why) in [
            ("orders", "the port is missing"),
            ("orders:", "the port is not a number"),
            ("orders:0", "the port is 0"),
            ("orders:+80", "the port is not a number"),
            ("orders:65536", "the port is not a number"),
            (":80", "not a DNS name"),
            ("fd00::7:80", "the port is missing"),
            ("[fd00::7]", "the port is missing"),
            ("[fe80::1%3]:80", "not an IPv6 address"),
            ("[orders]:80", "not an IPv6 address"),
            ("a]:80", "not a DNS name"),
            ("300.1.1.1:80", "neither an IPv4 address nor a DNS name"),
            ("a..b:80", "not a DNS name"),
            ("-a:80", "not a DNS name"),
            ("a b:80", "not a DNS name"),
            ("http://orders:80", "the port is missing"),
        ] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in 0..=LONGEST as u64, size: u64, count in 1..=MOST_PER_TIME, unit in 0..4usize) {
            let time = Time(Duration::from_nanos(nanos));
            prop_assert_eq!(time.to_string().parse(), Ok(time));
            let size = Size(size);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            let rate = Rate { count, per: Duration::from_secs([1, 60, 3_600, 86_400][unit]) };
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn round_times_too(count in 0..1000u64, unit in 0..TIME_UNITS.len()) {
            let time = Time(Duration::from_nanos(count * TIME_UNITS[unit].1 as u64));
            prop_assert_eq!(format!("{count}{}", TIME_UNITS[unit].0).parse(), Ok(time));
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }

        #[test]
        fn no_text_panics(text in "\\PC*|[0-9.:/a-z\\[\\] ]{0,12}") {
            let _ = text.parse::<Time>();
            let _ = text.parse::<Size>();
            let _ = text.parse::<Rate>();
            let _ = text.parse::<KeyPart>();
            if let Ok(parsed) = text.parse::<HostPort>() {
                prop_assert_eq!(parsed.to_string().parse(), Ok(parsed));
            }
        }
    }
}
