use std::net::SocketAddr;
use std::sync::Arc;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::net::{TcpStream, UdpSocket};

use super::*;
use crate::dns::Capture;
use crate::dns::server::{read_message, write_message};

pub(super) struct Captured {
    pub(super) address: SocketAddr,
    pub(super) capture: Arc<Capture>,
    _server: Server,
}

pub(super) fn capture(servers: &[SocketAddr], names: &[&str]) -> Captured {
    capture_with(&settings(servers), names)
}

pub(super) fn capture_with(settings: &model::Dns, names: &[&str]) -> Captured {
    capture_by(settings, resolver_with(settings, NONE, NONE), names)
}

fn capture_by(settings: &model::Dns, resolver: Arc<Resolver>, names: &[&str]) -> Captured {
    let (udp, tcp) = bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = udp.local_addr().expect("an address");
    let capture = Capture::new(settings, resolver);
    capture.replace_names(names.iter().copied());
    let server = capture.serve(vec![udp], vec![tcp]).expect("started");
    Captured { address, capture, _server: server }
}

pub(super) fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query.to_vec().expect("encoded")
}

pub(super) async fn ask_raw(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.send_to(query, server).await.expect("sent");
    let mut buffer = vec![0; 4096];
    let (length, from) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer))
        .await
        .expect("in time")
        .expect("received");
    assert_eq!(from, server);
    assert_eq!(buffer[..2], query[..2], "the id is the query's");
    buffer.truncate(length);
    buffer
}

pub(super) async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    Message::from_vec(&ask_raw(server, &query(name, kind)).await).expect("readable")
}

pub(super) fn answers(message: &Message) -> Vec<(String, u32)> {
    message
        .answers
        .iter()
        .filter_map(|record| Some((record.data.ip_addr()?.to_string(), record.ttl)))
        .collect()
}

#[tokio::test]
async fn mesh_names_come_from_the_cache_with_what_is_left() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.1", "fd00::1"]));
    let captured = capture(&[server.address], &["orders.mesh"]);
    for (kind, address) in [(RecordType::A, "10.0.0.1"), (RecordType::AAAA, "fd00::1")] {
        // The second family may arrive after the first answered; then it is the next question's.
        let answer = loop {
            let answer = ask(captured.address, "Orders.mesh.", kind).await;
            if !answer.answers.is_empty() {
                break answer;
            }
        };
        let [(got, ttl)] = &answers(&answer)[..] else { panic!("{answer:?}") };
        assert_eq!(got, address);
        assert!((200..300).contains(ttl), "{ttl}");
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.queries[0].name.to_ascii(), "Orders.mesh.", "the question as it was asked");
    }
    assert_eq!(server.asked_for(RecordType::A), 1);
}

#[tokio::test]
async fn a_family_that_nobody_answers_for_keeps_no_client_waiting() {
    let server = Scripted::start(|query, _| match kind(query) {
        RecordType::A => with(query, 300, &["10.0.0.1"]),
        _ => Step::Silence,
    });
    let captured = capture(&[server.address], &["orders.mesh"]);
    ask(captured.address, "orders.mesh.", RecordType::A).await;
    // While it is being asked for the first time, nothing can be said.
    let first = ask(captured.address, "orders.mesh.", RecordType::AAAA).await;
    assert_eq!(first.metadata.response_code, ResponseCode::ServFail);
    let asked = server.asked_for(RecordType::AAAA);
    let answer = ask(captured.address, "orders.mesh.", RecordType::AAAA).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    assert!(server.asked_for(RecordType::AAAA) <= asked + 1, "of the resolver's own at most");
}

#[tokio::test]
async fn other_names_and_types_pass_untouched() {
    let odd = |query: &Message| {
        let mut reply = query.to_vec().expect("encoded");
        // A response with one record of a type nobody knows: name, type 65400, class, TTL, data.
        reply[2] |= 0x80;
        reply[7] = 1;
        reply.truncate(12 + query.queries[0].name.len() + 1 + 4);
        reply[10..12].fill(0);
        reply.extend_from_slice(&[0xc0, 12, 0xff, 0x78, 0, 1, 0, 0, 0, 9, 0, 3, 1, 2, 3]);
        reply
    };
    let server = Scripted::start(move |query, _| match kind(query) {
        RecordType::Unknown(65400) => Step::Raw(odd(query)),
        _ => with(query, 7, &["10.0.0.9"]),
    });
    let captured = capture(&[server.address], &["orders.mesh"]);
    let elsewhere = ask(captured.address, "elsewhere.example.", RecordType::A).await;
    assert_eq!(answers(&elsewhere), [("10.0.0.9".into(), 7)]);
    // Asked for a mesh name too, another type than an address is the server's to answer.
    for name in ["elsewhere.example.", "orders.mesh."] {
        let raw = ask_raw(captured.address, &query(name, RecordType::Unknown(65400))).await;
        assert_eq!(raw[raw.len() - 13..], [0xff, 0x78, 0, 1, 0, 0, 0, 9, 0, 3, 1, 2, 3]);
    }
}

#[tokio::test]
async fn truncation_reaches_the_client_and_tcp_brings_all() {
    let all: Vec<String> = (0..200).map(|n| format!("10.0.1.{n}")).collect();
    let server = Scripted::start(move |query, _| {
        with(query, 300, &all.iter().map(String::as_str).collect::<Vec<_>>())
    });
    for mesh in [&["big.mesh"][..], &[]] {
        let captured = capture(&[server.address], mesh);
        let query = query("big.mesh.", RecordType::A);
        let cut = ask_raw(captured.address, &query).await;
        assert!(wire::is_truncated(&cut) && cut.len() <= 512);
        assert!(!Message::from_vec(&cut).expect("readable").answers.is_empty(), "what fits is there");
        let mut stream = TcpStream::connect(captured.address).await.expect("connected");
        // Two on one connection.
        for _ in 0..2 {
            write_message(&mut stream, &query).await.expect("written");
            let whole = tokio::time::timeout(PATIENCE, read_message(&mut stream)).await;
            let whole = Message::from_vec(&whole.expect("in time").expect("read")).expect("readable");
            assert_eq!(whole.answers.len(), 200);
        }
    }
}

