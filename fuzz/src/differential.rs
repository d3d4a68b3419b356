//! What we forward, read by another implementation, is what we meant: the same messages, each with
//! the same head, body and trailers, and nothing between or after them. The other is hyper's server
//! for requests and hyper's client for responses, on a real [`Hop`].

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Socket;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{client, server};
use hyper_util::rt::TokioIo;
use pannier::error::REFUSED_FIELD;
use pannier::http::Length;
use pannier::http::h1::chunked::{Chunked, Decoded};
use pannier::http::h1::{parse, serve};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::{JoinHandle, spawn_local, yield_now};

use super::hop::{self, Asked, BOUNDS, Hop};

/// More than this is for the bounds to refuse, which have tests of their own.
const MAX_INPUT: usize = 32 << 10;
const MAX_INTERIM: usize = 30;

/// What a request, or its answer, comes to.
#[derive(Debug, PartialEq)]
pub(super) struct Message<S> {
    pub start: S,
    /// End-to-end fields.
    pub fields: HeaderMap,
    /// None: it was broken off, or is not to be read.
    body: Option<Content>,
}

/// What hyper's server was asked.
pub(super) type Seen = Rc<RefCell<Vec<Message<Asked>>>>;

/// A whole body and what trails it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Content {
    data: Vec<u8>,
    trailers: HeaderMap,
}

/// Makes a hop to what a function dials.
type MakeHop = fn(Rc<dyn Fn() -> TcpStream>) -> Hop;

/// The bytes of a connection on which requests come.
pub fn differential_request(input: &[u8]) {
    requests(input, Hop::plain);
}

/// The same, when they go from sidecar to sidecar.
pub fn differential_pair(input: &[u8]) {
    requests(input, Hop::pair);
}

fn requests(input: &[u8], make: MakeHop) {
    if input.len() > MAX_INPUT {
        return;
    }
    let meant = meant_requests(input);
    let seen = Seen::default();
    let answers = hop::run(carry_requests(input, make, seen.clone()));
    assert_answers(&meant, &answers);
    let forwarded = meant.iter().filter(|request| request.start.0 != Method::CONNECT);
    assert_same(forwarded, &seen.take());
    let theirs = hop::run(read_by_hyper(input));
    // Where one refuses what the other reads, or ends where the other reads on, nobody is misled.
    for (ours, theirs) in meant.iter().zip(&theirs) {
        assert_eq!(start(ours), start(theirs), "read otherwise by another");
        let (Some(ours), Some(theirs)) = (&ours.body, &theirs.body) else { break };
        assert_eq!(ours.data, theirs.data, "read otherwise by another");
    }
}

/// First a byte that says what is asked, and over one hop or two; then the bytes of an upstream that was asked.
pub fn differential_response(input: &[u8]) {
    let [question, answer @ ..] = input else { return };
    if answer.len() > MAX_INPUT {
        return;
    }
    let make = if question & 4 == 0 { Hop::plain } else { Hop::pair };
    let (method, version) = match question & 3 {
        0 => (Method::GET, Version::HTTP_11),
        1 => (Method::HEAD, Version::HTTP_11),
        2 => (Method::POST, Version::HTTP_11),
        _ => (Method::GET, Version::HTTP_10),
    };
    let Some((mut meant, endless)) = meant_response(answer, &method) else { return };
    if let Some(Message { body: Some(body), .. }) = &mut meant
        && version == Version::HTTP_10
    {
        body.trailers.clear();
    }
    let seen = hop::run(carry_response(answer, make, method, version));
    match (meant, seen) {
        (Some(meant), seen) => assert_eq!(seen, Some(meant)),
        (None, None) => {}
        // Only a reset tells that a body ended early which ends with the connection, and these
        // sockets have none.
        (None, Some(_)) if endless && version == Version::HTTP_10 => {}
        (None, Some(seen)) => assert!(seen.fields.contains_key(REFUSED_FIELD), "{seen:?}"),
    }
}

/// The requests as our own parsers read them, with all their bytes at hand.
fn meant_requests(input: &[u8]) -> Vec<Message<Asked>> {
    let mut buf = BytesMut::from(input);
    let mut meant = Vec::new();
    while let Ok(Some(parsed)) = parse::request(&mut buf, BOUNDS.fields) {
        let mut head = parsed.head;
        hop::take(&mut head);
        head.fields.remove("host");
        let body = content(&mut buf, head.length, true);
        let last = body.is_none() || !parsed.keep_alive;
        meant.push(Message { start: hop::asked(&head), fields: head.fields.into_map(), body });
        if last {
            break;
        }
    }
    meant
}

