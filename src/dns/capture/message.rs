//! Answers as bytes: where their records are, how long they may be kept, and what of them goes to
//! a client. Records pass unchanged but for their TTL, so every type does, known or not. Nothing
//! here panics on any bytes.

use std::ops::Range;

use hickory_resolver::proto::op::ResponseCode;

use super::question::{self, Question};
use crate::dns::server::Transport;
use crate::dns::wire;

/// What a TTL, the length of the data, type and class take in a record.
const RECORD_FIELDS: usize = 10;

const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;

/// The TTL of an answer past its own. RFC 8767 section 4 recommends 30 s, to spare the servers; here
/// they are spared by the cache, which asks no more often for it, and the application is fresh
/// again as soon as the cache is.
pub(super) const STALE_TTL: u32 = 5;

/// How long a denial without an SOA holds. RFC 2308 section 5 would not have it kept, lest two
/// caches feed it to each other for ever; but nobody except the pod asks us, and without this a
/// search list would cost such servers every one of its queries.
const DENIAL_WITHOUT_SOA: u32 = 5;

/// What an answer depends on: name, type, class, and the flags that make a server say other things.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(Box<[u8]>);

impl Key {
    const DNSSEC_OK: u8 = 1;
    const CHECKING_DISABLED: u8 = 2;

    /// The key of a question in any spelling.
    pub(super) fn new(question: &[u8], dnssec_ok: bool, checking_disabled: bool) -> Self {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(dnssec_ok, Self::DNSSEC_OK) | flag(checking_disabled, Self::CHECKING_DISABLED);
        let mut bytes = Vec::with_capacity(question.len() + 1);
        bytes.extend_from_slice(question);
        // What says how long a label is is below all letters.
        let name = question.len().saturating_sub(4);
        bytes[..name].make_ascii_lowercase();
        bytes.push(flags);
        Self(bytes.into())
    }

    /// Name, in lower case, type and class.
    pub(super) fn question(&self) -> &[u8] {
        self.0.split_last().map_or(&[], |(_, question)| question)
    }

    pub(super) fn dnssec_ok(&self) -> bool {
        self.0.last().is_some_and(|flags| flags & Self::DNSSEC_OK != 0)
    }

    pub(super) fn checking_disabled(&self) -> bool {
        self.0.last().is_some_and(|flags| flags & Self::CHECKING_DISABLED != 0)
    }
}

/// Goes through the records of a message.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    message: &'a [u8],
    at: usize,
}

/// Where a record is.
#[derive(Debug)]
pub(super) struct Place {
    /// Where its owner's name begins.
    pub(super) owner: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Where its TTL begins, which takes four bytes.
    pub(super) ttl: usize,
    data: Range<usize>,
}

impl Place {
    pub(super) fn data<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(self.data.clone()).unwrap_or_default()
    }
}

impl<'a> Walk<'a> {
    /// From `at`, where the first record begins.
    pub(super) fn new(message: &'a [u8], at: usize) -> Option<Self> {
        (message.len() >= at && at >= wire::HEADER).then_some(Self { message, at })
    }

    /// How many records the header promises: answers, authorities, additional ones.
    pub(super) fn counts(&self) -> [usize; 3] {
        [6, 8, 10].map(|at| usize::from(u16::from_be_bytes([self.message[at], self.message[at + 1]])))
    }

    /// The next record. `None` where there is no whole one.
    pub(super) fn next(&mut self) -> Option<Place> {
        let owner = self.at;
        let fields = skip_name(self.message, owner)?;
        let data = fields + RECORD_FIELDS;
        let &[k0, k1, c0, c1, _, _, _, _, l0, l1] = self.message.get(fields..data)?.first_chunk()?;
        let end = data + usize::from(u16::from_be_bytes([l0, l1]));
        if end > self.message.len() {
            return None;
        }
        self.at = end;
        let (kind, class) = (u16::from_be_bytes([k0, k1]), u16::from_be_bytes([c0, c1]));
        Some(Place { owner, kind, class, ttl: fields + 4, data: data..end })
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.message.len()
    }
}

