//! A client's message as bytes: what it asks, what its sender can take, and whether the cache may
//! answer it. Nothing here panics on any bytes.
//!
//! A cache may answer where the answer depends on no more than its key. What it cannot judge is
//! not refused but passed on: a server may know what we do not.

use hickory_resolver::proto::op::ResponseCode;

use super::message::{Key, Walk};
use crate::dns::server::Transport;
use crate::dns::wire;

/// The largest datagram for a client that does not say what it takes (RFC 1035 section 2.3.4).
const PLAIN_DATAGRAM: u16 = 512;

const IN: u16 = 1;
/// Zone transfers, whole and in part.
const IXFR: u16 = 251;
const AXFR: u16 = 252;
/// Types that no record has: they ask for more than records (RFC 6895 section 3.1).
const ASKING_TYPES: std::ops::RangeInclusive<u16> = 128..=255;

/// Options that concern a client and the server it speaks to, which is us, and change no answer:
/// keepalive (RFC 7828), padding (RFC 7830), and the cookie (RFC 7873), of which a server that has
/// none says nothing.
const HOP_OPTIONS: [u16; 3] = [11, 12, 10];

/// What a message is.
#[derive(Debug)]
pub(super) enum Asked<'a> {
    /// One question.
    Question(Question<'a>),
    /// Another operation than a question: for the servers as it is.
    Other,
    /// To be answered with this code, by us.
    Refused(ResponseCode),
}

/// A message with one question.
#[derive(Debug)]
pub(super) struct Question<'a> {
    message: &'a [u8],
    /// Name, type and class, in the client's spelling.
    spelled: &'a [u8],
    edns: Option<Edns>,
    cacheable: bool,
}

#[derive(Debug, Clone, Copy)]
struct Edns {
    /// The largest datagram that the client takes.
    payload: u16,
    dnssec_ok: bool,
    /// Of a version that we speak, and with no option that could change the answer.
    understood: bool,
}

/// Reads a query, which has a whole header.
pub(super) fn read(message: &[u8]) -> Asked<'_> {
    let operation = message[2] >> 3 & 0x0f;
    if operation != 0 {
        return Asked::Other;
    }
    // More than one question has no meaning (RFC 9619).
    let Some(spelled) = wire::question(message) else { return Asked::Refused(ResponseCode::FormErr) };
    match read_rest(message, spelled) {
        // An answer of many messages, which nothing here passes on.
        Some(question) if matches!(question.kind(), IXFR | AXFR) => Asked::Refused(ResponseCode::NotImp),
        Some(question) => Asked::Question(question),
        None => Asked::Refused(ResponseCode::FormErr),
    }
}

/// Reads what follows the question. `None` where that is not what the header promises.
fn read_rest<'a>(message: &'a [u8], spelled: &'a [u8]) -> Option<Question<'a>> {
    let mut walk = Walk::new(message, wire::HEADER + spelled.len())?;
    let [answers, authorities, additionals] = walk.counts();
    let mut edns = None;
    // Records that stand in a query are updates of a kind, or sign it to the letter.
    let mut bare = answers == 0 && authorities == 0;
    for _ in 0..answers + authorities {
        walk.next()?;
    }
    for _ in 0..additionals {
        let record = walk.next()?;
        if record.kind != wire::OPT_TYPE {
            bare = false;
        } else if edns.is_some() || message[record.owner] != 0 {
            return None;
        } else {
            edns = Some(Edns::read(message, record.ttl, record.class, record.data(message))?);
        }
    }
    let mut question = Question { message, spelled, edns, cacheable: false };
    // As a resolver's client asks: recursion, and nothing in the bits that mean nothing here.
    let plain = message[2] & (wire::RD | wire::TC) == wire::RD && message[3] & !(wire::AD | wire::CD) == 0;
    question.cacheable = plain
        && bare
        && walk.is_at_end()
        && question.class() == IN
        && !ASKING_TYPES.contains(&question.kind())
        && edns.is_none_or(|edns| edns.understood);
    Some(question)
}

impl Edns {
    /// Reads the record: its class is a size, its TTL flags (RFC 6891 section 6.1).
    fn read(message: &[u8], ttl: usize, class: u16, mut options: &[u8]) -> Option<Self> {
        let [_, version, flags, _] = *message.get(ttl..)?.first_chunk::<4>()?;
        let mut understood = version == 0;
        while let Some((&[code_high, code_low, high, low], rest)) = options.split_first_chunk() {
            options = rest.get(usize::from(u16::from_be_bytes([high, low]))..)?;
            understood &= HOP_OPTIONS.contains(&u16::from_be_bytes([code_high, code_low]));
        }
        options.is_empty().then_some(Self { payload: class, dnssec_ok: flags & 0x80 != 0, understood })
    }
}

impl<'a> Question<'a> {
    /// The question's bytes, in the client's spelling.
    pub(super) fn spelled(&self) -> &'a [u8] {
        self.spelled
    }

    /// What the cache knows it by; `None` where only a server can answer.
    pub(super) fn key(&self) -> Option<Key> {
        self.cacheable.then(|| Key::new(self.spelled, self.dnssec_ok(), self.checking_disabled()))
    }

    pub(super) fn kind(&self) -> u16 {
        self.spelled.last_chunk::<4>().map_or(0, |&[high, low, _, _]| u16::from_be_bytes([high, low]))
    }

    fn class(&self) -> u16 {
        self.spelled.last_chunk::<2>().map_or(0, |&class| u16::from_be_bytes(class))
    }

    /// The name in lower case, without a final dot, where it is one of letters, digits, hyphens
    /// and underscores of the internet: any other is no host's.
    pub(super) fn host(&self) -> Option<String> {
        if self.class() != IN {
            return None;
        }
        let mut name = String::with_capacity(self.spelled.len());
        let mut rest = self.spelled;
        while let Some((&length, after)) = rest.split_first()
            && length != 0
        {
            let (label, after) = after.split_at_checked(length.into())?;
            if !label.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|&byte| char::from(byte.to_ascii_lowercase())));
            rest = after;
        }
        Some(name)
    }

    pub(super) fn id(&self) -> [u8; 2] {
        [self.message[0], self.message[1]]
    }

    pub(super) fn recursion_desired(&self) -> bool {
        self.message[2] & wire::RD != 0
    }

    pub(super) fn checking_disabled(&self) -> bool {
        self.message[3] & wire::CD != 0
    }

    /// Whether the client wants to hear what was validated (RFC 6840 section 5.7).
    pub(super) fn wants_authentic(&self) -> bool {
        self.message[3] & wire::AD != 0 || self.dnssec_ok()
    }

    pub(super) fn has_edns(&self) -> bool {
        self.edns.is_some()
    }

    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The longest answer that may go back.
    pub(super) fn room(&self, transport: Transport) -> usize {
        room(self.edns.map(|edns| edns.payload), transport)
    }
}

/// The longest answer for a client that announced this size, or none.
pub(super) fn room(announced: Option<u16>, transport: Transport) -> usize {
    usize::from(match transport {
        Transport::Udp => announced.unwrap_or(0).clamp(PLAIN_DATAGRAM, wire::MAX_DATAGRAM),
        Transport::Tcp => u16::MAX,
    })
}

#[cfg(test)]
mod tests;