/// The final answer as our own parsers read it, if it may be passed on; and whether its body ends
/// where nothing tells a client of HTTP/1.0. Nothing, if so many interim ones come first that they
/// are not passed on.
fn meant_response(answer: &[u8], method: &Method) -> Option<(Option<Message<StatusCode>>, bool)> {
    let mut buf = BytesMut::from(answer);
    for _ in 0..MAX_INTERIM {
        let Ok(Some(parsed)) = parse::response(&mut buf, method, BOUNDS.fields) else {
            return Some((None, false));
        };
        let mut head = parsed.head;
        match head.status {
            StatusCode::SWITCHING_PROTOCOLS => return Some((None, false)),
            status if status.is_informational() => continue,
            _ => {}
        }
        let length = if head.may_have_body(method) { head.length } else { Length::None };
        head.fields.remove_where(parse::is_own);
        let body = content(&mut buf, length, parsed.chunked);
        let message = Message { start: head.status, fields: head.fields.into_map(), body };
        return Some((message.body.is_some().then_some(message), length == Length::Stream));
    }
    None
}

/// A body at the front of `buf`; none if it is not whole.
fn content(buf: &mut BytesMut, length: Length, chunked: bool) -> Option<Content> {
    let mut content = Content::default();
    match length {
        Length::None => {}
        Length::Sized(length) => {
            let length = usize::try_from(length).ok().filter(|length| *length <= buf.len())?;
            content.data = buf.split_to(length).to_vec();
        }
        Length::Stream if chunked => {
            let mut state = Chunked::default();
            content.trailers = loop {
                match state.decode(buf).ok()? {
                    Decoded::Data(data) => content.data.extend_from_slice(&data),
                    Decoded::End(trailers) => break trailers.map(|t| t.into_map()).unwrap_or_default(),
                    Decoded::NeedMore => return None,
                }
            };
        }
        Length::Stream => content.data = buf.split().to_vec(),
    }
    Some(content)
}

/// Sends the bytes over a hop to hyper's server, and gives what came back.
async fn carry_requests(input: &[u8], make: MakeHop, seen: Seen) -> Vec<u8> {
    let servers = Servers::new(seen);
    let hop = make(servers.dial());
    let (stream, client) = hop::pair();
    let send = async {
        // In two packets, wherever that may be.
        let sum: usize = input.iter().map(|b| usize::from(*b)).sum();
        let (first, rest) = input.split_at(sum % (input.len() + 1));
        send_all(&client, first);
        for _ in 0..3 {
            yield_now().await;
        }
        send_all(&client, rest);
        client.shutdown(Shutdown::Write)
    };
    let _ = tokio::join!(serve(stream, &hop), send);
    drop(hop);
    servers.end().await;
    received(&client)
}

/// Asks hyper's client over a hop to an upstream that answers with these bytes and closes.
async fn carry_response(
    answer: &[u8],
    make: MakeHop,
    method: Method,
    version: Version,
) -> Option<Message<StatusCode>> {
    let (answer, upstreams) = (Bytes::copy_from_slice(answer), RefCell::new(Vec::new()));
    let hop = make(Rc::new(move || {
        let (ours, theirs) = hop::pair();
        send_all(&theirs, &answer);
        // Its other half stays open, and takes the request.
        let _ = theirs.shutdown(Shutdown::Write);
        upstreams.borrow_mut().push(theirs);
        ours
    }));
    let (stream, client) = hop::pair();
    let ask = async {
        let io = TokioIo::new(UnixStream::from_std(client).ok()?);
        let (mut sender, connection) =
            client::conn::http1::Builder::new().max_headers(256).handshake(io).await.ok()?;
        let connection = spawn_local(connection);
        let body = if method == Method::POST { Bytes::from_static(b"hello") } else { Bytes::new() };
        let request = Request::builder().method(method).uri("/").version(version).header(HOST, hop::HOST);
        let answered = sender.send_request(request.body(Full::new(body)).ok()?).await;
        let seen = match answered {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let body = collected(body).await;
                body.map(|body| Message {
                    start: parts.status,
                    fields: of_all_hops(parts.headers),
                    body: Some(body),
                })
            }
            Err(_) => None,
        };
        drop(sender);
        let _ = connection.await;
        seen
    };
    tokio::join!(serve(stream, &hop), ask).1
}

/// What hyper's server makes of the bytes as they are.
async fn read_by_hyper(input: &[u8]) -> Vec<Message<Asked>> {
    let seen = Seen::default();
    let (theirs, mut ours) = tokio::io::duplex(2 * MAX_INPUT);
    let server = serve_by_hyper(theirs, seen.clone());
    let sent = ours.write_all(input).await.and(ours.shutdown().await);
    drop(sent);
    let _ = tokio::io::copy(&mut ours, &mut tokio::io::sink()).await;
    server.await.expect("hyper does not panic");
    seen.take()
}

/// Hyper's servers, one for each connection that is dialled.
pub(super) struct Servers {
    seen: Seen,
    running: Rc<RefCell<Vec<JoinHandle<()>>>>,
}

impl Servers {
    pub(super) fn new(seen: Seen) -> Self {
        Self { seen, running: Rc::default() }
    }

