//! How long a request's caller still waits for its answer, as it says itself: in `grpc-timeout` (the
//! gRPC over HTTP/2 protocol), in `x-request-timeout`, and between sidecars in a place of its own. Each hop
//! takes it out, and writes it anew with what is left.
//!
//! Promises: what is written is never more than what was read, but for rounding up to its unit; a field
//! that cannot be read stays as it is, except in gRPC, where the request is refused.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::RequestHead;
use crate::config::units::Time;
use crate::error::{Error, Reason};

/// In which any caller may say how long it waits: in whole milliseconds, or with a unit.
pub const REQUEST_TIMEOUT: &str = "x-request-timeout";

/// In which gRPC says it.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Between sidecars that speak HTTP/2, where the caller has said nothing and its route has: whole
/// milliseconds. Those that speak our frames have a place for it in them.
pub const TIMEOUT_FIELD: &str = "x-pannier-timeout";

/// The units of `grpc-timeout`, finest first.
const GRPC_UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The most that its eight digits can say.
const MOST_GRPC: u128 = 99_999_999;

/// When a caller no longer waits.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// Then.
    pub at: Instant,
    grpc: bool,
    plain: Option<Style>,
}

/// How `x-request-timeout` was written.
#[derive(Debug, Clone, Copy)]
enum Style {
    Millis,
    Unit,
}

/// Takes what a request says of its caller's time out of its fields; of our own field only what a sidecar
/// says is believed.
pub fn take(head: &mut RequestHead, from_sidecar: bool) -> Result<(), Error> {
    // What a frame has said.
    head.expiry = head.expiry.take().filter(|_| from_sidecar);
    let [grpc, plain, own] = head.fields.values([GRPC_TIMEOUT, REQUEST_TIMEOUT, TIMEOUT_FIELD]);
    if grpc.is_none() && plain.is_none() && own.is_none() {
        return Ok(());
    }
    let grpc = match grpc.filter(|_| head.is_grpc()) {
        Some(value) => Some(
            read_grpc(value)
                .ok_or_else(|| Error::new(Reason::HttpMalformed, "grpc-timeout is not a time"))?,
        ),
        None => None,
    };
    let plain = plain.and_then(read_plain);
    let own = own.filter(|_| from_sidecar).and_then(|value| number(value).map(Duration::from_millis));
    let times = [grpc, plain.map(|(time, _)| time), own];
    // One beyond all clocks is as good as none.
    let least = times.into_iter().flatten().min().and_then(|least| Instant::now().checked_add(least));
    let of_frame = head.expiry.map(|expiry| expiry.at);
    let Some(at) = least.into_iter().chain(of_frame).min() else { return Ok(()) };
    head.expiry = Some(Expiry { at, grpc: grpc.is_some(), plain: plain.map(|(_, style)| style) });
    if grpc.is_some() {
        head.fields.remove(GRPC_TIMEOUT);
    }
    if plain.is_some() {
        head.fields.remove(REQUEST_TIMEOUT);
    }
    Ok(())
}

/// What the next hop is told of the time that is `left`, in the fields in which the caller has said it.
pub fn told(expiry: &Expiry, left: Duration) -> HeaderMap {
    let mut fields = HeaderMap::new();
    if expiry.grpc {
        fields.insert(HeaderName::from_static(GRPC_TIMEOUT), write_grpc(left));
    }
    match expiry.plain {
        Some(Style::Millis) => {
            fields.insert(HeaderName::from_static(REQUEST_TIMEOUT), HeaderValue::from(millis(left)));
        }
        Some(Style::Unit) => {
            let text = HeaderValue::from_str(&format!("{}ms", millis(left)));
            fields.extend(text.ok().map(|text| (HeaderName::from_static(REQUEST_TIMEOUT), text)));
        }
        None => {}
    }
    fields
}

impl Expiry {
    /// So long from now; none, if that is beyond all clocks.
    pub(super) fn after(left: Duration) -> Option<Self> {
        Some(Self { at: Instant::now().checked_add(left)?, grpc: false, plain: None })
    }

    /// Whether an application's own fields have said it.
    pub fn is_said(&self) -> bool {
        self.grpc || self.plain.is_some()
    }
}

/// Whole milliseconds, rounded up: as long as something is left, that is not 0.
pub fn millis(left: Duration) -> u64 {
    u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A number of digits alone.
fn number(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

fn read_plain(value: &[u8]) -> Option<(Duration, Style)> {
    if let Some(millis) = number(value) {
        return Some((Duration::from_millis(millis), Style::Millis));
    }
    let time: Time = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some((time.0, Style::Unit))
}

fn read_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, size) = GRPC_UNITS.iter().find(|(name, _)| name == unit)?;
    let count = number(digits).filter(|_| digits.len() <= 8)?;
    let nanos = u128::from(count) * size;
    // At most 11,408 years.
    Some(Duration::new(u64::try_from(nanos / 1_000_000_000).ok()?, (nanos % 1_000_000_000) as u32))
}

