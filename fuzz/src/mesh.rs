//! The transport between sidecars, against a peer that sends any frames: nothing waits for ever,
//! nothing is left behind, and what is forwarded is what was asked, whole or not at all.

use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use pannier::http::mesh::{self as transport, Link, Lost, Response, Sink, budget};
use pannier::http::pump::Sink as _;
use pannier::http::{Fields, Frame, Length, RequestHead};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, split};
use tokio::task::spawn_local;

use super::differential::{Seen, Servers};
use super::hop::{self, BOUNDS, Hop, settle};

/// What a peer tells first of itself: 1000 streams, windows of 1 MiB.
const SETTINGS: [u8; 21] = [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 0, 3, 232, 0, 16, 0, 0, 0, 16, 0, 0];

/// More bytes than this are not sent.
const MOST: usize = 2 << 20;

/// First a byte: who the peer is, and whether it forgets to tell of itself. Then its frames, each in
/// short: type, flags, stream, and how many bytes of payload follow. The high half of the type says
/// how often the payload is doubled.
pub fn mesh(input: &[u8]) {
    requests(input);
}

/// How many requests a server saw of such input, if the peer was a client.
pub fn requests(input: &[u8]) -> usize {
    let [peer, records @ ..] = input else { return 0 };
    let mut bytes = if peer & 2 == 0 { SETTINGS.to_vec() } else { Vec::new() };
    put_frames(records, &mut bytes);
    if peer & 1 == 1 {
        hop::run(against_client(bytes))
    } else {
        hop::run(against_server(bytes));
        0
    }
}

/// That no bytes of bodies are held any more, for a driver that runs nothing else at the same time.
pub fn nothing_is_held() {
    assert_eq!(budget::held(), 0, "bytes that nobody can take any more");
}

fn put_frames(mut records: &[u8], out: &mut Vec<u8>) {
    while let [kind, flags, stream, len, rest @ ..] = records {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        records = rest;
        let payload = payload.repeat(1 << (kind >> 4));
        if out.len() + payload.len() > MOST {
            return;
        }
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[kind & 15, *flags, 0, 0, 0, *stream]);
        out.extend_from_slice(&payload);
    }
}

/// A client of any kind, whose requests go on to hyper's server.
async fn against_client(bytes: Vec<u8>) -> usize {
    let seen = Seen::default();
    let servers = Servers::new(seen.clone());
    let hop = Rc::new(Hop::plain(servers.dial()));
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let serving = spawn_local(transport::serve(ours, hop.clone()));
    play(theirs, bytes).await;
    serving.await.expect("no panic");
    settle().await;
    assert_eq!(Rc::strong_count(&hop), 1, "a stream that outlives its connection");
    let mut asked = hop.asked.take();
    drop(hop);
    servers.end().await;
    let all = seen.take();
    let requests = all.len();
    for request in all {
        let place =
            asked.iter().position(|(start, fields)| (start, fields) == (&request.start, &request.fields));
        asked.swap_remove(place.unwrap_or_else(|| panic!("nobody asked: {request:?}")));
    }
    requests
}

/// A server of any kind, which is asked a few things.
async fn against_server(bytes: Vec<u8>) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (link, task) = transport::connect(ours, &BOUNDS);
    let connection = spawn_local(task);
    // Its settings may say that it takes fewer, so it comes to speak first.
    let peer = spawn_local(play(theirs, bytes));
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    tokio::join!(
        ask(&link, Method::GET, Length::None),
        ask(&link, Method::POST, Length::Sized(5)),
        ask(&link, Method::HEAD, Length::None),
        ask(&link, Method::PUT, Length::Stream),
    );
    assert_eq!(link.fullness(), 0.0, "a stream that nobody holds");
    drop(link);
    peer.await.expect("no panic");
    connection.await.expect("no panic");
}

async fn ask(link: &Link, method: Method, length: Length) {
    let head = RequestHead {
        method: method.clone(),
        authority: None,
        path: "/".parse().expect("a path"),
        version: Version::HTTP_11,
        fields: Fields::default(),
        length,
        upgrade: None,
        expiry: None,
    };
    let Ok((sink, response)) = link.send(&head, hop::HOST, &HeaderMap::new(), None) else { return };
    let _ = tokio::join!(send(sink, length), receive(response, &method));
}

async fn send(mut sink: Sink, length: Length) -> std::io::Result<()> {
    if !length.is_empty() {
        poll_fn(|cx| sink.poll_room(cx)).await?;
        sink.data(Bytes::from_static(b"hello"));
        sink.end(None);
    }
    poll_fn(|cx| sink.poll_flush(cx)).await
}

/// Reads an answer. One that comes to its end is as long as it said.
async fn receive(mut response: Response, method: &Method) -> Result<(), Lost> {
    let head = loop {
        let head = poll_fn(|cx| response.poll_head(cx)).await?;
        if !head.status.is_informational() {
            break head;
        }
    };
    let announced = if head.may_have_body(method) { head.length } else { Length::None };
    let mut body = response.body(&head, method);
    let mut read = 0;
    loop {
        match body.frame().await {
            Ok(Some(Frame::Data(data))) => read += data.len() as u64,
            Ok(Some(Frame::Trailers(_)) | None) => break,
            Err(_) => return Ok(()),
        }
    }
    match announced {
        Length::None => assert_eq!(read, 0),
        Length::Sized(length) => assert_eq!(read, length),
        Length::Stream => {}
    }
    Ok(())
}

/// Sends the bytes, takes what comes, and closes once nothing happens any more.
async fn play(peer: DuplexStream, bytes: Vec<u8>) {
    let (reads, mut writes) = split(peer);
    let taking = spawn_local(take(reads));
    // Whoever has been refused finds the connection closed.
    let _ = writes.write_all(&bytes).await;
    settle().await;
    let _ = writes.shutdown().await;
    taking.await.expect("no panic");
}

async fn take(mut reads: impl AsyncRead + Unpin) {
    let mut buf = [0; 4096];
    while reads.read(&mut buf).await.is_ok_and(|n| n > 0) {}
}
