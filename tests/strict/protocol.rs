//! HTTP/2 as a protocol: the cases that h2spec has, in frames of our own (RFC 9113, by section; HPACK
//! is RFC 7541). What breaks it ends the stream or the connection, is counted, and reaches nobody.

use super::app::{self, Does};
use super::counted;
use super::frames::*;
use super::support::loopback::hop;
use super::support::raw::{Raw, Witness};

/// What must become of a connection.
#[derive(Debug, Clone, Copy)]
enum Must {
    /// The stream is reset, or the connection ends: a stream error may be treated as one of the
    /// connection (section 5.4.2).
    Reset,
    /// The connection ends.
    GoAway,
}

use Must::{GoAway, Reset};

const NONE: &[u8] = &[];

/// A request of which the body is to come.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &post(&[]))
}

fn whole(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &request(&[]))
}

fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// A HEADERS or PRIORITY frame's dependency on another stream.
fn dependency(on: u32) -> Vec<u8> {
    [&on.to_be_bytes()[..], &[16]].concat()
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// Each case: its section, what is sent, and what must become of it.
fn broken() -> Vec<(&'static str, Vec<u8>, Must)> {
    let request = || request(&[]);
    let cut = || {
        let block = request();
        let (first, rest) = block.split_at(10);
        (first.to_vec(), rest.to_vec())
    };
    let (first, rest) = cut();
    let with = |tail: &[u8]| [request(), tail.to_vec()].concat();
    vec![
        ("4.2 DATA larger than allowed", [open(1), frame(DATA, END_STREAM, 1, &[0; 16_385])].concat(), Reset),
        ("4.2 HEADERS larger than allowed", frame(HEADERS, WHOLE, 1, &[0; 16_385]), GoAway),
        ("4.3 a field block that is none", frame(HEADERS, WHOLE, 1, &[0xff; 20]), GoAway),
        (
            "4.3 PRIORITY inside a field block",
            [frame(HEADERS, END_STREAM, 1, &first), frame(PRIORITY, 0, 1, &dependency(0))].concat(),
            GoAway,
        ),
        (
            "4.3 another stream inside a field block",
            [frame(HEADERS, END_STREAM, 1, &first), whole(3)].concat(),
            GoAway,
        ),
        ("5.1 DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), GoAway),
        ("5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), GoAway),
        ("5.1 WINDOW_UPDATE on an idle stream", window(1, 100), GoAway),
        ("5.1 CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, &request()), GoAway),
        ("5.1 DATA after the end", [whole(1), frame(DATA, END_STREAM, 1, b"x")].concat(), Reset),
        ("5.1 HEADERS after the end", [whole(1), whole(1)].concat(), Reset),
        (
            "5.1 CONTINUATION after the end",
            [whole(1), frame(CONTINUATION, END_HEADERS, 1, &request())].concat(),
            GoAway,
        ),
        ("5.1.1 an even stream", whole(2), GoAway),
        ("5.1.1 a lower stream than before", [whole(5), whole(3)].concat(), GoAway),
        (
            "5.3.1 HEADERS that depend on themselves",
            frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &[dependency(1), request()].concat()),
            Reset,
        ),
        (
            "5.5 an unknown frame inside a field block",
            [frame(HEADERS, END_STREAM, 1, &first), frame(0xfe, 0, 0, b"x")].concat(),
            GoAway,
        ),
        ("6.1 DATA on stream 0", frame(DATA, END_STREAM, 0, b"x"), GoAway),
        (
            "6.1 more padding than DATA",
            [open(1), frame(DATA, END_STREAM | PADDED, 1, &[6, b'x'])].concat(),
            GoAway,
        ),
        ("6.2 HEADERS on stream 0", frame(HEADERS, WHOLE, 0, &request()), GoAway),
        ("6.2 more padding than HEADERS", frame(HEADERS, WHOLE | PADDED, 1, &[200, 0x82]), GoAway),
        ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &dependency(1)), GoAway),
        ("6.3 PRIORITY of another length", [open(1), frame(PRIORITY, 0, 1, &[0; 4])].concat(), Reset),
        ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), GoAway),
        ("6.4 RST_STREAM of another length", [open(1), frame(RST_STREAM, 0, 1, &[0; 3])].concat(), GoAway),
        ("6.5 an ACK that says something", frame(SETTINGS, ACK, 0, &[0; 6]), GoAway),
        ("6.5 SETTINGS of a stream", frame(SETTINGS, 0, 1, NONE), GoAway),
        ("6.5 SETTINGS of another length", frame(SETTINGS, 0, 0, &[0; 5]), GoAway),
        ("6.5.2 ENABLE_PUSH of 2", setting(2, 2), GoAway),
        ("6.5.2 a window of 2^31", setting(4, 1 << 31), GoAway),
        ("6.5.2 frames below 16384", setting(5, 16_383), GoAway),
        ("6.5.2 frames of 2^24", setting(5, 1 << 24), GoAway),
        ("6.6 PUSH_PROMISE from a client", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]), GoAway),
        ("6.7 PING of a stream", frame(PING, 0, 1, &[0; 8]), GoAway),
        ("6.7 PING of another length", frame(PING, 0, 0, &[0; 6]), GoAway),
        ("6.8 GOAWAY of a stream", frame(GOAWAY, 0, 1, &[0; 8]), GoAway),
        ("6.9 a window by nothing", window(0, 0), GoAway),
        ("6.9 a stream's window by nothing", [open(1), window(1, 0)].concat(), Reset),
        ("6.9 WINDOW_UPDATE of another length", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), GoAway),
        ("6.9.1 a window beyond 2^31-1", [window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)].concat(), GoAway),
        (
            "6.9.1 a stream's window beyond 2^31-1",
            [open(1), window(1, 0x7fff_ffff), window(1, 0x7fff_ffff)].concat(),
            Reset,
        ),
        (
            "6.9.2 settings that make a window overflow",
            [open(1), window(1, 0x7fff_0000), setting(4, 0x7fff_ffff)].concat(),
            GoAway,
        ),
        (
            "6.10 CONTINUATION after the block's end",
            [frame(HEADERS, WHOLE, 1, &request()), frame(CONTINUATION, END_HEADERS, 1, &rest)].concat(),
            GoAway,
        ),
        (
            "6.10 CONTINUATION on stream 0",
            [frame(HEADERS, END_STREAM, 1, &first), frame(CONTINUATION, END_HEADERS, 0, &rest)].concat(),
            GoAway,
        ),
        (
            "6.10 DATA before CONTINUATION",
            [frame(HEADERS, 0, 1, &first), frame(DATA, 0, 1, b"x")].concat(),
            GoAway,
        ),
        (
            "8.1 fields that end nothing",
            [open(1), frame(HEADERS, END_HEADERS, 1, &block(&[("x", "1")]))].concat(),
            Reset,
        ),
        (
            "8.2.1 an upper-case name that trails",
            [open(1), frame(HEADERS, WHOLE, 1, &block(&[("X", "smuggled")]))].concat(),
            Reset,
        ),
        ("RFC 7541 2.3.3 an index beyond the table", frame(HEADERS, WHOLE, 1, &with(&[0xff, 0x7f])), GoAway),
        ("RFC 7541 4.2 a table's size at the block's end", frame(HEADERS, WHOLE, 1, &with(&[0x20])), GoAway),
        ("RFC 7541 5.1 a number without end", frame(HEADERS, WHOLE, 1, &with(&[0xff; 12])), GoAway),
        (
            "RFC 7541 5.2 Huffman padding of more than 7 bits",
            frame(HEADERS, WHOLE, 1, &with(&[0, 1, b'x', 0x82, 0xff, 0xff])),
            GoAway,
        ),
        (
            "RFC 7541 5.2 Huffman padding of zeros",
            frame(HEADERS, WHOLE, 1, &with(&[0, 1, b'x', 0x81, 0x18])),
            GoAway,
        ),
        (
            "RFC 7541 5.2 a Huffman code for the end",
            frame(HEADERS, WHOLE, 1, &with(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])),
            GoAway,
        ),
        ("RFC 7541 6.1 index 0", frame(HEADERS, WHOLE, 1, &with(&[0x80])), GoAway),
        (
            "RFC 7541 6.3 a table larger than was allowed",
            frame(HEADERS, WHOLE, 1, &[&[0x3f, 0xe2, 0x7f][..], &request()].concat()),
            GoAway,
        ),
    ]
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_and_is_counted() {
    let (seen, app) = app::listen(Does::Nothing).await;
    let caller = hop(app).await;
    let mut count = 0;
    for (case, bytes, must) in broken() {
        let mut frames = Frames::connect(&caller).await;
        frames.offer(&bytes).await;
        println!("{case}");
        let mut ends = Vec::new();
        let fits = loop {
            let Some(frame) = frames.next().await else { break false };
            match frame.kind {
                GOAWAY if frame.code() != 0 => break true,
                RST_STREAM => {
                    ends.push(frame.code());
                    if frame.code() != 0 && matches!(must, Reset) {
                        break true;
                    }
                }
                _ => {}
            }
        };
        assert!(fits, "{case}: resets {ends:?}, and the connection ended without a word");
        count += 1;
        counted(&caller, "http.malformed", count).await;
    }
    println!("{count} cases, of which {} began a request", seen.requests());
}

