//! HTTP/2 (RFC 9113) by the `h2` crate: between sidecars, from applications that begin with the
//! preface, and to applications whose callers spoke it.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use ::h2::{Reason as Code, RecvStream, SendStream, client, server};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::h1::parse::is_own;
use super::h2_peer::{NOT_HTTP_2, Peer};
use super::{
    Body, Bounds, Fields, Handler, Length, Next, RequestHead, Responder, ResponseHead, UPGRADE_FIELD,
};
use crate::error::{Error, Reason};

/// The preface that tells HTTP/2 from everything else (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Windows: room enough that a body does not wait for credit at the round trips of a cluster,
/// little enough that a caller cannot make us hold much.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 256 << 10;

/// Requests that a peer may have open on one connection.
const MAX_STREAMS: u32 = 1000;

/// How long the preface and settings may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Fields of one hop, which HTTP/2 has no place for (RFC 9113 section 8.2.2).
const HOP_FIELDS: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Serves one connection until it ends. Each request is served by a task of its own.
pub async fn serve<H: Handler + 'static>(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    handler: Rc<H>,
) -> Result<(), ::h2::Error> {
    let bounds = handler.bounds();
    let mut builder = server::Builder::new();
    if handler.shares_connections() {
        // One caller's cancelled requests are no attack by its neighbours on the connection.
        builder
            .max_pending_accept_reset_streams(MAX_STREAMS as usize)
            .max_concurrent_reset_streams(MAX_STREAMS as usize)
            .max_local_error_reset_streams(None);
    }
    let handshake = builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(list_size(bounds.head_bytes, bounds.fields))
        .handshake(io);
    let Ok(connection) = timeout(HANDSHAKE.min(bounds.head_timeout), handshake).await else {
        return Ok(());
    };
    let mut connection = connection?;
    let mut closing = pin!(handler.closing());
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let handler = handler.clone();
                    spawn_local(async move { stream(request, respond, &*handler).await });
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            () = &mut closing, if !told => {
                told = true;
                // GOAWAY with the highest id first, then the real one: no request is lost.
                connection.graceful_shutdown();
            }
        }
    }
}

async fn stream<H: Handler>(request: Request<RecvStream>, respond: server::SendResponse<Bytes>, handler: &H) {
    let (parts, recv) = request.into_parts();
    let mut responder = Responder::H2(Answer { respond, method: parts.method.clone(), sink: None });
    let mut body = if recv.is_end_stream() { Body::Empty } else { Body::H2(recv) };
    match request_head(parts, &body, &handler.bounds()) {
        Ok(head) => {
            if let Next::Tunnel(other) = handler.handle(head, &mut body, &mut responder).await {
                handler.tunnel(other, &mut body, &mut responder).await;
            }
        }
        Err(error) => {
            handler.refused(&error);
            let _ = responder.refusal(&error, false).await;
        }
    }
    if let Responder::H2(answer) = responder {
        answer.finish();
    }
}

fn request_head(parts: http::request::Parts, body: &Body<'_>, bounds: &Bounds) -> Result<RequestHead, Error> {
    let malformed = |why: &'static str| Error::new(Reason::HttpMalformed, why);
    let mut headers = parts.headers;
    within(&parts.method, &parts.uri, &headers, bounds)?;
    if HOP_FIELDS.iter().any(|name| headers.contains_key(*name)) {
        return Err(malformed("a field of one connection, which HTTP/2 does not have"));
    }
    if headers.get("te").is_some_and(|v| v != "trailers") {
        return Err(malformed("TE may only say trailers"));
    }
    let host = headers.remove(http::header::HOST);
    let authority = match (parts.uri.authority().cloned(), host) {
        (Some(authority), None) => Some(authority),
        (Some(authority), Some(host))
            if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            Some(authority)
        }
        (Some(_), Some(_)) => return Err(malformed("Host is not :authority")),
        (None, Some(host)) => {
            Some(host.as_bytes().try_into().map_err(|_| malformed("Host is not an authority"))?)
        }
        (None, None) => None,
    };
    if authority.as_ref().is_some_and(|a| a.as_str().contains('@')) {
        return Err(malformed("an authority with user information"));
    }
    let connects = parts.method == Method::CONNECT;
    let path = match parts.uri.path_and_query() {
        // RFC 9113 section 8.5: the authority alone, which names a port.
        None if connects && authority.as_ref().is_some_and(|a| a.port_u16().is_some()) => {
            PathAndQuery::from_static("/")
        }
        None if connects => return Err(malformed("CONNECT needs host:port")),
        // The crate lets this pass as the extended CONNECT of RFC 8441 alone, which is not offered.
        Some(_) if connects => return Err(malformed("CONNECT has no path")),
        path => path.cloned().ok_or_else(|| malformed("no :path"))?,
    };
    let length = match headers.remove(http::header::CONTENT_LENGTH) {
        // The crate has checked that it is a number, and will check that the body fits it.
        Some(value) => {
            let number = value.to_str().ok().and_then(|v| v.parse().ok());
            Length::Sized(number.ok_or_else(|| malformed("content-length is not a number"))?)
        }
        None if connects || matches!(body, Body::Empty) => Length::None,
        None => Length::Stream,
    };
    if connects && !length.is_empty() {
        return Err(malformed("CONNECT has no body"));
    }
    let (method, fields) = (parts.method, headers.into());
    Ok(RequestHead { method, authority, path, version: Version::HTTP_2, fields, length, upgrade: None })
}

