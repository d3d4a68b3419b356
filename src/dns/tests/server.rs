//! The sockets: what waits is in nobody else's way, and nobody is waited for without end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::*;
use crate::dns::server::{read_message, write_message};

const FIRST: u8 = b'f';

/// Repeats each message, those that begin with [`FIRST`] once the gate is open.
struct Echo(Gate);

impl Answerer for Echo {
    async fn answer(&self, query: &[u8], _: Transport) -> Option<Vec<u8>> {
        if query.first() == Some(&FIRST) {
            self.0.opened().await;
        }
        (!query.is_empty()).then(|| query.to_vec())
    }
}

fn echo() -> (Server, Gate) {
    let (udp, tcp) = bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let gate = Gate::new();
    let server = Server::start(&Handle::current(), vec![udp], vec![tcp], Arc::new(Echo(gate.clone())));
    (server.expect("started"), gate)
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.addresses()[0]).await.expect("connected")
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    tokio::time::timeout(PATIENCE, read_message(stream)).await.expect("in time")
}

#[tokio::test]
async fn queries_of_a_connection_do_not_wait_for_each_other() {
    let (server, gate) = echo();
    let mut stream = connect(&server).await;
    for query in [&b"first"[..], b"second", b"third"] {
        write_message(&mut stream, query).await.expect("written");
    }
    let mut early = [read(&mut stream).await.expect("one"), read(&mut stream).await.expect("another")];
    early.sort();
    assert_eq!(early, [&b"second"[..], b"third"]);
    gate.open();
    assert_eq!(read(&mut stream).await.expect("the rest"), b"first");
}

#[tokio::test]
async fn a_client_that_has_no_more_to_ask_gets_its_answers() {
    let (server, gate) = echo();
    let mut stream = connect(&server).await;
    write_message(&mut stream, b"first").await.expect("written");
    write_message(&mut stream, b"second").await.expect("written");
    stream.shutdown().await.expect("half closed");
    assert_eq!(read(&mut stream).await.expect("one"), b"second");
    gate.open();
    assert_eq!(read(&mut stream).await.expect("the other"), b"first");
    assert_eq!(stream.read(&mut [0]).await.expect("the end"), 0);
}

#[tokio::test]
async fn a_connection_has_so_many_queries_in_hand() {
    let (server, gate) = echo();
    let mut stream = connect(&server).await;
    for _ in 0..100 {
        write_message(&mut stream, b"first").await.expect("written");
    }
    write_message(&mut stream, b"second").await.expect("written");
    gate.open();
    let mut answers = Vec::new();
    for _ in 0..101 {
        answers.push(read(&mut stream).await.expect("an answer"));
    }
    assert!(answers[..80].iter().all(|answer| answer == b"first"), "it is not read before there is room");
}

#[tokio::test]
async fn whoever_stalls_or_idles_or_sends_no_query_is_closed() {
    let (server, gate) = echo();
    let mut idle = connect(&server).await;
    let mut waiting = connect(&server).await;
    write_message(&mut waiting, b"first").await.expect("written");
    let mut stalled = connect(&server).await;
    stalled.write_all(&[0, 10, 1]).await.expect("written");
    let mut silent = connect(&server).await;
    write_message(&mut silent, b"").await.expect("written");
    assert_eq!(tokio::time::timeout(PATIENCE, silent.read(&mut [0])).await.expect("in time").unwrap_or(0), 0);
    // All of them are known by now, as this one is.
    let mut last = connect(&server).await;
    write_message(&mut last, b"second").await.expect("written");
    assert_eq!(read(&mut last).await.expect("an answer"), b"second");
    later(Duration::from_secs(11)).await;
    for stream in [&mut idle, &mut stalled] {
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.expect("in time");
        assert_eq!(ended.unwrap_or(0), 0);
    }
    gate.open();
    assert_eq!(read(&mut waiting).await.expect("not idle"), b"first");
}

#[tokio::test]
async fn what_needs_no_waiting_is_answered_however_many_wait() {
    let (server, gate) = echo();
    let address = server.addresses()[0];
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut buffer = [0; 16];
    for _ in 0..20 {
        for _ in 0..50 {
            socket.send_to(b"first", address).await.expect("sent");
        }
        // So that the kernel's buffer never fills.
        socket.send_to(b"second", address).await.expect("sent");
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        assert_eq!(&buffer[..received.expect("in time").expect("received")], b"second");
    }
    gate.open();
    let mut answered = 0;
    while answered < 512 {
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        assert_eq!(&buffer[..received.expect("in time").expect("received")], b"first");
        answered += 1;
    }
}