/// Where the name that begins at `start` ends. A pointer leads back to before the name, so that no
/// chain of them turns in a circle.
fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            0xc0.. => {
                let target = (length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                return (wire::HEADER..start).contains(&target).then_some(at + 2);
            }
            _ => return None,
        }
    }
}

/// How old an answer is when it goes to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// So many seconds, begun ones included: no client keeps a record for longer than it lives.
    Seconds(u32),
    /// Past its end.
    Stale,
}

/// What an answer says, as far as it matters for how long it may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Records of the type, or the alias of the name; with the least TTL of the message.
    Records(u32),
    /// NXDOMAIN or NODATA; with its TTL.
    Denial(u32),
    /// Something that is passed on and not kept: cut, a referral, another code.
    Passing,
}

/// An answer whose records are known, without EDNS, which is each hop's own.
#[derive(Debug)]
pub(super) struct Reply {
    bytes: Vec<u8>,
    /// Where the first record begins.
    records: usize,
    /// How many of the records are answers, and how many authorities.
    answers: usize,
    authorities: usize,
    /// Where each record's TTL begins.
    ttls: Box<[u16]>,
    content: Content,
}

impl Reply {
    /// Reads a server's answer to `question`, which it repeats. `None` where its records are not
    /// what its header promises, or its code needs EDNS to be said.
    pub(super) fn read(mut bytes: Vec<u8>, question: &[u8]) -> Option<Self> {
        if wire::question(&bytes)?.len() != question.len() {
            return None;
        }
        let records = wire::HEADER + question.len();
        let mut walk = Walk::new(&bytes, records)?;
        let [answers, authorities, additionals] = walk.counts();
        let mut places = Vec::with_capacity((answers + authorities + additionals).min(64));
        for _ in 0..answers + authorities {
            places.push(walk.next()?);
        }
        // From EDNS on nothing is kept: as a rule it stands last, and what is additional may be
        // left out.
        let mut end = None;
        for _ in 0..additionals {
            let place = walk.next()?;
            match end {
                None if place.kind == wire::OPT_TYPE => {
                    if bytes[place.ttl] != 0 {
                        return None;
                    }
                    end = Some(place.owner);
                }
                None => places.push(place),
                Some(_) => {}
            }
        }
        if !walk.is_at_end() {
            return None;
        }
        let kind = question.last_chunk::<4>().map_or(0, |&[high, low, _, _]| u16::from_be_bytes([high, low]));
        let content = content(&bytes, kind, &places, answers, authorities);
        // Owners that repeat the name, not point to it, are spelled as we asked.
        let name = ..question.len().saturating_sub(4);
        for place in &places {
            if let Some(owner) = bytes[place.owner..].get_mut(name)
                && owner.eq_ignore_ascii_case(&question[name])
            {
                owner.copy_from_slice(&question[name]);
            }
        }
        if let Some(end) = end {
            bytes.truncate(end);
        }
        let additionals = u16::try_from(places.len() - answers - authorities).unwrap_or(u16::MAX);
        bytes[10..12].copy_from_slice(&additionals.to_be_bytes());
        let ttls = places.iter().map(|place| u16::try_from(place.ttl).unwrap_or(u16::MAX)).collect();
        Some(Self { bytes, records, answers, authorities, ttls, content })
    }

    /// An answer of our own: `records`, each without its owner, which is the name asked for.
    pub(super) fn of_records(question: &[u8], ttl: u32, records: impl Iterator<Item = Vec<u8>>) -> Self {
        const NAME: [u8; 2] = [0xc0, wire::HEADER as u8];
        // A response, recursion available.
        let mut bytes = vec![0, 0, 0x80, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(question);
        let start = bytes.len();
        let asked = question.last_chunk::<4>().copied().unwrap_or_default();
        let mut ttls = Vec::new();
        for data in records {
            // More than a message holds is no client's to use.
            if bytes.len() + NAME.len() + RECORD_FIELDS + data.len() > usize::from(u16::MAX) {
                break;
            }
            bytes.extend_from_slice(&NAME);
            bytes.extend_from_slice(&asked);
            ttls.push(bytes.len() as u16);
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&data);
        }
        let answers = ttls.len();
        bytes[6..8].copy_from_slice(&(answers as u16).to_be_bytes());
        let content = Content::Records(ttl);
        Self { bytes, records: start, answers, authorities: 0, ttls: ttls.into(), content }
    }