/// The largest field section that is decoded at all. HTTP/2 counts 32 bytes for each field beyond its
/// text (RFC 9113 section 6.5.2), and a sidecar adds fields of its own; [`within`] is the bound.
fn list_size(head_bytes: usize, fields: usize) -> u32 {
    const BEYOND: usize = 32;
    const OWN: usize = 2048;
    u32::try_from(head_bytes + fields * BEYOND + OWN).unwrap_or(u32::MAX)
}

/// Whether a head is within the bounds, measured as it would be on HTTP/1.
fn within(method: &Method, uri: &Uri, headers: &HeaderMap, bounds: &Bounds) -> Result<(), Error> {
    let carried = || headers.iter().filter(|(name, _)| !is_own(name.as_str().as_bytes()));
    if carried().count() > bounds.fields {
        return Err(Error::new(Reason::HttpHeadTooLarge, "the request has too many fields"));
    }
    let authority = uri.authority().map_or(0, |a| a.as_str().len() + "host: \r\n".len());
    let path = uri.path_and_query().map_or(0, |p| p.as_str().len());
    let line = method.as_str().len() + path + "  HTTP/1.1\r\n\r\n".len();
    let fields: usize =
        carried().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    if line + authority + fields > bounds.head_bytes {
        return Err(Error::new(Reason::HttpHeadTooLarge, "the request's head is too large"));
    }
    Ok(())
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

    pub(super) fn head(&mut self, head: ResponseHead) -> io::Result<()> {
        let ends = !head.may_have_body(&self.method) || head.length.is_empty();
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = sized(head.fields, head.length);
        let stream = self.respond.send_response(response, ends).map_err(into_io)?;
        self.sink = Some(Sink { stream, waiting: None, ended: ends });
        Ok(())
    }

    /// Sends the head that makes the stream a tunnel. HTTP/2 has no 101, so to a sidecar the switch is
    /// told by a field of our own.
    pub(super) fn tunnel(&mut self, head: ResponseHead) -> io::Result<()> {
        let mut response = Response::new(());
        *response.headers_mut() = head.fields.into_map();
        match head.upgrade {
            Some(protocol) => drop(response.headers_mut().insert(UPGRADE_FIELD, protocol)),
            None => *response.status_mut() = head.status,
        }
        let stream = self.respond.send_response(response, false).map_err(into_io)?;
        self.sink = Some(Sink { stream, waiting: None, ended: false });
        Ok(())
    }

    pub(super) async fn data(&mut self, data: Bytes) -> io::Result<()> {
        self.sink()?.data(data).await
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.sink()?.flush().await
    }

    pub(super) async fn end(&mut self, trailers: Option<Fields>) -> io::Result<()> {
        self.sink()?.end(trailers).await
    }

    fn sink(&mut self) -> io::Result<&mut Sink> {
        self.sink.as_mut().ok_or_else(|| io::Error::other("an answer's body before its head"))
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

    pub(super) async fn gone(&mut self) {
        let gone = match &mut self.sink {
            None => poll_fn(|cx| self.respond.poll_reset(cx)).await,
            Some(sink) => poll_fn(|cx| sink.stream.poll_reset(cx)).await,
        };
        drop(gone);
    }

    /// Ends the stream as far as it has not been ended: a tunnel that broke, as RFC 9113 section 8.5 has
    /// it. A whole answer before the end of the request
    /// (RFC 9113 section 8.1) is ended by the crate, which resets the stream without an error once
    /// the answer has left.
    fn finish(mut self) {
        match self.sink {
            Some(sink) if sink.ended => {}
            Some(mut sink) if self.method == Method::CONNECT => sink.stream.send_reset(Code::CONNECT_ERROR),
            Some(mut sink) => sink.stream.send_reset(Code::INTERNAL_ERROR),
            None => self.respond.send_reset(Code::CANCEL),
        }
    }
}

/// A body that leaves on a stream.
#[derive(Debug)]
pub struct Sink {
    stream: SendStream<Bytes>,
    /// The last piece, kept until it is known whether it is the last.
    waiting: Option<Bytes>,
    ended: bool,
}

impl Sink {
    /// Sends a piece, as fast as the peer gives credit.
    pub async fn data(&mut self, data: Bytes) -> io::Result<()> {
        match self.waiting.replace(data) {
            Some(previous) => self.send(previous, false).await,
            None => Ok(()),
        }
    }

    /// Sends what waits, since nothing follows at once.
    pub async fn flush(&mut self) -> io::Result<()> {
        match self.waiting.take() {
            Some(data) => self.send(data, false).await,
            None => Ok(()),
        }
    }

    /// Ends the body.
    pub async fn end(&mut self, trailers: Option<Fields>) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        let last = self.waiting.take();
        match (trailers, last) {
            (Some(trailers), last) => {
                if let Some(data) = last {
                    self.send(data, false).await?;
                }
                self.ended = true;
                self.stream.send_trailers(trailers.into_map()).map_err(into_io)
            }
            (None, Some(data)) => {
                self.send(data, true).await?;
                self.ended = true;
                Ok(())
            }
            (None, None) => {
                self.ended = true;
                self.stream.send_data(Bytes::new(), true).map_err(into_io)
            }
        }
    }

    async fn send(&mut self, mut data: Bytes, ends: bool) -> io::Result<()> {
        loop {
            if self.stream.capacity() == 0 {
                self.stream.reserve_capacity(data.len());
                match poll_fn(|cx| self.stream.poll_capacity(cx)).await {
                    Some(credit) => credit.map_err(into_io)?,
                    None => return Err(io::ErrorKind::BrokenPipe.into()),
                };
            }
            let now = self.stream.capacity().min(data.len());
            if now == data.len() {
                return self.stream.send_data(data, ends).map_err(into_io);
            }
            self.stream.send_data(data.split_to(now), false).map_err(into_io)?;
        }
    }
}