    pub(super) fn dial(&self) -> Rc<dyn Fn() -> TcpStream> {
        let (seen, running) = (self.seen.clone(), self.running.clone());
        Rc::new(move || {
            let (ours, theirs) = hop::pair();
            let stream = UnixStream::from_std(theirs).expect("a stream of the runtime");
            running.borrow_mut().push(serve_by_hyper(stream, seen.clone()));
            ours
        })
    }

    /// Waits for their end, once nobody holds a connection any more.
    pub(super) async fn end(self) {
        hop::settle().await;
        for server in self.running.take() {
            server.await.expect("hyper does not panic");
        }
    }
}

/// Hyper's server, which notes what it is asked, and answers.
fn serve_by_hyper<S>(stream: S, seen: Seen) -> JoinHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (parts, body) = request.into_parts();
            let mut fields = of_all_hops(parts.headers);
            // An empty one names nobody, as none does.
            let host = fields.remove(HOST).filter(|host| !host.is_empty());
            let host = host.map_or(hop::HOST.into(), |host| host.as_bytes().to_vec());
            let status =
                if parts.method == Method::CONNECT { StatusCode::NOT_IMPLEMENTED } else { StatusCode::OK };
            let start = (parts.method, parts.uri.to_string(), host);
            let body = collected(body).await;
            seen.borrow_mut().push(Message { start, fields, body });
            let mut response = Response::new(Full::new(Bytes::from_static(b"ok")));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    let server = server::conn::http1::Builder::new()
        .half_close(true)
        .max_headers(256)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    spawn_local(async {
        // That the other side breaks off is what some input is for.
        let _ = server.await;
    })
}

async fn collected(body: Incoming) -> Option<Content> {
    let mut whole = body.collect().await.ok()?;
    let trailers = whole.trailers().cloned().unwrap_or_default();
    let mut rest = std::mem::take(&mut whole).aggregate();
    Some(Content { data: rest.copy_to_bytes(rest.remaining()).to_vec(), trailers })
}

/// The fields without those of one hop.
fn of_all_hops(mut fields: HeaderMap) -> HeaderMap {
    let keep_alive = http::HeaderName::from_static("keep-alive");
    for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE, keep_alive] {
        fields.remove(name);
    }
    fields
}

/// Hyper saw what was meant, and nothing else.
fn assert_same<'a>(meant: impl Iterator<Item = &'a Message<Asked>>, seen: &[Message<Asked>]) {
    let mut seen = seen.iter();
    for meant in meant {
        match seen.next() {
            Some(seen) => assert_eq!(seen, meant),
            // A body that is no body may be noticed before anything of its request has left.
            None => assert!(meant.body.is_none(), "never arrived: {meant:?}"),
        }
    }
    let more: Vec<_> = seen.collect();
    assert!(more.is_empty(), "nobody asked: {more:?}");
}

/// Method and path.
fn start(request: &Message<Asked>) -> (&Method, Option<String>) {
    let (method, target, _) = &request.start;
    let path = target.parse::<Uri>().ok().and_then(|uri| uri.path_and_query().map(|path| path.to_string()));
    (method, path.filter(|_| *method != Method::CONNECT))
}

/// Each request has one answer. What is no request after them has at most one.
fn assert_answers(meant: &[Message<Asked>], answers: &[u8]) {
    let mut buf = BytesMut::from(answers);
    for request in meant {
        let answer = loop {
            match parse::response(&mut buf, &request.start.0, BOUNDS.fields) {
                Ok(Some(interim)) if interim.head.status.is_informational() => {}
                Ok(Some(answer)) => break answer,
                // Whoever broke off is not answered.
                _ if request.body.is_none() => return,
                other => panic!("no answer to {request:?}: {other:?}"),
            }
        };
        let expected = match &request.body {
            Some(_) if request.start.0 == Method::CONNECT => StatusCode::NOT_IMPLEMENTED,
            Some(_) => StatusCode::OK,
            None => answer.head.status,
        };
        assert_eq!(answer.head.status, expected, "{request:?}");
        let length =
            if answer.head.may_have_body(&request.start.0) { answer.head.length } else { Length::None };
        assert!(content(&mut buf, length, answer.chunked).is_some(), "half an answer to {request:?}");
    }
    if let Ok(Some(refusal)) = parse::response(&mut buf, &Method::GET, BOUNDS.fields) {
        assert!(refusal.head.fields.get(REFUSED_FIELD).is_some(), "an answer to nothing");
        assert!(content(&mut buf, refusal.head.length, refusal.chunked).is_some());
    }
    assert!(buf.is_empty(), "more answers than requests: {:?}", String::from_utf8_lossy(&buf));
}

/// Writes without waiting: what is fuzzed fits into a socket's buffer.
fn send_all(mut socket: &Socket, bytes: &[u8]) {
    // Whoever has refused what came before may have closed.
    if let Err(error) = socket.write_all(bytes) {
        assert_ne!(error.kind(), ErrorKind::WouldBlock, "the socket's buffer is too small");
    }
}

/// All that has arrived.
fn received(mut socket: &Socket) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "the connection was not closed"),
    }
    bytes
}
