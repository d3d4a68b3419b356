use std::net::IpAddr;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::rdata::{CNAME, NS, NULL, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;
use crate::dns::capture::question::{Asked, read};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn asking(spelled: &str, kind: RecordType, edns: Option<(u16, bool)>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(spelled), kind));
    if let Some((payload, dnssec_ok)) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns.set_dnssec_ok(dnssec_ok);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// A server's answer to us, about `www.example.`.
fn answer(kind: RecordType) -> Message {
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.add_query(Query::query(name("www.example."), kind));
    message
}

fn a(ttl: u32, last: u8) -> Record {
    Record::from_rdata(name("www.example."), ttl, RData::from(IpAddr::from([10, 0, 0, last])))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(data))
}

fn alias(ttl: u32) -> Record {
    Record::from_rdata(name("www.example."), ttl, RData::CNAME(CNAME(name("web.example."))))
}

fn reply(message: &Message) -> Reply {
    let bytes = message.to_vec().unwrap();
    let question = wire::question(&bytes).unwrap().to_vec();
    Reply::read(bytes, &question).unwrap()
}

/// What goes to the client that sent `query`.
fn given(reply: &Reply, query: &[u8], age: Age, transport: Transport) -> Message {
    let Asked::Question(question) = read(query) else { panic!("a question") };
    let bytes = reply.to(&question, age, transport);
    assert!(bytes.len() <= question.room(transport));
    Message::from_vec(&bytes).unwrap()
}

fn www() -> Vec<u8> {
    asking("www.example.", RecordType::A, None)
}

fn ttls(message: &Message) -> Vec<u32> {
    let sections = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    sections.map(|record| record.ttl).collect()
}

#[test]
fn every_record_is_as_old_as_the_answer() {
    let mut message = answer(RecordType::A);
    message.add_answers([a(300, 1), a(60, 2)]);
    message.add_authority(soa(1000, 10));
    message.add_additional(a(7, 3));
    let reply = reply(&message);
    assert_eq!(reply.content(), Content::Records(7));
    let at = |age| ttls(&given(&reply, &www(), age, Transport::Udp));
    assert_eq!(at(Age::Seconds(0)), [300, 60, 1000, 7]);
    assert_eq!(at(Age::Seconds(6)), [294, 54, 994, 1]);
    assert_eq!(at(Age::Seconds(100)), [200, 0, 900, 0]);
    assert_eq!(at(Age::Stale), [STALE_TTL; 4]);
}

#[test]
fn a_type_that_nobody_knows_passes_unchanged() {
    let kind = RecordType::Unknown(65400);
    let data = RData::Unknown { code: kind, rdata: NULL::with(vec![1, 2, 3, 0xc0, 12]) };
    let mut message = answer(kind);
    message.add_answer(Record::from_rdata(name("www.example."), 9, data.clone()));
    let reply = reply(&message);
    assert_eq!(reply.content(), Content::Records(9));
    let given = given(&reply, &asking("www.example.", kind, None), Age::Seconds(2), Transport::Udp);
    assert_eq!((&given.answers[0].data, given.answers[0].ttl), (&data, 7));
}

#[test]
fn how_long_an_answer_may_be_kept_is_what_it_says() {
    let ns = Record::from_rdata(name("example."), 50, RData::NS(NS(name("ns.example."))));
    let cases: [(&str, ResponseCode, &[Record], &[Record], Content); 12] = [
        ("records", ResponseCode::NoError, &[a(9, 1), a(5, 2)], &[], Content::Records(5)),
        ("an alias and records", ResponseCode::NoError, &[alias(3), a(5, 2)], &[], Content::Records(3)),
        ("an alias alone", ResponseCode::NoError, &[alias(3)], &[], Content::Records(3)),
        ("an alias to nothing", ResponseCode::NoError, &[alias(30)], &[soa(9, 20)], Content::Denial(9)),
        ("no such name", ResponseCode::NXDomain, &[], &[soa(60, 20)], Content::Denial(20)),
        ("no such name, SOA short", ResponseCode::NXDomain, &[], &[soa(4, 20)], Content::Denial(4)),
        ("no such type", ResponseCode::NoError, &[], &[soa(60, 20)], Content::Denial(20)),
        ("without an SOA", ResponseCode::NXDomain, &[], &[], Content::Denial(DENIAL_WITHOUT_SOA)),
        ("neither", ResponseCode::NoError, &[], &[], Content::Denial(DENIAL_WITHOUT_SOA)),
        ("a referral", ResponseCode::NoError, &[], std::slice::from_ref(&ns), Content::Passing),
        ("another code", ResponseCode::YXDomain, &[a(9, 1)], &[], Content::Passing),
        ("a TTL beyond all", ResponseCode::NoError, &[a(1 << 31, 1)], &[], Content::Records(0)),
    ];
    for (what, code, answers, authorities, content) in cases {
        let mut message = answer(RecordType::A);
        message.metadata.response_code = code;
        message.add_answers(answers.iter().cloned());
        message.add_authorities(authorities.iter().cloned());
        assert_eq!(reply(&message).content(), content, "{what}");
    }
    let mut cut = answer(RecordType::A);
    cut.add_answer(a(9, 1));
    cut.metadata.truncation = true;
    assert_eq!(reply(&cut).content(), Content::Passing, "cut");
}

