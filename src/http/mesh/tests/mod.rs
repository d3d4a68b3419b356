mod hostile;
mod life;

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
use crate::error::{Error, Reason};
use crate::http::closing::{Closed, Closing};
use crate::http::pump::Sink as _;
use crate::http::{
    Announcement, Body, BodyError, Bounds, Fields, Frame, Handler, Length, Next, RequestHead, Responder,
    ResponseHead,
};

const BOUNDS: Bounds = Bounds {
    head_bytes: 64 << 10,
    fields: 100,
    streams: 1000,
    least: None,
    head_timeout: Duration::from_secs(10),
    body_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(10),
    age: Duration::from_secs(3600),
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
            "/refuse" => drop(respond.refuse_stream(Reason::UpstreamRefused)),
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

    fn announces(&self) -> Option<Announcement> {
        None
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
        expiry: None,
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
    let (mut sink, mut response) = link.send(&head, "", &HeaderMap::new(), None).unwrap();
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
        let (_sink, mut response) = link.send(&head, "", &HeaderMap::new(), None).unwrap();
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
        let head = request("/echo", Length::Stream);
        let (mut slow, mut response) = link.send(&head, "", &HeaderMap::new(), None).unwrap();
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
        let held = link.held();
        assert!(held > 0 && held <= budget::stream_window() as usize, "{held} bytes are held");
        for _ in 0..20 {
            assert_eq!(echoed(&link, vec![7; 500_000]).await.len(), 500_000);
        }
        let head = head_of(&mut response).await.unwrap();
        drop((slow, response.body(&head, &Method::POST)));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(link.held(), 0, "what was held is given back");
        assert_eq!(echo.served.borrow().len(), 21);
    });
}

#[test]
fn what_was_not_processed_is_told_from_what_may_have_been() {
    local(async {
        let (link, _) = connected(10_000);
        let send = |path| link.send(&request(path, Length::None), "", &HeaderMap::new(), None).unwrap();
        let (_sink, mut refused) = send("/refuse");
        assert!(matches!(head_of(&mut refused).await, Err(Lost::Reset(Code::REFUSED_STREAM))));
        let (_sink, mut hanging) = send("/hang");
        drop(link.clone());
        let (_sink, mut early) =
            link.send(&request("/early", Length::Stream), "", &HeaderMap::new(), None).unwrap();
        let head = head_of(&mut early).await.unwrap();
        assert_eq!(whole(&mut early.body(&head, &Method::POST)).await.unwrap(), b"no");
        let (_sink, mut short) = send("/short");
        let head = head_of(&mut short).await.unwrap();
        assert!(matches!(whole(&mut short.body(&head, &Method::GET)).await, Err(BodyError::Malformed(_))));
        assert!(futures_util::FutureExt::now_or_never(head_of(&mut hanging)).is_none());
    });
}

#[test]
fn many_small_pieces_that_wait_hold_little_more_than_they_are() {
    local(async {
        let (link, _) = connected(1 << 20);
        let (mut sink, mut response) =
            link.send(&request("/echo", Length::Stream), "", &HeaderMap::new(), None).unwrap();
        for _ in 0..10_000 {
            poll_fn(|cx| sink.poll_room(cx)).await.unwrap();
            sink.data(Bytes::from_static(b"x"));
        }
        sink.end(None);
        poll_fn(|cx| sink.poll_flush(cx)).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        let head = head_of(&mut response).await.unwrap();
        let mut body = response.body(&head, &Method::POST);
        let (mut pieces, mut bytes) = (0, 0);
        while let Some(Frame::Data(data)) = body.frame().await.unwrap() {
            pieces += 1;
            bytes += data.len();
        }
        assert_eq!(bytes, 10_000);
        assert!(pieces < 20, "{pieces} pieces of memory");
    });
}

#[test]
fn an_end_with_notice_loses_no_request() {
    local(async {
        let (link, echo) = connected(10_000);
        assert_eq!(echoed(&link, vec![1; 10]).await, [1; 10]);
        let (mut sink, mut response) =
            link.send(&request("/echo", Length::Stream), "", &HeaderMap::new(), None).unwrap();
        sink.data(Bytes::from_static(b"hello"));
        poll_fn(|cx| sink.poll_flush(cx)).await.unwrap();
        let head = head_of(&mut response).await.unwrap();
        echo.closing.say();
        sleep(Duration::from_millis(10)).await;
        assert!(link.is_over(), "no other stream is opened");
        assert!(matches!(
            link.send(&request("/", Length::None), "", &HeaderMap::new(), None),
            Err(Lost::Untaken)
        ));
        sink.end(None);
        poll_fn(|cx| sink.poll_flush(cx)).await.unwrap();
        assert_eq!(whole(&mut response.body(&head, &Method::POST)).await.unwrap(), b"hello");
    });
}

#[test]
fn a_stream_that_nobody_holds_is_cancelled_at_the_other_end() {
    local(async {
        let (link, echo) = connected(10_000);
        let (sink, response) =
            link.send(&request("/hang", Length::Stream), "", &HeaderMap::new(), None).unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(Rc::strong_count(&echo), 4, "served by a task");
        drop((sink, response));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(Rc::strong_count(&echo), 3, "which has ended");
    });
}
