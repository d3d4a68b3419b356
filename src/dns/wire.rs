//! Messages as bytes: reading a query, making the answer to it, and matching a forwarded answer to
//! its query. Nothing here panics on any bytes.

use hickory_resolver::proto::op::{Edns, Message, Metadata, ResponseCode};

use super::server::Transport;

/// The fixed part of every message (RFC 1035 section 4.1.1).
pub(super) const HEADER: usize = 12;

/// Recursion is desired: a bit of a message's third byte, as are the next two.
pub(super) const RD: u8 = 0x01;
/// The answer was cut.
pub(super) const TC: u8 = 0x02;
/// The server is the name's own.
pub(super) const AA: u8 = 0x04;
/// The data was validated: a bit of the fourth byte, as is the next.
pub(super) const AD: u8 = 0x20;
/// Validation is not wanted.
pub(super) const CD: u8 = 0x10;

/// The type of the record that carries EDNS (RFC 6891), and its length without options.
pub(super) const OPT_TYPE: u16 = 41;
pub(super) const OPT: usize = 11;

/// The longest name, as bytes (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;

/// The largest datagram that we send, and announce to take: one that no path fragments.
pub(super) const MAX_DATAGRAM: u16 = 1232;

/// The query in a message, or what to say to one that is not readable: `None` where it is no query
/// at all, and an answer could only feed a loop.
pub(super) fn read_query(message: &[u8]) -> Result<Message, Option<Vec<u8>>> {
    if !is_query(message) {
        return Err(None);
    }
    Message::from_vec(message).map_err(|_| refusal(message, ResponseCode::FormErr))
}

/// Whether a message has a whole header that says it is a query.
pub(super) fn is_query(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & 0x80 == 0
}

/// The beginning of the answer to a query: its id and question, and EDNS where it has it.
pub(super) fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM);
        reply.set_edns(edns);
    }
    reply
}

/// An answer's bytes, cut to a truncated one where the asker's datagram cannot hold it.
pub(super) fn encode(reply: &Message, query: &Message, transport: Transport) -> Option<Vec<u8>> {
    let room = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => usize::from(query.max_payload().min(MAX_DATAGRAM)),
    };
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= room { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

/// An answer with nothing but a code: to the question where that can be read, else to the header.
pub(super) fn refusal(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    if !is_query(query) {
        return None;
    }
    let question = question(query).unwrap_or_default();
    let mut reply = Vec::with_capacity(HEADER + question.len());
    reply.extend_from_slice(&query[..2]);
    // A response of the same operation, with recursion desired as it was and available.
    reply.push(0x80 | (query[2] & 0x79));
    reply.push(0x80 | code.low());
    reply.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    reply.extend_from_slice(question);
    Some(reply)
}

/// Appends our EDNS record, with these options, which are few and short.
pub(super) fn push_opt(message: &mut Vec<u8>, dnssec_ok: bool, options: &[u8]) {
    // The root's name, the type, and what a record of another type would have as class and TTL.
    message.push(0);
    message.extend_from_slice(&OPT_TYPE.to_be_bytes());
    message.extend_from_slice(&MAX_DATAGRAM.to_be_bytes());
    message.extend_from_slice(&[0, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    message.extend_from_slice(&(options.len() as u16).to_be_bytes());
    message.extend_from_slice(options);
}

/// Room for the answer to a datagram: what the asker announced, and enough for a server that sends
/// more than was asked for.
pub(super) fn datagram_room(query: &[u8]) -> usize {
    const LEAST: u16 = 4096;
    Message::from_vec(query).map_or(u16::MAX, |query| query.max_payload().max(LEAST)).into()
}

/// Whether `answer` answers `query`: a response with its id and its question. A server that could
/// not read the question may leave it out.
pub(super) fn answers(query: &[u8], answer: &[u8]) -> bool {
    if answer.len() < HEADER || query.len() < HEADER {
        return false;
    }
    let is_response = answer[2] & 0x80 != 0;
    let same_id = answer[..2] == query[..2];
    let same_question = match (question(query), question(answer)) {
        (Some(asked), Some(answered)) => same_question(asked, answered),
        (asked, None) => asked.is_none() || (is_failure(answer) && answer[4..6] == [0, 0]),
        (None, Some(_)) => false,
    };
    is_response && same_id && same_question
}

/// Whether `answer` repeats the question of `query` letter for letter.
pub(super) fn repeats(query: &[u8], answer: &[u8]) -> bool {
    question(query).is_some_and(|asked| question(answer) == Some(asked))
}

/// Whether an answer says no more than that this server has none: FORMERR, SERVFAIL, NOTIMP or
/// REFUSED.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| matches!(flags & 0x0f, 1 | 2 | 4 | 5))
}

/// What an answer says of how it went.
pub(super) fn code(answer: &[u8]) -> ResponseCode {
    ResponseCode::from_low(answer.get(3).map_or(0, |flags| flags & 0x0f))
}

/// Whether an answer was cut to fit a datagram.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & TC != 0)
}

/// The bytes of the one question: its name, type and class. `None` where there is not exactly one,
/// or its name is too long, or compressed, which a first name cannot be.
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return message.get(HEADER..at + 5),
            1..=63 if at + 1 + length < HEADER + MAX_NAME => at += 1 + length,
            _ => return None,
        }
    }
}