#[test]
fn ttls_are_brought_within_bounds() {
    let mut message = answer(RecordType::A);
    message.add_answers([a(1, 1), a(50, 2), a(4000, 3), a(u32::MAX, 4)]);
    let mut reply = reply(&message);
    reply.bound(10, 300);
    assert_eq!(ttls(&given(&reply, &www(), Age::Seconds(0), Transport::Udp)), [10, 50, 300, 10]);
}

#[test]
fn each_client_gets_its_own_id_spelling_flags_and_edns() {
    let mut message = answer(RecordType::A);
    message.add_answer(a(9, 1));
    message.metadata.authentic_data = true;
    message.metadata.authoritative = true;
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let reply = reply(&message);
    let ask = |query: &[u8], age| given(&reply, query, age, Transport::Udp);

    let plain = ask(&asking("wWw.exAMple.", RecordType::A, None), Age::Seconds(0));
    assert_eq!((plain.metadata.id, plain.queries[0].name.to_ascii()), (4711, "wWw.exAMple.".into()));
    assert_eq!(plain.answers[0].name.to_ascii(), "wWw.exAMple.", "a pointer to the question");
    assert!(plain.edns.is_none() && !plain.metadata.authentic_data && !plain.metadata.authoritative);
    assert!(plain.metadata.recursion_desired && plain.metadata.recursion_available);

    let mut authentic = www();
    authentic[3] |= wire::AD;
    assert!(ask(&authentic, Age::Seconds(0)).metadata.authentic_data);

    let signed = ask(&asking("www.example.", RecordType::A, Some((4096, true))), Age::Seconds(0));
    let edns = signed.edns.unwrap();
    assert!(edns.flags().dnssec_ok && signed.metadata.authentic_data);
    assert_eq!(edns.max_payload(), wire::MAX_DATAGRAM);
    let unsigned = ask(&asking("www.example.", RecordType::A, Some((4096, false))), Age::Stale);
    assert!(!unsigned.edns.as_ref().unwrap().flags().dnssec_ok);
    assert_eq!(unsigned.edns.unwrap().options().as_ref().len(), 1, "says that it is stale");
}

#[test]
fn owners_that_repeat_the_name_are_spelled_as_it_was_asked_for() {
    let mut bytes = answer(RecordType::A).to_vec().unwrap();
    let question = wire::question(&bytes).unwrap().to_vec();
    bytes[wire::HEADER + 1] = b'W';
    bytes[7] = 1;
    bytes
        .extend_from_slice(b"\x03WwW\x07eXample\x00\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\x0a\x00\x00\x01");
    let reply = Reply::read(bytes, &question).unwrap();
    let given = given(&reply, &www(), Age::Seconds(0), Transport::Udp);
    assert_eq!(given.answers[0].name.to_ascii(), "www.example.");
}

#[test]
fn a_datagram_gets_as_many_whole_answers_as_it_holds() {
    let mut message = answer(RecordType::A);
    message.add_answers((0..200).map(|last| a(9, last)));
    message.add_authority(soa(9, 9));
    message.add_additional(a(9, 9));
    let reply = reply(&message);
    for edns in [None, Some((1000, false)), Some((4096, true))] {
        let query = asking("www.example.", RecordType::A, edns);
        let cut = given(&reply, &query, Age::Seconds(1), Transport::Udp);
        assert!(cut.metadata.truncation && cut.authorities.is_empty() && cut.additionals.is_empty());
        assert!((25..80).contains(&cut.answers.len()), "{}", cut.answers.len());
        let whole = given(&reply, &query, Age::Seconds(1), Transport::Tcp);
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 200));
        assert_eq!((whole.authorities.len(), whole.additionals.len()), (1, 1));
    }
}

#[test]
fn additional_records_give_way_without_a_mark() {
    let mut message = answer(RecordType::A);
    message.add_answers((0..25).map(|last| a(9, last)));
    message.add_additionals((0..25).map(|last| a(9, last)));
    let given = given(&reply(&message), &www(), Age::Seconds(0), Transport::Udp);
    assert_eq!((given.answers.len(), given.additionals.len()), (25, 0));
    assert!(!given.metadata.truncation);
}

#[test]
fn nothing_behind_edns_is_kept() {
    let mut bytes = answer(RecordType::A).to_vec().unwrap();
    let question = wire::question(&bytes).unwrap().to_vec();
    bytes[11] = 2;
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&opt);
    bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
    let reply = Reply::read(bytes.clone(), &question).unwrap();
    let given = given(&reply, &www(), Age::Seconds(0), Transport::Udp);
    assert!(given.additionals.is_empty() && given.edns.is_none());
    // A code that EDNS extends is not the one that the header shows.
    let at = bytes.len() - 16 - 6;
    bytes[at] = 1;
    assert!(Reply::read(bytes, &question).is_none());
}

