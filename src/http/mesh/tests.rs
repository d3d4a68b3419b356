use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::sleep;

use super::frame::{self, Kind, Settings};
use super::*;
use crate::error::Error;
use crate::http::closing::{Closed, Closing};
use crate::http::pump::Sink as _;
use crate::http::{
    Body, BodyError, Bounds, Fields, Frame, Handler, Length, Next, RequestHead, Responder, ResponseHead,
};

const BOUNDS: Bounds = Bounds {
    head_bytes: 64 << 10,
    fields: 100,
    streams: 1000,
    least: None,
    head_timeout: Duration::from_secs(10),
    body_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(10),
};

/// Answers with the request's body, or as the path asks.
#[derive(Default)]
struct Echo {
    closing: Rc<Closing>,
    served: RefCell<Vec<String>>,
}

impl Handler for Echo {
    type Tunnel = ();

    async fn handle(
        &self,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Next<()> {
        self.served.borrow_mut().push(head.path.to_string());
        match head.path.path() {
            "/refuse" => drop(respond.refuse_stream()),
            "/hang" => poll_fn(|cx| respond.poll_gone(cx)).await,
            "/early" => answer(respond, Length::Sized(2), [Bytes::from_static(b"no")]).await,
            "/short" => answer(respond, Length::Sized(10), [Bytes::from_static(b"short")]).await,
            path => {
                let length = if path == "/empty" { Length::None } else { head.length };
                let mut fields = Fields::from(HeaderMap::new());
                std::mem::swap(&mut fields, &mut head.fields);
                let _ = respond.head(ResponseHead { fields, length, ..ResponseHead::new(StatusCode::OK) });
                let _ = crate::http::pump::pump(body, respond, BOUNDS.body_timeout).await;
            }
        }
        Next::Request
    }

    async fn tunnel(&self, _: (), _: &mut Body<'_>, _: &mut Responder<'_>) {}

    fn refused(&self, _: &Error) {}

    fn bounds(&self) -> Bounds {
        BOUNDS
    }

    fn shares_connections(&self) -> bool {
        true
    }

    fn is_draining(&self) -> bool {
        false
    }

    fn closing(&self) -> Closed {
        self.closing.wait()
    }
}

async fn answer<const N: usize>(respond: &mut Responder<'_>, length: Length, pieces: [Bytes; N]) {
    let head = ResponseHead { length, ..ResponseHead::new(StatusCode::OK) };
    respond.head(head).unwrap();
    for piece in pieces {
        poll_fn(|cx| respond.poll_room(cx)).await.unwrap();
        respond.data(piece);
    }
    respond.end(None);
    let _ = poll_fn(|cx| respond.poll_flush(cx)).await;
}

fn request(path: &'static str, length: Length) -> RequestHead {
    RequestHead {
        method: Method::POST,
        authority: Some("orders.shop:8080".parse().unwrap()),
        path: path.parse().unwrap(),
        version: Version::HTTP_11,
        fields: Fields::default(),
        length,
        upgrade: None,
    }
}

/// A served connection, with the room that the pipe between both ends has.
fn connected(room: usize) -> (Link, Rc<Echo>) {
    let (ours, theirs) = duplex(room);
    let echo = Rc::<Echo>::default();
    spawn_local(serve(theirs, echo.clone()));
    let (link, task) = connect(ours, &BOUNDS);
    spawn_local(task);
    (link, echo)
}

async fn head_of(response: &mut Response) -> Result<ResponseHead, Lost> {
    poll_fn(|cx| response.poll_head(cx)).await
}

async fn whole(body: &mut Body<'_>) -> Result<Vec<u8>, BodyError> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await? {
        if let Frame::Data(data) = frame {
            all.extend_from_slice(&data);
        }
    }
    Ok(all)
}

/// Sends a body and reads it back.
async fn echoed(link: &Link, body: Vec<u8>) -> Vec<u8> {
    let head = request("/echo", Length::Sized(body.len() as u64));
    let (mut sink, mut response) = link.send(&head, "", &HeaderMap::new()).unwrap();
    let sending = async {
        for piece in body.chunks(50_000) {
            poll_fn(|cx| sink.poll_room(cx)).await.unwrap();
            sink.data(Bytes::copy_from_slice(piece));
        }
        sink.end(None);
        poll_fn(|cx| sink.poll_flush(cx)).await.unwrap();
    };
    let receiving = async {
        let head = head_of(&mut response).await.unwrap();
        whole(&mut response.body(&head, &Method::POST)).await.unwrap()
    };
    tokio::join!(sending, receiving).1
}