/// In the finest unit that eight digits are enough for, rounded up.
fn write_grpc(left: Duration) -> HeaderValue {
    let nanos = left.as_nanos();
    let fits = |(_, size): &&(u8, u128)| nanos.div_ceil(*size) <= MOST_GRPC;
    let (unit, size) = GRPC_UNITS.iter().find(fits).unwrap_or(&GRPC_UNITS[5]);
    let text = format!("{}{}", nanos.div_ceil(*size).min(MOST_GRPC), char::from(*unit));
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::{Fields, Length};

    fn head(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let fields: HeaderMap = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        RequestHead {
            method: http::Method::GET,
            authority: None,
            path: "/".parse().unwrap(),
            version: http::Version::HTTP_2,
            fields: Fields::from(fields),
            length: Length::None,
            upgrade: None,
            expiry: None,
        }
    }

    /// What is left of a request's time, and what fields its next hop is told it in.
    fn passed(fields: &[(&'static str, &'static str)], from_sidecar: bool) -> (Option<Duration>, String) {
        let mut head = head(fields);
        take(&mut head, from_sidecar).expect("readable");
        let told = head.expiry.map(|expiry| told(&expiry, expiry.at - Instant::now())).unwrap_or_default();
        let mut all: Vec<_> = told.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        head.fields.each(|n, v| {
            all.push(format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)));
        });
        (head.expiry.map(|expiry| expiry.at - Instant::now()), all.join(", "))
    }

    const MILLI: Duration = Duration::from_millis(1);
    const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

    #[tokio::test(start_paused = true)]
    async fn what_was_said_is_taken_and_told_anew() {
        let plain = |value| passed(&[("x-request-timeout", value)], false);
        assert_eq!(plain("250"), (Some(250 * MILLI), "x-request-timeout: 250".into()));
        assert_eq!(plain("2s"), (Some(2000 * MILLI), "x-request-timeout: 2000ms".into()));
        assert_eq!(plain("0"), (Some(Duration::ZERO), "x-request-timeout: 0".into()));
        assert_eq!(plain("0.0001s"), (Some(MILLI / 10), "x-request-timeout: 1ms".into()));
        for wrong in ["", "soon", "-1", "1.5", "18446744073709551616", "+5", "5 parsecs"] {
            assert_eq!(plain(wrong), (None, format!("x-request-timeout: {wrong}")), "it stays");
        }
        let long = Duration::from_millis(u64::MAX);
        assert_eq!(plain("18446744073709551615"), (Some(long), format!("x-request-timeout: {}", u64::MAX)));
        let grpc = |value| passed(&[("grpc-timeout", value), GRPC], false);
        let (left, told) = grpc("99999999u");
        assert_eq!(left, Some(Duration::from_micros(99_999_999)));
        assert!(told.starts_with("grpc-timeout: 99999999u"), "{told}");
        // What is no gRPC has no such field.
        assert_eq!(passed(&[("grpc-timeout", "1S")], false), (None, "grpc-timeout: 1S".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_of_all_counts_and_ours_is_for_sidecars_alone() {
        let both = [("grpc-timeout", "1S"), ("x-request-timeout", "300"), GRPC];
        let (left, app) = passed(&both, false);
        assert_eq!(left, Some(300 * MILLI));
        assert!(app.contains("x-request-timeout: 300") && app.contains("grpc-timeout: 300000u"), "{app}");
        let ours = [("x-pannier-timeout", "200")];
        assert_eq!(passed(&ours, false).0, None, "anybody may have written it");
        let (left, app) = passed(&ours, true);
        assert_eq!(left, Some(200 * MILLI));
        assert_eq!(app, "x-pannier-timeout: 200", "taken out by whoever takes out all of ours");
        for (left, from_sidecar, counts) in [(200, true, 200), (400, true, 300), (200, false, 300)] {
            let mut framed = head(&both);
            framed.expiry = Expiry::after(left * MILLI);
            take(&mut framed, from_sidecar).expect("readable");
            assert_eq!(
                framed.expiry.map(|expiry| expiry.at - Instant::now()),
                Some(counts * MILLI),
                "{left}"
            );
        }
    }

    #[test]
    fn a_malformed_time_of_grpc_is_refused() {
        for wrong in ["", "S", "1", "1s", "123456789m", "-1S", "1 S", "1.5S", "0x1S", "1D"] {
            let mut head = head(&[("grpc-timeout", wrong), GRPC]);
            let error = take(&mut head, false).expect_err(wrong);
            assert_eq!((error.reason, error.reason.grpc_status()), (Reason::HttpMalformed, 13), "{wrong}");
        }
        for (text, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("00000004m", 4_000_000),
            ("5u", 5_000),
            ("6n", 6),
        ] {
            assert_eq!(read_grpc(text.as_bytes()).map(|time| time.as_nanos()), Some(nanos), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_of_grpc_is_no_less_and_hardly_more(nanos in 0..=u64::MAX) {
            let left = Duration::from_nanos(nanos);
            let written = write_grpc(left);
            let read = read_grpc(written.as_bytes()).expect("ours");
            prop_assert!(read >= left && (read - left).as_nanos() * 1_000 <= left.as_nanos() + 1_000, "{written:?}");
        }

        #[test]
        fn nothing_panics(value in proptest::collection::vec(0u8.., 0..12)) {
            let _ = (read_grpc(&value), read_plain(&value), number(&value));
        }
    }
}
