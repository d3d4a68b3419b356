//! HTTP/2 (RFC 9113) by the `h2` crate: from applications that begin with the preface, to
//! applications whose callers spoke it, and between sidecars where one knows nothing newer.

mod head;
mod peer;
mod watch;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::h2::{Reason as Code, RecvStream, SendStream, client, server};
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, HOST};
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::outgoing::{Outgoing, Stream};
use super::pump::{Sink as _, taken};
use super::{
    Announcement, Authority, Body, Bounds, Fields, Handler, LOAD_FIELD, Length, Next, RequestHead, Responder,
    ResponseHead, UPGRADE_FIELD,
};
use crate::error::{Error, Reason};
use peer::{NOT_HTTP_2, Peer};
use watch::{Seen, Verdict, Watch, Watched};

/// The preface that tells HTTP/2 from everything else (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Windows: room enough that a body does not wait for credit at the round trips of a cluster,
/// little enough that a caller cannot make us hold much.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 256 << 10;

/// Requests that we may have open on one connection until the peer says how many, and streams that
/// are remembered after they were reset.
const MAX_STREAMS: u32 = 1000;

/// How many clients a connection between sidecars is held to carry, where a bound is meant for one.
const CLIENTS: u32 = 16;

/// Streams that a peer may make us reset by breaking the protocol, in a connection's whole life.
const MAX_ERRORS: usize = 1024;

/// Bytes that DATA frames which wait to be taken may cost beside what is in them: so much that messages
/// of 20 bytes fill the windows before it, since what it bounds ends the connection.
const FRAME_OVERHEAD: usize = 16 << 20;

/// How long the preface and settings may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a peer may take to read why its connection ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one connection until it ends. Each request is served by a task of its own.
pub async fn serve<H: Handler + 'static>(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    handler: Rc<H>,
) -> Result<(), ::h2::Error> {
    let bounds = handler.bounds();
    // One caller's cancelled requests are no attack by its neighbours on the connection.
    let clients = if handler.shares_connections() { CLIENTS } else { 1 };
    let seen = Seen::new(clients);
    let handshake = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(bounds.streams)
        // What is cancelled before we have looked at it is bounded by the watch, over time.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_concurrent_reset_streams(MAX_STREAMS as usize)
        .max_local_error_reset_streams(Some(MAX_ERRORS * clients as usize))
        .data_frame_budget(FRAME_OVERHEAD)
        .max_header_list_size(head::list_size(&bounds))
        .handshake(Watched::new(io, seen.clone()));
    let Ok(connection) = timeout(HANDSHAKE.min(bounds.head_timeout), handshake).await else {
        handler.refused(&Error::new(Reason::HttpHeadTimeout, "the HTTP/2 preface did not arrive in time"));
        return Ok(());
    };
    let mut connection = connection?;
    let mut watch = Watch::new(seen.clone(), &bounds);
    let mut closing = handler.closing();
    let mut told = false;
    let mut lifetime = pin!(sleep(bounds.lifetime()));
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (handler, open) = (handler.clone(), seen.open());
                    // In memory of its own: a task's is copied from place to place while it begins and ends.
                    spawn_local(Box::pin(async move {
                        let _open = open;
                        stream(request, respond, &*handler).await;
                    }));
                }
                Some(Err(error)) => {
                    if let Some(refused) = broke_the_protocol(&error) {
                        handler.refused(&refused);
                    }
                    return Err(error);
                }
                None => return Ok(()),
            },
            verdict = poll_fn(|cx| watch.poll(cx)) => match verdict {
                Verdict::Malformed => {
                    handler.refused(&Error::new(Reason::HttpMalformed, "a stream that is not HTTP/2"));
                }
                Verdict::Refused(error) => {
                    handler.refused(&error);
                    connection.abrupt_shutdown(Code::ENHANCE_YOUR_CALM);
                    let _ = timeout(FAREWELL, poll_fn(|cx| connection.poll_closed(cx))).await;
                    return Ok(());
                }
                // It was asked to go, and does not answer.
                Verdict::Idle if told => return Ok(()),
                Verdict::Idle => {
                    told = true;
                    connection.graceful_shutdown();
                }
            },
            () = async { tokio::select! { () = &mut closing => {}, () = &mut lifetime => {} } }, if !told => {
                told = true;
                // GOAWAY with the highest id first, then the real one: no request is lost.
                connection.graceful_shutdown();
            }
        }
    }
}