/// What a peer may say without being refused: reserved bits, unknown frames and settings, priorities,
/// padding, a head in pieces, trailers, a GOAWAY of its own.
#[tokio::test]
async fn what_is_allowed_is_taken() {
    let (seen, app) = app::listen(Does::Answers).await;
    let caller = hop(app).await;
    let block = request(&[]);
    let (first, rest) = block.split_at(10);
    let padded = [&[3][..], &block, &[0; 3]].concat();
    for (case, bytes) in [
        ("a reserved bit", frame(HEADERS, WHOLE, 1 | 1 << 31, &block)),
        ("undefined flags", frame(HEADERS, WHOLE | 0x82, 1, &block)),
        ("an unknown frame", [frame(0xfe, 0xff, 0, b"whatever"), whole(1)].concat()),
        ("an unknown setting", [setting(0x99, 7), whole(1)].concat()),
        ("PRIORITY of an idle stream", [frame(PRIORITY, 0, 1, &dependency(0)), whole(1)].concat()),
        ("a dependency", frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &[dependency(0), block.clone()].concat())),
        ("padding", frame(HEADERS, WHOLE | PADDED, 1, &padded)),
        (
            "a head in pieces",
            [
                frame(HEADERS, END_STREAM, 1, first),
                frame(CONTINUATION, 0, 1, NONE),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]
            .concat(),
        ),
        ("trailers", [open(1), frame(HEADERS, WHOLE, 1, &super::frames::block(&[("x-sum", "1")]))].concat()),
        // Not allowed, but nobody's: it is dropped.
        (
            "a pseudo-field that trails",
            [open(1), frame(HEADERS, WHOLE, 1, &super::frames::block(&[(":path", "/smuggled")]))].concat(),
        ),
        ("an empty end", [open(1), frame(DATA, END_STREAM, 1, NONE)].concat()),
        ("windows of 1", [setting(4, 1), setting(4, 65_535), window(0, 1), whole(1)].concat()),
    ] {
        let mut frames = Frames::connect(&caller).await;
        frames.send(&bytes).await;
        assert_eq!(frames.end_of(1).await, End::Answer(OK), "{case}");
        frames.settle().await;
    }
    assert_eq!(super::refused(&caller, "http.malformed").await, 0);
    assert!(!seen.heads().contains("smuggled"), "{}", seen.heads());
}

/// What begins as HTTP/2 and is not.
#[tokio::test]
async fn a_preface_that_is_none_is_refused() {
    let (witness, app) = Witness::listen().await;
    let caller = hop(app).await;
    for bytes in
        ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", "PRI / HTTP/2.0\r\n\r\n"]
    {
        let answer = super::answer(&caller, bytes).await;
        super::assert_refused(&answer, 505, "http.version", bytes);
    }
    // A preface is followed by SETTINGS (section 3.4).
    for bytes in
        [frame(PING, 0, 0, &[0; 8]), whole(1), b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n".to_vec()]
    {
        let mut raw = Raw::connect(caller.outbound()).await;
        raw.send([PREFACE, &bytes].concat()).await;
        raw.rest().await;
    }
    assert_eq!(witness.seen(), "", "the application was reached");
}