    pub(super) fn content(&self) -> Content {
        self.content
    }

    /// Its bytes in memory, near enough.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + 2 * self.ttls.len()
    }

    /// Brings every TTL within bounds, so that no client keeps a record for longer than the cache
    /// does, nor asks again sooner.
    pub(super) fn bound(&mut self, least: u32, most: u32) {
        for &at in &self.ttls {
            if let Some(ttl) = ttl_at(&mut self.bytes, at) {
                *ttl = sane(u32::from_be_bytes(*ttl)).max(least).min(most).to_be_bytes();
            }
        }
    }

    /// The answer as it goes to whoever asked `question`.
    pub(super) fn to(&self, question: &Question<'_>, age: Age, transport: Transport) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for &at in &self.ttls {
            if let Some(ttl) = ttl_at(&mut bytes, at) {
                *ttl = match age {
                    Age::Seconds(age) => u32::from_be_bytes(*ttl).saturating_sub(age),
                    Age::Stale => STALE_TTL,
                }
                .to_be_bytes();
            }
        }
        address(&mut bytes, question);
        // Said by a cache, nothing is authoritative.
        bytes[2] &= !wire::AA;
        if !question.wants_authentic() {
            bytes[3] &= !wire::AD;
        }
        // Lets the operator see it in `dig` (RFC 8914).
        let note = match (age, wire::code(&bytes)) {
            (Age::Stale, ResponseCode::NXDomain) => &[0, 15, 0, 2, 0, 19][..],
            (Age::Stale, _) => &[0, 15, 0, 2, 0, 3],
            _ => &[],
        };
        let edns = if question.has_edns() { wire::OPT + note.len() } else { 0 };
        self.fit(&mut bytes, question.room(transport).saturating_sub(edns));
        if question.has_edns() {
            append_opt(&mut bytes, question.dnssec_ok(), note);
        }
        bytes
    }

    /// Cuts a message to what a datagram holds: without its additional records, which nobody
    /// misses, or to as many whole answers as fit, with the mark that some are missing. Those that
    /// fit are of use to clients that have no TCP.
    fn fit(&self, bytes: &mut Vec<u8>, room: usize) {
        if bytes.len() <= room {
            return;
        }
        bytes[10..12].fill(0);
        let essential = self.end_of(bytes, self.answers + self.authorities);
        if essential <= room {
            bytes.truncate(essential);
            return;
        }
        let fits = (0..=self.answers).rev().find(|&count| self.end_of(bytes, count) <= room).unwrap_or(0);
        bytes.truncate(self.end_of(bytes, fits));
        bytes[2] |= wire::TC;
        bytes[6..8].copy_from_slice(&(fits as u16).to_be_bytes());
        bytes[8..10].fill(0);
    }

    /// Where the first `count` records end.
    fn end_of(&self, bytes: &[u8], count: usize) -> usize {
        let Some(last) = count.checked_sub(1).and_then(|last| self.ttls.get(last)) else {
            return self.records;
        };
        let data = usize::from(*last) + 6;
        let length = bytes.get(data - 2..data).and_then(|length| length.first_chunk());
        data + length.map_or(0, |length| usize::from(u16::from_be_bytes(*length)))
    }
}

/// An answer that is passed on as a server gave it, but for what is the client's: id, spelling and
/// the size of a datagram.
pub(super) fn pass(mut answer: Vec<u8>, question: &Question<'_>, transport: Transport) -> Vec<u8> {
    address(&mut answer, question);
    cut(&mut answer, question.room(transport));
    answer
}