/// What the crate found wrong with a connection, if it was that.
fn broke_the_protocol(error: &::h2::Error) -> Option<Error> {
    let ours = error.is_library() && error.is_go_away();
    let reason = match error.reason() {
        Some(Code::NO_ERROR) => return None,
        Some(Code::ENHANCE_YOUR_CALM) => Reason::HttpFlood,
        _ => Reason::HttpMalformed,
    };
    ours.then(|| Error::new(reason, format!("not HTTP/2 as it should be: {error}")))
}

async fn stream<H: Handler>(request: Request<RecvStream>, respond: server::SendResponse<Bytes>, handler: &H) {
    let (parts, recv) = request.into_parts();
    let mut answer = Answer { respond, method: parts.method.clone(), sink: None };
    if poll_fn(|cx| answer.poll_gone(cx)).now_or_never().is_some() {
        // Cancelled before we looked: nothing is begun for it.
        return;
    }
    let mut responder = Responder::H2(answer);
    let mut body = if recv.is_end_stream() { Body::Empty } else { Body::H2(recv) };
    let bounds = handler.bounds();
    match head::request(parts, &body, &bounds) {
        Ok(mut head) => {
            if let Next::Tunnel(other) = handler.handle(&mut head, &mut body, &mut responder).await {
                Box::pin(handler.tunnel(other, &mut body, &mut responder)).await;
            }
        }
        Err(error) => {
            handler.refused(&error);
            let _ = taken(responder.refusal(&error, false), bounds.body_timeout).await;
        }
    }
    if let Responder::H2(answer) = responder {
        answer.finish();
    }
}

/// The answer on one stream.
#[derive(Debug)]
pub struct Answer {
    respond: server::SendResponse<Bytes>,
    method: Method,
    sink: Option<Sink>,
}

impl Answer {
    pub(super) fn interim(&mut self, status: StatusCode, fields: Fields) -> io::Result<()> {
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields.into_map();
        self.respond.send_informational(response).map_err(into_io)
    }

    pub(super) fn head(&mut self, mut head: ResponseHead) -> io::Result<()> {
        head.put_load();
        let ends = !head.may_have_body(&self.method) || head.length.is_empty();
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = sized(head.fields, head.length);
        let stream = self.respond.send_response(response, ends).map_err(into_io)?;
        self.sink = Some(Sink::new(stream, ends));
        Ok(())
    }

    /// Sends the head that makes the stream a tunnel. HTTP/2 has no 101, so to a sidecar the switch is
    /// told by a field of our own.
    pub(super) fn tunnel(&mut self, mut head: ResponseHead) -> io::Result<()> {
        head.put_load();
        let mut response = Response::new(());
        *response.headers_mut() = head.fields.into_map();
        match head.upgrade {
            Some(protocol) => drop(response.headers_mut().insert(UPGRADE_FIELD, *protocol)),
            None => *response.status_mut() = head.status,
        }
        let stream = self.respond.send_response(response, false).map_err(into_io)?;
        self.sink = Some(Sink::new(stream, false));
        Ok(())
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.sink.as_mut().map_or(Poll::Ready(Ok(usize::MAX)), |sink| sink.poll_room(cx))
    }

    pub(super) fn data(&mut self, data: Bytes) {
        if let Some(sink) = &mut self.sink {
            sink.data(data);
        }
    }

    pub(super) fn end(&mut self, trailers: Option<Fields>) {
        if let Some(sink) = &mut self.sink {
            sink.end(trailers);
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink.as_mut().map_or(Poll::Ready(Ok(())), |sink| sink.poll_flush(cx))
    }

    pub(super) fn has_begun(&self) -> bool {
        self.sink.is_some()
    }

    /// Resets the stream, if no answer has begun.
    pub(super) fn reset(&mut self, code: Code) -> bool {
        if self.sink.is_none() {
            self.respond.send_reset(code);
        }
        self.sink.is_none()
    }

    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.sink {
            None => self.respond.poll_reset(cx).map(drop),
            Some(sink) => sink.poll_gone(cx),
        }
    }

    /// Ends the stream as far as it has not been ended: a tunnel that broke, as RFC 9113 section 8.5 has
    /// it. A whole answer before the end of the request
    /// (RFC 9113 section 8.1) is ended by the crate, which resets the stream without an error once
    /// the answer has left.
    fn finish(mut self) {
        match self.sink.map(Outgoing::unended) {
            Some(None) => {}
            Some(Some(mut stream)) if self.method == Method::CONNECT => {
                stream.send_reset(Code::CONNECT_ERROR)
            }
            Some(Some(mut stream)) => stream.send_reset(Code::INTERNAL_ERROR),
            None => self.respond.send_reset(Code::CANCEL),
        }
    }
}