fn local(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn bodies_of_any_size_come_back() {
    local(async {
        for room in [100, 4096, 1 << 20] {
            let (link, _) = connected(room);
            for size in [0, 1, 100, 4095, 4096, 32 << 10, (32 << 10) + 1, 300_000, 3_000_000] {
                let body: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                assert!(echoed(&link, body.clone()).await == body, "{size} bytes through {room}");
            }
        }
    });
}

#[test]
fn many_streams_at_once_keep_apart() {
    local(async {
        let (link, _) = connected(10_000);
        link.greeted().await.unwrap();
        let all = (0..200u32).map(|i| {
            let link = link.clone();
            async move {
                let body = i.to_be_bytes().repeat(1 + i as usize * 97);
                assert!(echoed(&link, body.clone()).await == body, "stream {i}");
            }
        });
        futures_util::future::join_all(all).await;
        assert_eq!(link.fullness(), 0.0, "nothing is left of ended streams");
    });
}

#[test]
fn fields_cross_in_their_order_and_case() {
    local(async {
        let (link, _) = connected(10_000);
        let mut bytes = BytesMut::from(
            &b"GET / HTTP/1.1\r\nHost: a\r\nX-Second: 2\r\nx-first: 1\r\nX-Second: \xe4\r\nX-Empty:\r\n\r\n"
                [..],
        );
        let mut head = crate::http::h1::parse::request(&mut bytes, 100).unwrap().unwrap().head;
        head.path = "/echo?q=1".parse().unwrap();
        let (_sink, mut response) = link.send(&head, "", &HeaderMap::new()).unwrap();
        let mut fields = Vec::new();
        head_of(&mut response).await.unwrap().fields.each(|n, v| fields.push((n.to_vec(), v.to_vec())));
        let expected: [(&[u8], &[u8]); 4] =
            [(b"X-Second", b"2"), (b"x-first", b"1"), (b"X-Second", b"\xe4"), (b"X-Empty", b"")];
        assert_eq!(fields, expected.map(|(n, v)| (n.to_vec(), v.to_vec())));
    });
}

#[test]
fn a_slow_stream_holds_up_no_other_and_no_more_than_its_window() {
    local(async {
        let (link, echo) = connected(1 << 20);
        let before = budget::held();
        let head = request("/echo", Length::Stream);
        let (mut slow, mut response) = link.send(&head, "", &HeaderMap::new()).unwrap();
        let mut sent = 0;
        // Its answer is read by nobody.
        while let Ok(room) =
            tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| slow.poll_room(cx))).await
        {
            room.unwrap();
            slow.data(Bytes::from(vec![0; 10_000]));
            sent += 10_000;
            assert!(sent < 8 << 20, "it is taken without end");
        }
        let held = budget::held() - before;
        assert!(held <= 2 * budget::stream_window() as usize + 100_000, "{held} bytes are held");
        for _ in 0..20 {
            assert_eq!(echoed(&link, vec![7; 500_000]).await.len(), 500_000);
        }
        let head = head_of(&mut response).await.unwrap();
        drop((slow, response.body(&head, &Method::POST)));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(budget::held(), before, "what was held is given back");
        assert_eq!(echo.served.borrow().len(), 21);
    });
}

#[test]
fn what_was_not_processed_is_told_from_what_may_have_been() {
    local(async {
        let (link, _) = connected(10_000);
        let send = |path| link.send(&request(path, Length::None), "", &HeaderMap::new()).unwrap();
        let (_sink, mut refused) = send("/refuse");
        assert!(matches!(head_of(&mut refused).await, Err(Lost::Reset(Code::REFUSED_STREAM))));
        let (_sink, mut hanging) = send("/hang");
        drop(link.clone());
        let (_sink, mut early) =
            link.send(&request("/early", Length::Stream), "", &HeaderMap::new()).unwrap();
        let head = head_of(&mut early).await.unwrap();
        assert_eq!(whole(&mut early.body(&head, &Method::POST)).await.unwrap(), b"no");
        let (_sink, mut short) = send("/short");
        let head = head_of(&mut short).await.unwrap();
        assert!(matches!(whole(&mut short.body(&head, &Method::GET)).await, Err(BodyError::Malformed(_))));
        assert!(futures_util::FutureExt::now_or_never(head_of(&mut hanging)).is_none());
    });
}