#[tokio::test]
async fn the_names_follow_a_reload() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let captured = capture(&[server.address], &[]);
    ask(captured.address, "orders.mesh.", RecordType::A).await;
    assert_eq!(captured.capture.snapshot().mesh, 0);
    captured.capture.replace_names(["ORDERS.mesh"]);
    for _ in 0..3 {
        ask(captured.address, "orders.mesh.", RecordType::A).await;
    }
    assert_eq!(captured.capture.snapshot().mesh, 3);
    assert_eq!(server.asked_for(RecordType::A), 2, "asked once more, and kept");
}

#[tokio::test]
async fn what_a_search_list_makes_of_a_mesh_name_is_that_name() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        "orders.shop.mesh." => with(query, 300, &["10.0.0.1"]),
        _ => code(query, ResponseCode::NXDomain),
    });
    let resolv_conf = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&resolv_conf, "search other.mesh shop.mesh\noptions ndots:5\n").expect("written");
    let settings = settings(&[server.address]);
    let resolver = resolver_with(&settings, resolv_conf.path(), NONE);
    let mut watched = resolver.watch("orders");
    let captured = capture_by(&settings, resolver, &["orders"]);
    addresses(&mut watched, &["10.0.0.1"]).await;
    eventually(|| server.asked_for(RecordType::AAAA) > 0).await;
    let asked = server.asked_for(RecordType::A);
    let answer = ask(captured.address, "orders.shop.mesh.", RecordType::A).await;
    assert_eq!(answers(&answer)[0].0, "10.0.0.1");
    assert_eq!((captured.capture.snapshot().mesh, server.asked_for(RecordType::A)), (1, asked));
    let answer = ask(captured.address, "orders.other.mesh.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn servers_are_tried_in_turn_and_silence_is_servfail() {
    let silent = Scripted::start(|_, _| Step::Silence);
    let failing = Scripted::start(|query, _| code(query, ResponseCode::ServFail));
    let good = Scripted::start(|query, _| with(query, 7, &["10.0.0.9"]));
    let captured = capture(&[silent.address, failing.address, good.address], &[]);
    let answer = ask(captured.address, "elsewhere.example.", RecordType::A).await;
    assert_eq!(answers(&answer), [("10.0.0.9".into(), 7)]);

    let captured = capture(&[silent.address], &[]);
    let answer = ask(captured.address, "elsewhere.example.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(answer.queries[0].name.to_ascii(), "elsewhere.example.");
}

#[tokio::test]
async fn all_servers_together_take_no_longer_than_a_resolution_may() {
    let silent = Scripted::start(|_, _| Step::Silence);
    let settings = model::Dns {
        resolution_timeout: Time(Duration::from_millis(300)),
        timeout: Time(Duration::from_secs(3600)),
        ..settings(&[silent.address; 3])
    };
    let captured = capture_with(&settings, &[]);
    for kind in [RecordType::A, RecordType::ANY] {
        let answer = ask(captured.address, "elsewhere.example.", kind).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    }
}

#[tokio::test]
async fn what_is_no_question_is_passed_on_or_refused() {
    let server = Scripted::start(|query, _| {
        let mut reply = wire::reply_to(query);
        reply.metadata.response_code = ResponseCode::NotAuth;
        Step::Reply(Box::new(reply))
    });
    let captured = capture(&[server.address], &["orders.mesh"]);
    let mut notify = query("orders.mesh.", RecordType::SOA);
    notify[2] |= 4 << 3;
    let answer = Message::from_vec(&ask_raw(captured.address, &notify).await).expect("readable");
    assert_eq!(
        (answer.metadata.op_code, answer.metadata.response_code),
        (OpCode::Notify, ResponseCode::NotAuth)
    );
    let asked = server.asked().len();
    let mut two = Message::from_vec(&query("orders.mesh.", RecordType::A)).expect("readable");
    two.add_query(two.queries[0].clone());
    let mut pointing = query("orders.mesh.", RecordType::A);
    pointing[12..14].copy_from_slice(&[0xc0, 12]);
    for malformed in [two.to_vec().expect("encoded"), pointing] {
        let answer = ask_raw(captured.address, &malformed).await;
        assert_eq!(wire::code(&answer), ResponseCode::FormErr);
    }
    let transfer = ask(captured.address, "mesh.", RecordType::AXFR).await;
    assert_eq!(transfer.metadata.response_code, ResponseCode::NotImp);
    assert_eq!(server.asked().len(), asked);
    assert_eq!(captured.capture.snapshot().failed, 3);
}

#[tokio::test]
async fn any_bytes_leave_it_serving() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let captured = capture(&[server.address], &["orders.mesh"]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    // Too short for a query, or a response: never answered, never forwarded.
    for length in 0..12 {
        socket.send_to(&vec![7; length], captured.address).await.expect("sent");
    }
    for length in 12..600 {
        let mut noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect();
        noise[2] |= 0x80;
        socket.send_to(&noise, captured.address).await.expect("sent");
    }
    let answer = ask(captured.address, "orders.mesh.", RecordType::A).await;
    assert_eq!(answers(&answer)[0].0, "10.0.0.1");
    assert!(socket.try_recv(&mut [0; 512]).is_err());
    assert!(server.asked().iter().all(|asked| asked.name == "orders.mesh."));
}