/// A body that leaves on a stream.
pub type Sink = Outgoing<SendStream<Bytes>>;

impl Stream for SendStream<Bytes> {
    fn poll_send(&mut self, cx: &mut Context<'_>, piece: &mut Bytes, ends: bool) -> Poll<io::Result<()>> {
        while !piece.is_empty() {
            if self.capacity() == 0 {
                self.reserve_capacity(piece.len());
                match ready!(self.poll_capacity(cx)) {
                    Some(credit) => credit.map_err(into_io)?,
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                };
            }
            let now = piece.split_to(self.capacity().min(piece.len()));
            self.send_data(now, ends && piece.is_empty()).map_err(into_io)?;
        }
        Poll::Ready(Ok(()))
    }

    fn room(&mut self) -> usize {
        // Credit is given only to what is there.
        usize::MAX
    }

    fn end(&mut self, trailers: Option<Fields>) -> io::Result<()> {
        match trailers {
            Some(trailers) => self.send_trailers(trailers.into_map()),
            None => self.send_data(Bytes::new(), true),
        }
        .map_err(into_io)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_reset(cx).map(drop)
    }
}

fn sized(fields: Fields, length: Length) -> HeaderMap {
    let mut map = fields.into_map();
    if let Length::Sized(n) = length {
        map.insert(CONTENT_LENGTH, n.into());
    }
    map
}

fn into_io(error: ::h2::Error) -> io::Error {
    io::Error::other(error)
}

/// The client side of a connection: opens streams on it.
pub type Sender = client::SendRequest<Bytes>;

/// Opens the client side. The future drives the connection and ends with it.
pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    bounds: &Bounds,
) -> Result<(Sender, impl Future<Output = Result<(), ::h2::Error>> + use<IO>), ::h2::Error> {
    client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_concurrent_reset_streams(MAX_STREAMS as usize)
        .max_local_error_reset_streams(None)
        .data_frame_budget(FRAME_OVERHEAD)
        .max_header_list_size(head::list_size(bounds))
        .enable_push(false)
        .handshake(Peer::new(io))
        .await
}

/// Whether an error means that the peer spoke something else.
pub fn is_not_spoken(error: &::h2::Error) -> bool {
    error.get_io().is_some_and(|io| io.kind() == NOT_HTTP_2)
}

/// A request on its way, and the response that will come.
#[derive(Debug)]
pub struct Exchange {
    /// Where its body goes.
    pub sink: Sink,
    /// The response.
    pub response: client::ResponseFuture,
}

/// Sends a request's head on a connection that is ready. `host` stands in where the request
/// names nobody; `own` are fields that this hop adds.
pub fn send(
    sender: &mut Sender,
    head: &RequestHead,
    host: &str,
    own: HeaderMap,
) -> Result<Exchange, ::h2::Error> {
    let mut fields = head.fields.to_map();
    fields.remove(HOST);
    fields.extend(own);
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let mut uri = http::uri::Parts::default();
    uri.authority = head.authority.as_ref().map(Authority::to_uri).or_else(|| host.parse().ok());
    if head.method != Method::CONNECT {
        uri.scheme = Some(Scheme::HTTP);
        uri.path_and_query = Some(head.path.clone());
    }
    // Parts of a URI that was one: only a `*` target has no such form, and it is kept as a path.
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    // A tunnel's bytes are none of a body.
    if let Length::Sized(n) = head.length
        && !head.asks_for_tunnel()
    {
        fields.insert(CONTENT_LENGTH, n.into());
    }
    *request.headers_mut() = fields;
    let ends = head.length.is_empty() && !head.asks_for_tunnel();
    let (response, stream) = sender.send_request(request, ends)?;
    Ok(Exchange { sink: Sink::new(stream, ends), response })
}

/// A response's head and body.
pub fn received(response: Response<RecvStream>, method: &Method) -> (ResponseHead, Body<'static>) {
    let (parts, recv) = response.into_parts();
    let mut headers = parts.headers;
    for name in head::HOP_FIELDS {
        headers.remove(name);
    }
    let announced =
        headers.remove(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok()).map(Length::Sized);
    let ended = recv.is_end_stream();
    let load = headers.remove(LOAD_FIELD).and_then(|said| Announcement::read(said.as_bytes()));
    let mut head = ResponseHead { fields: headers.into(), load, ..ResponseHead::new(parts.status) };
    head.length = match announced {
        Some(length) => length,
        None if !ended && head.may_have_body(method) => Length::Stream,
        None => Length::None,
    };
    (head, if ended { Body::Empty } else { Body::H2(recv) })
}