#[test]
fn an_end_with_notice_loses_no_request() {
    local(async {
        let (link, echo) = connected(10_000);
        assert_eq!(echoed(&link, vec![1; 10]).await, [1; 10]);
        let (mut sink, mut response) =
            link.send(&request("/echo", Length::Stream), "", &HeaderMap::new()).unwrap();
        sink.data(Bytes::from_static(b"hello"));
        poll_fn(|cx| sink.poll_flush(cx)).await.unwrap();
        let head = head_of(&mut response).await.unwrap();
        echo.closing.say();
        sleep(Duration::from_millis(10)).await;
        assert!(link.is_over(), "no other stream is opened");
        assert!(matches!(link.send(&request("/", Length::None), "", &HeaderMap::new()), Err(Lost::Untaken)));
        sink.end(None);
        poll_fn(|cx| sink.poll_flush(cx)).await.unwrap();
        assert_eq!(whole(&mut response.body(&head, &Method::POST)).await.unwrap(), b"hello");
    });
}

#[test]
fn a_stream_that_nobody_holds_is_cancelled_at_the_other_end() {
    local(async {
        let (link, echo) = connected(10_000);
        let (sink, response) = link.send(&request("/hang", Length::Stream), "", &HeaderMap::new()).unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(Rc::strong_count(&echo), 3, "served by a task");
        drop((sink, response));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(Rc::strong_count(&echo), 2, "which has ended");
    });
}

/// What a server answers to these bytes, to the end of the connection.
async fn answered(bytes: &[u8]) -> Vec<u8> {
    let (mut ours, theirs) = duplex(1 << 20);
    spawn_local(serve(theirs, Rc::<Echo>::default()));
    ours.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), ours.read_to_end(&mut answer)).await;
    answer
}

fn begun() -> BytesMut {
    let mut bytes = BytesMut::new();
    Settings { streams: 10, stream_window: 1 << 20, connection_window: 1 << 20 }.put(&mut bytes);
    bytes
}

fn was_broken_off(answer: &[u8]) -> bool {
    answer.windows(frame::HEADER).any(|w| w[..5] == [0, 0, 8, Kind::GoAway as u8, 0])
}

#[test]
fn what_has_no_place_ends_the_connection() {
    let framed = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut bytes = begun();
        bytes.put_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.put_slice(&[kind, flags]);
        bytes.put_u32(stream);
        bytes.put_slice(payload);
        bytes
    };
    local(async move {
        let cases: &[(&str, BytesMut)] = &[
            ("no settings", BytesMut::from(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..])),
            ("settings twice", framed(4, 0, 0, &[0, 0, 0, 9, 0, 16, 0, 0, 0, 16, 0, 0])),
            ("an unknown type", framed(9, 0, 1, b"")),
            ("a PING of another size", framed(6, 0, 0, b"1234567")),
            ("an endless head", framed(1, 1, 1, &[0; 90 << 10])),
            ("a piece of nothing", framed(0, 0, 1, b"")),
            ("a piece of no stream", framed(0, 0, 1, b"x")),
            ("a credit of nothing", framed(8, 0, 0, &[0; 4])),
            (
                "endless credit",
                [&framed(8, 0, 0, &[255; 4])[..], &[0, 0, 4, 8, 0, 0, 0, 0, 0, 255, 255, 255, 255]].concat()
                    [..]
                    .into(),
            ),
        ];
        for (what, bytes) in cases {
            assert!(was_broken_off(&answered(bytes).await), "{what}");
        }
        assert!(!was_broken_off(&answered(&framed(6, 0, 0, &[0; 8])).await), "a PING is answered");
    });
}

#[test]
fn more_than_the_window_ends_the_connection() {
    local(async {
        let mut bytes = begun();
        let head = request("/hang", Length::Stream);
        frame::put_request(&mut bytes, 1, &head, "", &HeaderMap::new(), false);
        for _ in 0..=budget::stream_window() as usize / frame::MAX_DATA {
            frame::put_header(&mut bytes, frame::MAX_DATA, Kind::Data, 0, 1);
            bytes.put_bytes(0, frame::MAX_DATA);
        }
        assert!(was_broken_off(&answered(&bytes).await));
    });
}

