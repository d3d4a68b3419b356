//! What capture keeps, and what it asks the servers for again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hickory_resolver::proto::op::Edns;
use hickory_resolver::proto::rr::rdata::SOA;
use hickory_resolver::proto::rr::rdata::opt::EdnsOption;
use tokio::net::{TcpStream, UdpSocket};

use super::capture::{answers, ask, ask_raw, capture, capture_with, query};
use super::*;
use crate::dns::server::{read_message, write_message};

const SECOND: Duration = Duration::from_secs(1);
const NAME: &str = "elsewhere.example.";

/// Patient enough that no query is repeated while a test holds its answer.
fn patient(server: &Scripted) -> model::Dns {
    model::Dns {
        timeout: Time(600 * SECOND),
        resolution_timeout: Time(600 * SECOND),
        ..settings(&[server.address])
    }
}

fn denied(query: &Message, minimum: u32) -> Step {
    let mut reply = wire::reply_to(query);
    reply.metadata.response_code = ResponseCode::NXDomain;
    let zone = Name::from_ascii("example.").expect("a name");
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, minimum);
    reply.add_authority(Record::from_rdata(zone, 3600, RData::SOA(soa)));
    Step::Reply(Box::new(reply))
}

/// A server that can be switched off.
fn switched(ttl: u32) -> (Scripted, Arc<AtomicBool>) {
    let on = Arc::new(AtomicBool::new(true));
    let server = Scripted::start({
        let on = on.clone();
        move |query, _| match on.load(Ordering::Relaxed) {
            true => with(query, ttl, &["10.0.0.9"]),
            false => Step::Silence,
        }
    });
    (server, on)
}

#[tokio::test]
async fn a_second_question_costs_no_query() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.9"]));
    let captured = capture(&[server.address], &[]);
    let first = ask(captured.address, NAME, RecordType::A).await;
    assert_eq!(answers(&first), [("10.0.0.9".into(), 300)]);
    later(20 * SECOND).await;
    let second = ask(captured.address, "ELSEWHERE.example.", RecordType::A).await;
    assert!((278..=280).contains(&answers(&second)[0].1), "{second:?}");
    assert_eq!(second.queries[0].name.to_ascii(), "ELSEWHERE.example.");
    assert_eq!(server.asked().len(), 1);
    assert_eq!(server.asked()[0].name, NAME);
    later(281 * SECOND).await;
    ask(captured.address, NAME, RecordType::A).await;
    assert_eq!(server.asked().len(), 2);
    let counts = captured.capture.snapshot();
    assert_eq!((counts.queries, counts.hits, counts.misses, counts.forwarded), (3, 1, 2, 2));
    assert!(counts.entries == 1 && counts.bytes > 50);
}

#[tokio::test]
async fn what_a_search_list_asks_for_in_vain_is_asked_for_once() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        NAME => with(query, 300, &["10.0.0.9"]),
        _ => denied(query, 20),
    });
    let captured = capture(&[server.address], &[]);
    let search = ["shop.svc.mesh.", "svc.mesh.", "mesh."].map(|domain| format!("{NAME}{domain}"));
    for _ in 0..5 {
        for kind in [RecordType::A, RecordType::AAAA] {
            for name in &search {
                let answer = ask(captured.address, name, kind).await;
                assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
                assert!(answer.authorities[0].ttl <= 20, "no longer than the denial");
            }
            ask(captured.address, NAME, kind).await;
        }
    }
    assert_eq!(server.asked().len(), 8);
    later(21 * SECOND).await;
    ask(captured.address, &search[0], RecordType::A).await;
    assert_eq!(server.asked().len(), 9);
}

#[tokio::test]
async fn however_many_ask_one_query_is_in_flight() {
    let gate = Gate::new();
    let server = Scripted::start({
        let gate = gate.clone();
        move |query, _| match (name(query).as_str(), with(query, 0, &["10.0.0.9"])) {
            (NAME, Step::Reply(reply)) => Step::Held(gate.clone(), reply),
            _ => with(query, 300, &["10.0.0.8"]),
        }
    });
    let captured = capture_with(&patient(&server), &[]);
    ask(captured.address, "known.example.", RecordType::A).await;
    // The first leaves before it is answered.
    let mut leaving = TcpStream::connect(captured.address).await.expect("connected");
    write_message(&mut leaving, &query(NAME, RecordType::A)).await.expect("written");
    eventually(|| server.asked().len() == 2).await;
    drop(leaving);
    let mut clients = Vec::new();
    for _ in 0..50 {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        client.send_to(&query(NAME, RecordType::A), captured.address).await.expect("sent");
        clients.push(client);
    }
    // They are read in their order: once this one is answered, all of them wait.
    ask(captured.address, "known.example.", RecordType::A).await;
    gate.open();
    for client in clients {
        let mut buffer = [0; 512];
        let received = tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await;
        let length = received.expect("in time").expect("received");
        let answer = Message::from_vec(&buffer[..length]).expect("readable");
        assert_eq!(answers(&answer), [("10.0.0.9".into(), 0)]);
    }
    assert_eq!(server.asked().len(), 2, "the known name, and this one");
    // Without a TTL it is not kept.
    ask(captured.address, NAME, RecordType::A).await;
    assert_eq!((server.asked().len(), captured.capture.snapshot().entries), (3, 1));
}

