use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::rdata::opt::{ClientSubnet, EdnsOption};
use hickory_resolver::proto::rr::{Name, RecordType};
use proptest::prelude::*;

use super::*;

fn asking(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap()
}

fn with_option(option: EdnsOption) -> Vec<u8> {
    let mut message = asking("www.example.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    edns.options_mut().insert(option);
    message.set_edns(edns);
    bytes(&message)
}

fn key(message: &[u8]) -> Option<Key> {
    match read(message) {
        Asked::Question(question) => question.key(),
        _ => None,
    }
}

fn refused(message: &[u8]) -> Option<ResponseCode> {
    match read(message) {
        Asked::Refused(code) => Some(code),
        _ => None,
    }
}

#[test]
fn the_key_is_the_question_in_any_case_and_the_flags_that_count() {
    let plain = bytes(&asking("www.example.", RecordType::A));
    assert_eq!(key(&plain), key(&bytes(&asking("WWW.Example.", RecordType::A))));
    assert_ne!(key(&plain), key(&bytes(&asking("www.example.", RecordType::AAAA))));
    let mut disabled = plain.clone();
    disabled[3] |= wire::CD;
    assert_ne!(key(&plain), key(&disabled));
    let mut authentic = plain.clone();
    authentic[3] |= wire::AD;
    assert_eq!(key(&plain), key(&authentic), "decided when it is answered");
    let mut message = asking("www.example.", RecordType::A);
    message.set_edns(Edns::new());
    assert_eq!(key(&plain), key(&bytes(&message)));
    message.edns.as_mut().unwrap().set_dnssec_ok(true);
    assert_ne!(key(&plain), key(&bytes(&message)));
    assert!(key(&bytes(&message)).unwrap().dnssec_ok());
}

#[test]
fn what_a_cache_cannot_judge_is_for_a_server() {
    let plain = bytes(&asking("www.example.", RecordType::A));
    let changed = |at: usize, value: u8| {
        let mut message = plain.clone();
        message[at] = value;
        message
    };
    let end = plain.len();
    let cases = [
        ("no recursion", changed(2, 0)),
        ("a reserved bit", changed(3, 0x40)),
        ("another class", changed(end - 1, 3)),
        ("ANY", changed(end - 3, 255)),
        ("bytes behind it", [&plain[..], &[0]].concat()),
        ("a subnet", with_option(EdnsOption::Subnet(ClientSubnet::new([10, 0, 0, 0].into(), 8, 0)))),
        ("an unknown option", with_option(EdnsOption::Unknown(65001, vec![1]))),
    ];
    for (what, message) in cases {
        let Asked::Question(question) = read(&message) else { panic!("{what} is a question") };
        assert_eq!(question.key(), None, "{what}");
    }
    let cookie = with_option(EdnsOption::Unknown(10, vec![7; 8]));
    assert_eq!(key(&cookie), key(&plain), "a cookie is between the client and us");
}

#[test]
fn other_operations_pass_and_nonsense_is_refused() {
    let plain = bytes(&asking("www.example.", RecordType::A));
    let mut notify = plain.clone();
    notify[2] = 4 << 3;
    assert!(matches!(read(&notify), Asked::Other));
    let transfer = bytes(&asking("example.", RecordType::AXFR));
    assert_eq!(refused(&transfer), Some(ResponseCode::NotImp));

    let header = |tail: &[u8]| [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], tail].concat();
    let mut two = asking("www.example.", RecordType::A);
    two.add_query(two.queries[0].clone());
    let mut missing = plain.clone();
    missing[11] = 1;
    let long: Vec<u8> = [[63; 64]; 4].concat().into_iter().chain([0, 0, 1, 0, 1]).collect();
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let mut twice = [&plain[..], &opt, &opt].concat();
    twice[11] = 2;
    let mut short_option = [&plain[..], &opt[..10], &[3, 0, 10, 9]].concat();
    short_option[11] = 1;
    let cases = [
        ("two questions", bytes(&two)),
        ("none", vec![0, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("a pointer for a name", header(&[0xc0, 12, 0, 1, 0, 1])),
        ("a name that is too long", header(&long)),
        ("half a question", plain[..plain.len() - 2].to_vec()),
        ("a record that is not there", missing),
        ("EDNS twice", twice),
        ("an option beyond its record", short_option),
    ];
    for (what, message) in cases {
        assert_eq!(refused(&message), Some(ResponseCode::FormErr), "{what}");
    }
}

#[test]
fn a_datagram_is_no_longer_than_the_client_takes_and_no_path_fragments() {
    let room = |payload: Option<u16>, transport| {
        let mut message = asking("www.example.", RecordType::A);
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let message = bytes(&message);
        let Asked::Question(question) = read(&message) else { panic!("a question") };
        question.room(transport)
    };
    assert_eq!(room(None, Transport::Udp), 512);
    assert_eq!(room(Some(100), Transport::Udp), 512);
    assert_eq!(room(Some(1000), Transport::Udp), 1000);
    assert_eq!(room(Some(4096), Transport::Udp), 1232);
    assert_eq!(room(None, Transport::Tcp), 65535);
}

#[test]
fn a_hosts_name_is_lower_case_without_a_final_dot() {
    let host = |name: &str| {
        let message = bytes(&asking(name, RecordType::A));
        let Asked::Question(question) = read(&message) else { panic!("a question") };
        question.host()
    };
    assert_eq!(host("Orders.SHOP.mesh.").as_deref(), Some("orders.shop.mesh"));
    assert_eq!(host("_http._tcp.a-1.mesh.").as_deref(), Some("_http._tcp.a-1.mesh"));
    assert_eq!(host("a\\.b.mesh."), None, "a dot within a label is not one between two");
    assert_eq!(host(".").as_deref(), Some(""));
}

proptest! {
    /// Whatever comes is read without a panic, and answered by what it asks.
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 12..300)) {
        if let Asked::Question(question) = read(&bytes) {
            question.key();
            question.host();
            question.room(Transport::Udp);
        }
    }

    #[test]
    fn damaged_queries_are_read(changes in prop::collection::vec((2usize..60, any::<u8>()), 1..6)) {
        let mut bytes = with_option(EdnsOption::Unknown(10, vec![7; 8]));
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        if let Asked::Question(question) = read(&bytes) {
            prop_assert!(question.key().is_none_or(|key| key.question().len() == question.spelled().len()));
        }
    }
}