/// Names match in any case (RFC 1035 section 2.3.3), type and class exactly.
fn same_question(a: &[u8], b: &[u8]) -> bool {
    let (Some((a_name, a_type)), Some((b_name, b_type))) =
        (a.split_last_chunk::<4>(), b.split_last_chunk::<4>())
    else {
        return false;
    };
    a_name.eq_ignore_ascii_case(b_name) && a_type == b_type
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{MessageType, OpCode, Query};
    use hickory_resolver::proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        query
    }

    #[test]
    fn a_refusal_repeats_the_question() {
        let bytes = query("orders.mesh.").to_vec().unwrap();
        let refusal = refusal(&bytes, ResponseCode::ServFail).unwrap();
        let read = Message::from_vec(&refusal).unwrap();
        assert_eq!(read.metadata.message_type, MessageType::Response);
        assert_eq!(read.metadata.response_code, ResponseCode::ServFail);
        assert_eq!((read.metadata.id, &read.queries), (7, &query("orders.mesh.").queries));
        assert!(answers(&bytes, &refusal));
    }

    #[test]
    fn an_unreadable_query_is_refused_and_a_response_is_not_answered() {
        let mut bytes = query("orders.mesh.").to_vec().unwrap();
        bytes.truncate(bytes.len() - 3);
        let refusal = read_query(&bytes).unwrap_err().unwrap();
        assert_eq!(Message::from_vec(&refusal).unwrap().metadata.response_code, ResponseCode::FormErr);
        bytes[2] |= 0x80;
        assert_eq!(read_query(&bytes).unwrap_err(), None);
    }

    #[test]
    fn an_answer_is_to_the_same_question() {
        let asked = query("orders.mesh.").to_vec().unwrap();
        let reply = |name: &str| reply_to(&query(name)).to_vec().unwrap();
        assert!(answers(&asked, &reply("ORDERS.mesh.")));
        assert!(!answers(&asked, &reply("orders.mess.")));
        assert!(!answers(&asked, &asked), "a query is no answer");
        let mut other_type = reply("orders.mesh.");
        let at = other_type.len() - 3;
        other_type[at] = 28;
        assert!(!answers(&asked, &other_type));
        let header = [0, 7, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(answers(&asked, &header), "FORMERR without a question");
        assert!(!answers(&asked, &[0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "but not NOERROR");
    }

    #[test]
    fn a_datagram_holds_what_the_asker_can_take() {
        use hickory_resolver::proto::rr::{RData, Record};
        let mut asked = query("orders.mesh.");
        let mut reply = reply_to(&asked);
        let address = RData::from(std::net::IpAddr::from([10, 0, 0, 1]));
        let name = asked.queries[0].name.clone();
        reply.add_answers((0..60).map(|_| Record::from_rdata(name.clone(), 1, address.clone())));
        let cut = |asked: &Message, transport| is_truncated(&encode(&reply, asked, transport).unwrap());
        assert!(cut(&asked, Transport::Udp));
        assert!(!cut(&asked, Transport::Tcp));
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        asked.set_edns(edns);
        assert!(!cut(&asked, Transport::Udp));
    }

    proptest! {
        /// Whatever bytes come, reading ends, and what is said to them is a response to them.
        #[test]
        fn any_bytes_are_read_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            other in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            match read_query(&bytes) {
                Ok(query) => {
                    let reply = encode(&reply_to(&query), &query, Transport::Udp);
                    prop_assert!(reply.is_none_or(|reply| reply[..2] == bytes[..2]));
                }
                Err(refusal) => prop_assert!(refusal.is_none_or(|refusal| answers(&bytes, &refusal))),
            }
            answers(&bytes, &other);
            answers(&other, &bytes);
        }

        /// The same for a readable query with some of its bytes changed.
        #[test]
        fn a_damaged_query_is_read_without_panic(changes in prop::collection::vec((0usize..29, any::<u8>()), 1..6)) {
            let mut bytes = query("orders.mesh.").to_vec().unwrap();
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            if let Ok(query) = read_query(&bytes) {
                encode(&reply_to(&query), &query, Transport::Udp);
            }
            refusal(&bytes, ResponseCode::ServFail);
        }
    }
}