#[test]
fn records_that_are_not_whole_are_none() {
    let mut message = answer(RecordType::A);
    message.add_answer(a(9, 1));
    let whole = message.to_vec().unwrap();
    let question = wire::question(&whole).unwrap().to_vec();
    for length in wire::HEADER..whole.len() {
        assert!(Reply::read(whole[..length].to_vec(), &question).is_none(), "{length} bytes");
    }
    assert!(Reply::read([&whole[..], &[0]].concat(), &question).is_none(), "a byte too many");
    let owner = wire::HEADER + question.len();
    for pointer in [owner, owner + 1, owner + 20, 3] {
        let mut turning = whole.clone();
        turning[owner] = 0xc0 | (pointer >> 8) as u8;
        turning[owner + 1] = pointer as u8;
        assert!(Reply::read(turning, &question).is_none(), "a pointer to {pointer}");
    }
}

#[test]
fn what_is_passed_fits_as_well() {
    let query = www();
    let Asked::Question(question) = read(&query) else { panic!("a question") };
    let mut message = answer(RecordType::A);
    message.add_answers((0..100).map(|last| a(9, last)));
    let bytes = message.to_vec().unwrap();
    let cut = Message::from_vec(&pass(bytes.clone(), &question, Transport::Udp)).unwrap();
    assert_eq!((cut.metadata.truncation, cut.metadata.id, cut.answers.len()), (true, 4711, 0));
    assert_eq!(pass(bytes.clone(), &question, Transport::Tcp).len(), bytes.len());
    let other = pass_other(bytes, &query, Transport::Udp);
    assert_eq!(Message::from_vec(&other).unwrap().metadata.id, 4711);
}

#[test]
fn our_own_answers_hold_no_more_than_a_message() {
    let question = wire::question(&www()).unwrap().to_vec();
    let own = Reply::of_records(&question, 5, (0..10_000).map(|_| vec![10, 0, 0, 1]));
    let whole = given(&own, &www(), Age::Seconds(0), Transport::Tcp);
    assert!(whole.answers.len() > 4000 && whole.answers.iter().all(|record| record.ttl == 5));
}

prop_compose! {
    /// An answer with all kinds of records, and its question.
    fn any_answer()(
        answers in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 1..40)), 0..60),
        authorities in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 1..40)), 0..5),
        edns in any::<bool>(),
    ) -> Vec<u8> {
        let kind = RecordType::Unknown(65400);
        let record = |(ttl, data): (u32, Vec<u8>)| {
            let data = RData::Unknown { code: kind, rdata: NULL::with(data) };
            Record::from_rdata(name("www.example."), ttl, data)
        };
        let mut message = answer(kind);
        message.add_answers(answers.into_iter().map(record));
        message.add_authorities(authorities.into_iter().map(record));
        if edns {
            message.set_edns(Edns::new());
        }
        message.to_vec().unwrap()
    }
}

proptest! {
    /// What is kept of any answer is a message for any client, at any age.
    #[test]
    fn a_patched_answer_can_be_read(
        bytes in any_answer(),
        age in prop::option::of(any::<u32>()),
        edns in prop::option::of((any::<u16>(), any::<bool>())),
    ) {
        let question = wire::question(&bytes).unwrap().to_vec();
        let mut reply = Reply::read(bytes, &question).unwrap();
        reply.bound(1, 3600);
        let query = asking("WWW.example.", RecordType::Unknown(65400), edns);
        let age = age.map_or(Age::Stale, Age::Seconds);
        let given = given(&reply, &query, age, Transport::Udp);
        prop_assert_eq!(given.edns.is_some(), edns.is_some());
        prop_assert!(ttls(&given).iter().all(|&ttl| ttl <= 3600));
    }

    /// A server may send anything.
    #[test]
    fn any_bytes_of_a_server_are_read(
        mut bytes in any_answer(),
        changes in prop::collection::vec((2usize..200, any::<u8>()), 0..8),
        noise in prop::collection::vec(any::<u8>(), 12..200),
    ) {
        let question = wire::question(&bytes).unwrap().to_vec();
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        let query = asking("www.example.", RecordType::Unknown(65400), None);
        let Asked::Question(asked) = read(&query) else { panic!("a question") };
        for bytes in [bytes, noise] {
            pass(bytes.clone(), &asked, Transport::Udp);
            pass_other(bytes.clone(), &query, Transport::Udp);
            if let Some(mut reply) = Reply::read(bytes, &question) {
                reply.bound(0, 300);
                prop_assert!(reply.to(&asked, Age::Seconds(1), Transport::Udp).len() <= 512);
                reply.to(&asked, Age::Stale, Transport::Tcp);
            }
        }
    }
}
