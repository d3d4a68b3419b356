//! Answers that come from somebody else than the server that was asked, or to another question,
//! are passed over, and waiting goes on.

use hickory_resolver::proto::op::ResponseCode;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::capture::{Captured, answers, ask, capture_with, query};
use super::*;

const NAME: &str = "elsewhere.example.";

/// A server whose datagrams a test sends itself.
struct ByHand(UdpSocket);

impl ByHand {
    async fn start() -> Self {
        Self(UdpSocket::bind("127.0.0.1:0").await.expect("a socket"))
    }

    fn captured(&self, mixed_case: bool) -> Captured {
        let address = self.0.local_addr().expect("an address");
        let timeout = Time(Duration::from_secs(600));
        let settings =
            model::Dns { timeout, resolution_timeout: timeout, mixed_case, ..settings(&[address]) };
        capture_with(&settings, &[])
    }

    /// The next query, and who sent it.
    async fn asked(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 4096];
        let received = tokio::time::timeout(PATIENCE, self.0.recv_from(&mut buffer)).await;
        let (length, from) = received.expect("in time").expect("received");
        buffer.truncate(length);
        (buffer, from)
    }
}

fn asking(captured: &Captured) -> JoinHandle<Message> {
    let address = captured.address;
    tokio::spawn(async move { ask(address, NAME, RecordType::A).await })
}

/// The answer to a query of ours, with this address.
fn answer(query: &[u8], address: &str) -> Vec<u8> {
    let Step::Reply(reply) = with(&Message::from_vec(query).expect("readable"), 60, &[address]) else {
        unreachable!()
    };
    let mut bytes = reply.to_vec().expect("encoded");
    let question = wire::question(query).expect("a question");
    bytes[12..12 + question.len()].copy_from_slice(question);
    bytes
}

#[tokio::test]
async fn a_forged_answer_is_passed_over() {
    let server = ByHand::start().await;
    let captured = server.captured(false);
    let client = asking(&captured);
    let (query, from) = server.asked().await;
    assert_ne!(query[..2], [0, 0]);
    let evil = answer(&query, "10.6.6.6");
    let changed = |at: usize, mask: u8| {
        let mut evil = evil.clone();
        evil[at] ^= mask;
        evil
    };
    let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let type_at = 12 + NAME.len() + 2;
    // From elsewhere, with all that there is to know.
    stranger.send_to(&evil, from).await.expect("sent");
    // From the server's address: every other id, another name, another type, no response at all.
    for id in 1..=u8::MAX {
        server.0.send_to(&changed(1, id), from).await.expect("sent");
    }
    for forged in [changed(13, 0x01), changed(type_at, 0x1d), changed(2, 0x80), evil[..11].to_vec()] {
        server.0.send_to(&forged, from).await.expect("sent");
    }
    server.0.send_to(&answer(&query, "10.0.0.9"), from).await.expect("sent");
    assert_eq!(answers(&client.await.expect("answered")), [("10.0.0.9".into(), 60)]);
}

#[tokio::test]
async fn with_mixed_case_an_answer_repeats_every_letter() {
    let server = ByHand::start().await;
    let captured = server.captured(true);
    let client = asking(&captured);
    let (query, from) = server.asked().await;
    let spelled = wire::question(&query).expect("a question");
    assert!(spelled.eq_ignore_ascii_case(wire::question(&self::query(NAME, RecordType::A)).expect("one")));
    for at in 13..13 + "elsewhere".len() {
        let mut forged = answer(&query, "10.6.6.6");
        forged[at] ^= 0x20;
        server.0.send_to(&forged, from).await.expect("sent");
    }
    // A failure without the question repeats nothing either.
    let mut failure = query[..12].to_vec();
    failure[2..12].copy_from_slice(&[0x81, 0x80 | ResponseCode::ServFail.low(), 0, 0, 0, 0, 0, 0, 0, 0]);
    server.0.send_to(&failure, from).await.expect("sent");
    server.0.send_to(&answer(&query, "10.0.0.9"), from).await.expect("sent");
    let answer = client.await.expect("answered");
    assert_eq!(answers(&answer), [("10.0.0.9".into(), 60)]);
    assert_eq!(answer.queries[0].name.to_ascii(), NAME, "the client's own spelling");
}

#[tokio::test]
async fn ids_ports_and_letters_are_others_each_time() {
    let server = ByHand::start().await;
    let captured = server.captured(true);
    let mut seen = std::collections::HashSet::new();
    let (mut ids, mut ports, mut spellings) = (seen.clone(), seen.clone(), 0);
    for n in 0..20 {
        let (address, name) = (captured.address, format!("n{n}.a-rather-long-name.example."));
        let client = tokio::spawn(async move { ask(address, &name, RecordType::A).await });
        let (query, from) = server.asked().await;
        ids.insert(u16::from_be_bytes([query[0], query[1]]));
        ports.insert(from.port());
        let letters = &query[16..30];
        spellings += usize::from(seen.insert(
            letters.iter().fold(0u16, |all, letter| all << 1 | u16::from(letter.is_ascii_uppercase())),
        ));
        server.0.send_to(&answer(&query, "10.0.0.9"), from).await.expect("sent");
        client.await.expect("answered");
    }
    // Of 65,536 ids, some 28,000 ports and 16,384 spellings, hardly two are the same.
    assert!(ids.len() > 15 && ports.len() > 15 && spellings > 10, "{ids:?} {ports:?} {spellings}");
}