#[test]
fn a_connection_that_is_broken_off_takes_back_nothing_that_was_taken() {
    local(async {
        let mut bytes = begun();
        for id in 1..=3 {
            frame::put_request(&mut bytes, id, &request("/hang", Length::None), "", &HeaderMap::new(), true);
        }
        frame::put_number(&mut bytes, Kind::Window, 0, 0);
        let mut answer = BytesMut::from(&answered(&bytes).await[..]);
        let mut last = None;
        while let Some(header) = frame::Header::read(&answer, &BOUNDS).unwrap() {
            let payload = answer.split_to(frame::HEADER + header.length).freeze().slice(frame::HEADER..);
            if header.kind == Kind::GoAway {
                last = payload.first_chunk().map(|four| u32::from_be_bytes(*four));
            }
        }
        assert_eq!(last, Some(3), "what may have been processed is not said to have not been");
    });
}

#[test]
fn streams_beyond_the_most_are_refused_and_reset_ones_count_until_they_end() {
    local(async {
        let (mut ours, theirs) = duplex(1 << 20);
        let echo = Rc::<Echo>::default();
        spawn_local(serve(theirs, echo.clone()));
        let mut bytes = begun();
        for id in 1..=BOUNDS.streams + 100 {
            frame::put_request(&mut bytes, id, &request("/hang", Length::None), "", &HeaderMap::new(), true);
        }
        ours.write_all(&bytes).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(echo.served.borrow().len(), BOUNDS.streams as usize);
        assert_eq!(refusals(&mut ours).await, 100);
    });
}

async fn refusals(io: &mut DuplexStream) -> usize {
    let mut answer = BytesMut::new();
    while tokio::time::timeout(Duration::from_secs(1), io.read_buf(&mut answer))
        .await
        .is_ok_and(|r| r.is_ok_and(|n| n > 0))
    {}
    let mut refused = 0;
    while let Some(header) = frame::Header::read(&answer, &BOUNDS).unwrap() {
        refused += usize::from(header.kind == Kind::Reset);
        bytes::Buf::advance(&mut answer, frame::HEADER + header.length);
    }
    refused
}

#[test]
fn a_head_that_would_be_read_in_two_ways_is_refused() {
    local(async {
        for (name, value) in [
            ("x", "a\r\nb: c"),
            ("x\r\ny", "a"),
            ("x y", "a"),
            ("", "a"),
            ("content-length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("connection", "close"),
            ("host", "other"),
            ("te", "gzip"),
            ("x", "a\0"),
            ("x", " a"),
            ("x", "a\t"),
        ] {
            let mut bytes = begun();
            let start = bytes.len();
            frame::put_request(&mut bytes, 1, &request("/echo", Length::None), "", &HeaderMap::new(), true);
            bytes.put_u32(name.len() as u32);
            bytes.put_u32(value.len() as u32);
            bytes.put_slice(name.as_bytes());
            bytes.put_slice(value.as_bytes());
            let length = (bytes.len() - start - frame::HEADER) as u32;
            bytes[start..start + 3].copy_from_slice(&length.to_be_bytes()[1..]);
            let answer = answered(&bytes).await;
            assert!(answer.windows(14).any(|w| w == b"http.malformed"), "{name:?}: {value:?}");
        }
    });
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 256, ..Default::default() })]
    #[test]
    fn nothing_panics_on_a_peers_bytes(
        kinds in proptest::collection::vec((0u8..10, 0u8..4, 0u32..4, proptest::collection::vec(0u8.., 0..60)), 1..20),
    ) {
        local(async move {
            let mut bytes = begun();
            frame::put_request(&mut bytes, 1, &request("/echo", Length::Stream), "", &HeaderMap::new(), false);
            for (kind, flags, stream, payload) in &kinds {
                bytes.put_slice(&(payload.len() as u32).to_be_bytes()[1..]);
                bytes.put_slice(&[*kind, *flags]);
                bytes.put_u32(*stream);
                bytes.put_slice(payload);
            }
            answered(&bytes).await;
            yield_now().await;
        });
    }
}

#[test]
fn a_client_survives_a_server_of_nonsense() {
    local(async {
        for kind in 0..12u8 {
            for flags in 0..4u8 {
                let (ours, mut theirs) = duplex(1 << 16);
                let (link, task) = connect(ours, &BOUNDS);
                spawn_local(task);
                let (_sink, mut response) =
                    link.send(&request("/", Length::None), "", &HeaderMap::new()).unwrap();
                let mut bytes = begun();
                bytes.put_slice(&[0, 0, 4, kind, flags, 0, 0, 0, 1, 1, 2, 3, 4]);
                theirs.write_all(&bytes).await.unwrap();
                drop(theirs);
                match head_of(&mut response).await {
                    Err(_) => {}
                    Ok(head) => panic!("an answer out of nothing: {head:?}"),
                }
            }
        }
    });
}