fn sized(fields: Fields, length: Length) -> HeaderMap {
    let mut map = fields.into_map();
    if let Length::Sized(n) = length {
        map.insert(http::header::CONTENT_LENGTH, n.into());
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
        .max_header_list_size(list_size(bounds.head_bytes, bounds.fields))
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
/// names nobody; `own` is a field between sidecars.
pub fn send(
    sender: &mut Sender,
    head: &RequestHead,
    host: &str,
    own: Option<(HeaderName, HeaderValue)>,
) -> Result<Exchange, ::h2::Error> {
    let mut fields = head.fields.to_map();
    fields.remove(http::header::HOST);
    fields.extend(own);
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let mut uri = http::uri::Parts::default();
    uri.authority = head.authority.clone().or_else(|| host.parse().ok());
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
        fields.insert(http::header::CONTENT_LENGTH, n.into());
    }
    *request.headers_mut() = fields;
    let ends = head.length.is_empty() && !head.asks_for_tunnel();
    let (response, stream) = sender.send_request(request, ends)?;
    Ok(Exchange { sink: Sink { stream, waiting: None, ended: ends }, response })
}

/// A response's head and body.
pub fn received(response: Response<RecvStream>, method: &Method) -> (ResponseHead, Body<'static>) {
    let (parts, recv) = response.into_parts();
    let mut headers = parts.headers;
    for name in HOP_FIELDS {
        headers.remove(name);
    }
    let announced = headers
        .remove(http::header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse().ok())
        .map(Length::Sized);
    let ended = recv.is_end_stream();
    let mut head = ResponseHead { fields: headers.into(), ..ResponseHead::new(parts.status) };
    head.length = match announced {
        Some(length) => length,
        None if !ended && head.may_have_body(method) => Length::Stream,
        None => Length::None,
    };
    (head, if ended { Body::Empty } else { Body::H2(recv) })
}