#[tokio::test]
async fn what_has_expired_serves_while_no_server_answers() {
    let (server, on) = switched(60);
    let settings =
        model::Dns { answer_timeout: Time(Duration::from_millis(100)), ..settings(&[server.address]) };
    let captured = capture_with(&settings, &[]);
    ask(captured.address, NAME, RecordType::A).await;
    on.store(false, Ordering::Relaxed);
    later(61 * SECOND).await;
    let stale = [("10.0.0.9".to_owned(), 5)];
    assert_eq!(answers(&ask(captured.address, NAME, RecordType::A).await), stale);
    // Sent twice, the refresh fails in its own time.
    eventually(|| server.asked().len() == 3).await;
    later(2 * SECOND).await;
    on.store(true, Ordering::Relaxed);
    later(20 * SECOND).await;
    let fresh = async {
        while answers(&ask(captured.address, NAME, RecordType::A).await) == stale {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, fresh).await.expect("fresh again");
}

#[tokio::test]
async fn after_a_failure_a_name_is_left_alone_for_a_while() {
    let failing = Arc::new(AtomicBool::new(false));
    let server = Scripted::start({
        let failing = failing.clone();
        move |query, _| match failing.load(Ordering::Relaxed) {
            false => with(query, 60, &["10.0.0.9"]),
            true => code(query, ResponseCode::Refused),
        }
    });
    let captured = capture(&[server.address], &[]);
    ask(captured.address, NAME, RecordType::A).await;
    failing.store(true, Ordering::Relaxed);
    later(61 * SECOND).await;
    for _ in 0..10 {
        // Known, it serves; unknown, it is refused as the server does.
        assert_eq!(answers(&ask(captured.address, NAME, RecordType::A).await), [("10.0.0.9".into(), 5)]);
        let unknown = ask(captured.address, "unknown.example.", RecordType::A).await;
        assert_eq!(unknown.metadata.response_code, ResponseCode::Refused);
    }
    assert_eq!(server.asked().len(), 3, "once each");
    later(2 * SECOND).await;
    failing.store(false, Ordering::Relaxed);
    assert_eq!(answers(&ask(captured.address, NAME, RecordType::A).await), [("10.0.0.9".into(), 60)]);
    assert_eq!(captured.capture.snapshot().stale, 10);
}

#[tokio::test]
async fn what_is_in_use_is_asked_for_ahead_of_its_end() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.9"]));
    let captured = capture(&[server.address], &[]);
    for _ in 0..2 {
        ask(captured.address, NAME, RecordType::A).await;
    }
    later(280 * SECOND).await;
    for _ in 0..5 {
        ask(captured.address, NAME, RecordType::A).await;
    }
    eventually(|| server.asked().len() == 2).await;
    let renewed = async {
        while answers(&ask(captured.address, NAME, RecordType::A).await)[0].1 < 250 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("renewed");
    assert_eq!((server.asked().len(), captured.capture.snapshot().prefetches), (2, 1));
}

#[tokio::test]
async fn what_a_server_truncates_is_kept_whole() {
    let all: Vec<String> = (0..200).map(|n| format!("10.0.1.{n}")).collect();
    let server = Scripted::start(move |query, _| {
        with(query, 300, &all.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let captured = capture(&[server.address], &[]);
    for _ in 0..3 {
        assert!(wire::is_truncated(&ask_raw(captured.address, &query(NAME, RecordType::A)).await));
        let mut stream = TcpStream::connect(captured.address).await.expect("connected");
        write_message(&mut stream, &query(NAME, RecordType::A)).await.expect("written");
        let whole = tokio::time::timeout(PATIENCE, read_message(&mut stream)).await.expect("in time");
        assert_eq!(Message::from_vec(&whole.expect("read")).expect("readable").answers.len(), 200);
    }
    let asked: Vec<Transport> = server.asked().iter().map(|asked| asked.transport).collect();
    assert_eq!(asked, [Transport::Udp, Transport::Tcp]);
}

#[tokio::test]
async fn a_server_whose_tcp_fails_is_believed_as_far_as_it_went() {
    let server = Scripted::start(|query, transport| match transport {
        Transport::Tcp => Step::Silence,
        Transport::Udp => {
            let Step::Reply(mut reply) = with(query, 300, &["10.0.0.9"]) else { unreachable!() };
            reply.metadata.truncation = true;
            Step::Reply(reply)
        }
    });
    let captured = capture(&[server.address], &[]);
    let cut = ask(captured.address, NAME, RecordType::A).await;
    assert!(cut.metadata.truncation && answers(&cut).len() == 1);
    assert_eq!(captured.capture.snapshot().entries, 0);
}

#[tokio::test]
async fn what_only_a_server_can_answer_is_asked_for_each_time() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.9"]));
    let captured = capture(&[server.address], &[]);
    let mut subnet = Message::from_vec(&query(NAME, RecordType::A)).expect("readable");
    let mut edns = Edns::new();
    edns.options_mut().insert(EdnsOption::Unknown(65001, vec![1, 2]));
    subnet.set_edns(edns);
    let mut own_data = query(NAME, RecordType::A);
    own_data[2] &= !1;
    let any = query(NAME, RecordType::ANY);
    for message in [subnet.to_vec().expect("encoded"), own_data, any] {
        let before = server.asked().len();
        for _ in 0..2 {
            ask_raw(captured.address, &message).await;
        }
        assert_eq!(server.asked().len(), before + 2);
    }
    assert_eq!(captured.capture.snapshot().entries, 0);
}

#[tokio::test]
async fn a_cookie_stays_between_us_and_its_client() {
    let server = Scripted::start(|query, _| {
        assert!(query.edns.as_ref().is_some_and(|edns| edns.options().as_ref().is_empty()));
        let Step::Reply(mut reply) = with(query, 300, &["10.0.0.9"]) else { unreachable!() };
        let edns = reply.edns.as_mut().expect("EDNS");
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![9; 16]));
        Step::Reply(reply)
    });
    let captured = capture(&[server.address], &[]);
    let mut baked = Message::from_vec(&query(NAME, RecordType::A)).expect("readable");
    let mut edns = Edns::new();
    edns.options_mut().insert(EdnsOption::Unknown(10, vec![7; 8]));
    baked.set_edns(edns);
    for _ in 0..2 {
        let raw = ask_raw(captured.address, &baked.to_vec().expect("encoded")).await;
        let answer = Message::from_vec(&raw).expect("readable");
        assert!(answer.edns.expect("EDNS").options().as_ref().is_empty());
        assert!(ask(captured.address, NAME, RecordType::A).await.edns.is_none());
    }
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_server_from_before_edns_is_asked_without_it() {
    let refusals = Arc::new(AtomicUsize::new(0));
    let server = Scripted::start({
        let refusals = refusals.clone();
        move |query, _| match query.edns {
            Some(_) => {
                refusals.fetch_add(1, Ordering::Relaxed);
                code(query, ResponseCode::FormErr)
            }
            None => with(query, 300, &["10.0.0.9"]),
        }
    });
    let captured = capture(&[server.address], &[]);
    assert_eq!(answers(&ask(captured.address, NAME, RecordType::A).await).len(), 1);
    assert_eq!(refusals.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn another_configuration_asks_again_and_serves_on_meanwhile() {
    let (server, on) = switched(300);
    let captured = capture(&[server.address], &[]);
    ask(captured.address, NAME, RecordType::A).await;
    captured.capture.reconfigure(&settings(&[server.address]));
    assert_eq!(answers(&ask(captured.address, NAME, RecordType::A).await)[0].1, 300);
    assert_eq!(server.asked().len(), 2);
    on.store(false, Ordering::Relaxed);
    let quick = model::Dns { answer_timeout: Time(Duration::ZERO), ..settings(&[server.address]) };
    captured.capture.reconfigure(&quick);
    assert_eq!(answers(&ask(captured.address, NAME, RecordType::A).await)[0].1, 5);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_passed_on_and_not_kept() {
    let server = Scripted::start(|query, _| {
        let Step::Reply(reply) = with(query, 300, &["10.0.0.9"]) else { unreachable!() };
        let mut bytes = reply.to_vec().expect("encoded");
        // More records than there are.
        bytes[7] = 9;
        Step::Raw(bytes)
    });
    let captured = capture(&[server.address], &[]);
    for asked in 1..3 {
        let raw = ask_raw(captured.address, &query("ELSEWHERE.example.", RecordType::A)).await;
        assert_eq!((raw[7], &raw[13..22]), (9, &b"ELSEWHERE"[..]));
        assert_eq!(server.asked().len(), asked);
    }
}
