//! What a peer does that it must not.

use super::*;

#[test]
fn interim_answers_that_nobody_takes_are_bounded_by_what_they_hold() {
    local(async {
        let (ours, mut theirs) = duplex(4 << 20);
        let (link, task) = connect(ours, &BOUNDS);
        spawn_local(task);
        let (_sink, mut response) =
            link.send(&request("/", Length::None), "", &HeaderMap::new(), None).unwrap();
        let mut bytes = begun();
        let large = HeaderMap::from_iter([(
            http::header::LINK,
            http::HeaderValue::from_maybe_shared("x".repeat(BOUNDS.head_bytes * 3 / 4)).unwrap(),
        )]);
        for _ in 0..4 {
            let fields = Fields::from(large.clone());
            let head = ResponseHead { fields, ..ResponseHead::new(StatusCode::EARLY_HINTS) };
            frame::put_response(&mut bytes, 1, &head, &HeaderMap::new(), false);
        }
        theirs.write_all(&bytes).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        for _ in 0..3 {
            assert_eq!(head_of(&mut response).await.unwrap().status, StatusCode::EARLY_HINTS);
        }
        assert!(matches!(head_of(&mut response).await, Err(Lost::Malformed(_))));
    });
}

#[test]
fn what_cannot_have_a_body_announces_none() {
    local(async {
        let mut bytes = BytesMut::new();
        let head = ResponseHead { length: Length::Sized(5), ..ResponseHead::new(StatusCode::NO_CONTENT) };
        frame::put_response(&mut bytes, 1, &head, &HeaderMap::new(), true);
        let head = frame::response(bytes.split_off(frame::HEADER).freeze(), &BOUNDS).unwrap();
        assert_eq!(head.length, Length::None);
    });
}

#[tokio::test(start_paused = true)]
async fn what_sidecars_tell_each_other_is_in_their_frames() {
    let payload = |bytes: BytesMut| bytes.freeze().slice(frame::HEADER..);
    for millis in [None, Some(1), Some(u64::from(u32::MAX)), Some(1 << 40)] {
        let (mut bytes, left) = (BytesMut::new(), millis.map(Duration::from_millis));
        frame::put_request(&mut bytes, 1, &request("/", Length::None), "", &HeaderMap::new(), left, true);
        let head = frame::request(payload(bytes), &BOUNDS).unwrap();
        let known = left.map(|left| left.min(Duration::from_millis(u32::MAX.into())));
        assert_eq!(head.expiry.map(|expiry| expiry.at - tokio::time::Instant::now()), known);
    }
    let said = Announcement { in_flight: 3, capacity: 16, latency: 1500, most: 0 };
    for load in [None, Some(said)] {
        let mut bytes = BytesMut::new();
        let head = ResponseHead { load, ..ResponseHead::new(StatusCode::OK) };
        frame::put_response(&mut bytes, 1, &head, &HeaderMap::new(), true);
        let whole = payload(bytes);
        assert_eq!(frame::response(whole.clone(), &BOUNDS).unwrap().load, load);
        for cut in 0..whole.len() {
            assert!(frame::response(whole.slice(..cut), &BOUNDS).is_err());
        }
        let mut strange = BytesMut::from(&whole[..]);
        strange[0] = 2;
        assert!(frame::response(strange.freeze(), &BOUNDS).is_err());
    }
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

/// A request that is not answered.
fn put_hanging(bytes: &mut BytesMut, id: u32) {
    frame::put_request(bytes, id, &request("/hang", Length::None), "", &HeaderMap::new(), None, true);
}

pub(super) fn begun() -> BytesMut {
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
        frame::put_request(&mut bytes, 1, &head, "", &HeaderMap::new(), None, false);
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
            put_hanging(&mut bytes, id);
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
            put_hanging(&mut bytes, id);
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
            frame::put_request(
                &mut bytes,
                1,
                &request("/echo", Length::None),
                "",
                &HeaderMap::new(),
                None,
                true,
            );
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

#[test]
fn a_message_that_its_own_head_belies_is_refused() {
    let asks = |method, path: &'static str| RequestHead { method, ..request(path, Length::None) };
    let upgrade = HeaderMap::from_iter([(
        http::HeaderName::from_static(crate::http::UPGRADE_FIELD),
        http::HeaderValue::from_static("websocket"),
    )]);
    let none = HeaderMap::new();
    let sized = |head| RequestHead { length: Length::Sized(5), ..head };
    let cases = [
        ("CONNECT with a length", sized(asks(Method::CONNECT, "/")), &none, false),
        ("an upgrade with a length", sized(asks(Method::GET, "/chat")), &upgrade, false),
        ("a body that does not follow", sized(asks(Method::POST, "/echo")), &none, true),
        ("* with another method than OPTIONS", asks(Method::GET, "*"), &none, true),
    ];
    local(async move {
        for (what, head, own, ends) in &cases {
            let mut bytes = begun();
            frame::put_request(&mut bytes, 1, head, "", own, None, *ends);
            let answer = answered(&bytes).await;
            assert!(answer.windows(14).any(|w| w == b"http.malformed"), "{what}");
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
            frame::put_request(&mut bytes, 1, &request("/echo", Length::Stream), "", &HeaderMap::new(), None, false);
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
                    link.send(&request("/", Length::None), "", &HeaderMap::new(), None).unwrap();
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