/// The answer to another operation than a question, of which we know no more than the header.
pub(super) fn pass_other(mut answer: Vec<u8>, message: &[u8], transport: Transport) -> Vec<u8> {
    answer[..2].copy_from_slice(&message[..2]);
    cut(&mut answer, question::room(None, transport));
    answer
}

/// Cuts an answer that a datagram does not hold to its question.
fn cut(answer: &mut Vec<u8>, room: usize) {
    if answer.len() <= room {
        return;
    }
    let question = wire::question(answer).map_or(0, <[u8]>::len);
    answer.truncate(wire::HEADER + question);
    answer[2] |= wire::TC;
    answer[4..12].copy_from_slice(&[0, u8::from(question > 0), 0, 0, 0, 0, 0, 0]);
}

/// An answer with nothing but a code.
pub(super) fn refuse(message: &[u8], question: &Question<'_>, code: ResponseCode) -> Option<Vec<u8>> {
    let mut refusal = wire::refusal(message, code)?;
    if question.has_edns() {
        append_opt(&mut refusal, question.dnssec_ok(), &[]);
    }
    Some(refusal)
}

/// Gives an answer the id, the flags and the spelling of a question.
fn address(answer: &mut [u8], question: &Question<'_>) {
    answer[..2].copy_from_slice(&question.id());
    answer[2] = answer[2] & !wire::RD | if question.recursion_desired() { wire::RD } else { 0 };
    answer[3] = answer[3] & !wire::CD | if question.checking_disabled() { wire::CD } else { 0 };
    let spelled = question.spelled();
    if wire::question(answer).is_some_and(|asked| asked.len() == spelled.len()) {
        answer[wire::HEADER..wire::HEADER + spelled.len()].copy_from_slice(spelled);
    }
}

fn append_opt(answer: &mut Vec<u8>, dnssec_ok: bool, options: &[u8]) {
    wire::push_opt(answer, dnssec_ok, options);
    let additionals = u16::from_be_bytes([answer[10], answer[11]]).saturating_add(1);
    answer[10..12].copy_from_slice(&additionals.to_be_bytes());
}

fn content(bytes: &[u8], kind: u16, places: &[Place], answers: usize, authorities: usize) -> Content {
    let code = wire::code(bytes);
    let known = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    if !known || wire::is_truncated(bytes) {
        return Content::Passing;
    }
    let ttl =
        |place: &Place| bytes[place.ttl..].first_chunk().map_or(0, |ttl| sane(u32::from_be_bytes(*ttl)));
    let least = places.iter().map(ttl).min();
    let (answers, authorities) = (&places[..answers], &places[answers..answers + authorities]);
    let has = |kind| answers.iter().any(|place| place.kind == kind);
    if code == ResponseCode::NoError && has(kind) {
        return Content::Records(least.unwrap_or(0));
    }
    let soa = authorities.iter().find(|place| place.kind == SOA);
    if soa.is_none() && code == ResponseCode::NoError {
        if has(CNAME) {
            return Content::Records(least.unwrap_or(0));
        }
        // A referral: that server does not know.
        if authorities.iter().any(|place| place.kind == NS) {
            return Content::Passing;
        }
    }
    // The last of an SOA's fields bounds a denial, as does its TTL (RFC 2308 section 5).
    let minimum =
        soa.and_then(|soa| soa.data(bytes).last_chunk().map(|last| sane(u32::from_be_bytes(*last))));
    Content::Denial(minimum.unwrap_or(DENIAL_WITHOUT_SOA).min(least.unwrap_or(u32::MAX)))
}

fn ttl_at(bytes: &mut [u8], at: u16) -> Option<&mut [u8; 4]> {
    bytes.get_mut(usize::from(at)..)?.first_chunk_mut()
}

/// A TTL with the highest bit set counts as none (RFC 2181 section 8).
fn sane(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

#[cfg(test)]
mod tests;
