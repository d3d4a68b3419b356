//! What a sidecar says to those who call its pod of how full that is: with each answer, and when it is asked.

use std::fmt;

use http::HeaderValue;

/// Between sidecars that speak HTTP/2: how full the pod is that answers; our own frames have a place for it. It is written as four numbers,
/// `in flight/capacity/latency/most`, and consumed by the sidecar that receives it.
pub const LOAD_FIELD: &str = "x-pannier-load";

/// The largest number that is believed: beyond it there is nothing that a choice could tell apart.
const MOST: u32 = 1 << 24;

/// How full a pod is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Requests that it has, of all callers together.
    pub in_flight: u32,
    /// Requests that it serves at once before they wait for each other; 0: it does not know.
    pub capacity: u32,
    /// How long it takes for a request while they do not, in microseconds; 0: it does not know.
    pub latency: u32,
    /// Requests that it takes at once; 0: it has no such bound.
    pub most: u32,
}

/// An announcement's length in a frame.
pub(super) const LENGTH: usize = 16;

impl Announcement {
    /// As a field's value.
    pub fn value(&self) -> HeaderValue {
        let mut text = Text { bytes: [0; LONGEST], length: 0 };
        for (at, number) in self.numbers().into_iter().enumerate() {
            if at > 0 {
                text.put(b'/');
            }
            text.number(number);
        }
        // Digits and slashes are what a field may hold.
        HeaderValue::from_bytes(text.bytes()).unwrap_or(HeaderValue::from_static("0/0/0/0"))
    }

    /// Reads a field's value; none, if it is no announcement.
    pub fn read(value: &[u8]) -> Option<Self> {
        let mut numbers = [0; 4];
        let mut parts = value.split(|byte| *byte == b'/');
        for number in &mut numbers {
            *number = read_number(parts.next()?)?;
        }
        parts.next().is_none().then(|| Self::of(numbers))
    }

    /// As bytes in a frame.
    pub fn bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        for (place, number) in bytes.chunks_exact_mut(4).zip(self.numbers()) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// Reads a frame's bytes; none, if they say nothing.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let (numbers, _) = bytes.as_chunks::<4>();
        let mut said = [0; 4];
        for (number, bytes) in said.iter_mut().zip(numbers) {
            *number = u32::from_be_bytes(*bytes);
        }
        // A sidecar that takes nothing of what it is said has nothing to say itself.
        (said != [u32::MAX; 4]).then(|| Self::of(said))
    }

    fn numbers(&self) -> [u32; 4] {
        [self.in_flight, self.capacity, self.latency, self.most]
    }

    fn of(numbers: [u32; 4]) -> Self {
        let [in_flight, capacity, latency, most] = numbers.map(|number| number.min(MOST));
        Self { in_flight, capacity, latency, most }
    }
}

fn read_number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 10 {
        return None;
    }
    text.iter().try_fold(0_u32, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

/// Four numbers, and what is between them.
const LONGEST: usize = 4 * 10 + 3;

/// A short text that is written without being allocated.
struct Text {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Text {
    fn put(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        digits[at..].iter().for_each(|digit| self.put(*digit));
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.in_flight, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for numbers in [[0, 1, 0, 0], [37, 64, 18_500, 128], [MOST; 4]] {
            let said = Announcement::of(numbers);
            assert_eq!(Announcement::read(said.value().as_bytes()), Some(said));
            assert_eq!(Announcement::from_bytes(&said.bytes()), Some(said));
        }
    }

    #[test]
    fn what_is_no_announcement_is_none() {
        for text in
            ["", "1", "1/2/3", "1/2/3/4/5", "1/2/3/x", "-1/2/3/4", "1//3/4", "1/2/3/99999999999", " 1/2/3/4"]
        {
            assert_eq!(Announcement::read(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Announcement::from_bytes(&[0xff; 16]), None);
        assert_eq!(Announcement::from_bytes(&[1; 8]), None);
    }

    #[test]
    fn what_is_beyond_belief_is_bounded() {
        let said = Announcement::read(b"4294967295/0/4294967295/4294967295").unwrap();
        assert_eq!(said, Announcement { in_flight: MOST, capacity: 0, latency: MOST, most: MOST });
    }
}
