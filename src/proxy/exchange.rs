//! One request over one connection: its body goes while its answer comes.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pin_project_lite::pin_project;

use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::deadline::Deadline;
use crate::http::h1::parse::{ParsedResponse, Refused, is_own};
use crate::http::h1::{Conn, HeadError, Reader};
use crate::http::pump::{Broken, Sink, pump};
use crate::http::{
    Body, BodyError, Bounds, Fields, Frame, Length, PROTOCOL_FIELD, RequestHead, Responder, ResponseHead,
    UPGRADE_FIELD, h2, mesh,
};
use crate::pool::Lease;

/// What an exchange needs to know beside the message.
pub(super) struct Terms<'a> {
    /// The bounds of messages.
    pub bounds: &'a Bounds,
    /// How long nothing may come before an answer.
    pub patience: Duration,
    /// Who stands in for the host of a request that names none.
    pub host: &'a str,
    /// The peer is a sidecar that proved itself: its own fields are believed, and it is told which
    /// protocol the application speaks.
    pub sidecar: bool,
    /// The application speaks HTTP/2.
    pub h2: bool,
}

/// How an exchange ended well.
pub(super) struct Done<T = ()> {
    /// The answer's status.
    pub status: StatusCode,
    /// Whether the connection may carry another request.
    pub reusable: bool,
    /// The request asked for a tunnel and got it: the upstream's end, where the exchange has it.
    pub tunnel: Option<T>,
}

/// A stream that has become a tunnel: where bytes go, and where they come from.
pub(super) type Frames = (Box<dyn Sink>, Body<'static>);

/// Sends a request on an HTTP/1 connection and carries its answer back.
pub(super) async fn over_h1(
    lease: &mut Lease,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done> {
    let Conn { reader, writer } = &mut lease.conn;
    let written = writer.written();
    writer.request(head, terms.host);
    let sending = Sending::new();
    let send = pump(body, writer, terms.bounds.body_timeout);
    let receive = async {
        let parsed = h1_head(reader, head, respond, terms, &written).await?;
        let status = parsed.head.status;
        if parsed.head.grants_tunnel(head) {
            Box::pin(grant(parsed.head, respond, terms)).await?;
            return Ok(Done { status, reusable: false, tunnel: Some(()) });
        }
        let mut body = match parsed.head.length {
            length if length.is_empty() || !parsed.head.may_have_body(&head.method) => Body::Empty,
            length => Body::H1(reader.body(length, parsed.chunked)),
        };
        let keep_alive = parsed.keep_alive;
        if !sending.is_done() {
            respond.last();
        }
        answer(parsed.head, &mut body, respond, terms).await?;
        Ok(Done { status, reusable: keep_alive && !reader.has_leftover(), tunnel: None })
    };
    let done = both(send, receive, &sending).await?;
    Ok(Done { reusable: sending.is_done() && done.reusable, ..done })
}

/// The final head of an answer; interim ones are passed on.
async fn h1_head(
    reader: &mut Reader,
    request: &RequestHead,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
    written: &Cell<u64>,
) -> Result<ParsedResponse> {
    loop {
        let coming = |cx: &mut Context<'_>| reader.poll_response(cx, terms.bounds, &request.method);
        let parsed = unless_gone(respond, terms.patience, coming).await?;
        let parsed = parsed.map_err(|error| unread(error, written.get()))?;
        match parsed.head.status {
            StatusCode::SWITCHING_PROTOCOLS if !parsed.head.grants_tunnel(request) => {
                return Err(malformed("it switches to a protocol that was not offered"));
            }
            StatusCode::SWITCHING_PROTOCOLS => return Ok(parsed),
            status if status.is_informational() => {
                Box::pin(interim(status, parsed.head.fields, respond, terms)).await?;
            }
            _ => return Ok(parsed),
        }
    }
}

/// What it says of a request that no head of an answer could be read; `written` bytes of it have
/// left.
fn unread(error: HeadError, written: u64) -> Error {
    match error {
        // The write took nothing, so nobody can have read anything.
        HeadError::Closed if written == 0 => {
            Error::new(Reason::UpstreamReset, "the connection was closed before the request left")
                .retry(Retry::Unprocessed)
        }
        HeadError::Closed => lost("the connection was closed before an answer"),
        HeadError::Lost(error) => lost(format!("the connection was lost within the answer's head: {error}")),
        HeadError::Refused(Refused::TooLarge) => malformed("its head is too large"),
        HeadError::Refused(Refused::Malformed(why) | Refused::Unsupported(why)) => malformed(why),
        HeadError::Refused(Refused::Version) => malformed("its version is not HTTP/1"),
    }
}

/// Waits for what comes from the upstream, as long as the downstream wants it and no longer than
/// `patience`.
async fn unless_gone<T>(
    respond: &mut Responder<'_>,
    patience: Duration,
    mut coming: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Result<T> {
    let mut patience = Deadline::new(patience);
    poll_fn(|cx| match coming(cx) {
        Poll::Ready(come) => Poll::Ready(Ok(come)),
        Poll::Pending if respond.poll_gone(cx).is_ready() => Poll::Ready(Err(given_up())),
        Poll::Pending => patience.poll(cx).map(|()| Err(silent())),
    })
    .await
}

/// Sends a request on an HTTP/2 connection and carries its answer back.
pub(super) async fn over_h2(
    mut sender: h2::Sender,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done<Frames>> {
    let told = match &head.upgrade {
        Some(protocols) if terms.sidecar => Some((UPGRADE_FIELD, protocols.clone())),
        _ => (terms.sidecar && terms.h2).then_some((PROTOCOL_FIELD, HeaderValue::from_static("h2"))),
    };
    let told = told.map(|(name, value)| (HeaderName::from_static(name), value));
    // Nothing has left as long as the stream is not open.
    let exchange = h2::send(&mut sender, head, terms.host, told)
        .map_err(|error| reset(&error).retry(Retry::Unprocessed))?;
    let h2::Exchange { mut sink, mut response } = exchange;
    if head.asks_for_tunnel() {
        return Box::pin(tunnel_over_h2(sink, response, head, respond, terms)).await;
    }
    let sending = Sending::new();
    let send = pump(body, &mut sink, terms.bounds.body_timeout);
    let receive = async {
        let (head_back, mut body) = h2_head(&mut response, &head.method, respond, terms).await?;
        let status = head_back.status;
        if !sending.is_done() {
            respond.last();
        }
        answer(head_back, &mut body, respond, terms).await?;
        Ok(Done { status, reusable: true, tunnel: None })
    };
    both(send, receive, &sending).await
}

/// The answer to a request that asked for a tunnel. Until it is granted, nothing but the head has
/// been sent.
async fn tunnel_over_h2(
    mut sink: h2::Sink,
    mut response: ::h2::client::ResponseFuture,
    head: &RequestHead,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done<Frames>> {
    let (mut head_back, mut body) = h2_head(&mut response, &head.method, respond, terms).await?;
    if grants(&mut head_back, head, terms)? {
        let status = head_back.status;
        grant(head_back, respond, terms).await?;
        return Ok(Done { status, reusable: true, tunnel: Some((Box::new(sink), body)) });
    }
    refused_tunnel(head_back, &mut body, &mut sink, respond, terms).await
}

/// As [`tunnel_over_h2`].
async fn tunnel_over_mesh(
    mut sink: mesh::Sink,
    mut response: mesh::Response,
    head: &RequestHead,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done<Frames>> {
    let mut head_back = mesh_head(&mut response, respond, terms).await?;
    if grants(&mut head_back, head, terms)? {
        let status = head_back.status;
        grant(head_back, respond, terms).await?;
        return Ok(Done { status, reusable: true, tunnel: Some((Box::new(sink), response.tunnel())) });
    }
    let mut body = response.body(&head_back, &head.method);
    refused_tunnel(head_back, &mut body, &mut sink, respond, terms).await
}

/// Whether a stream's answer grants the tunnel that was asked for. A sidecar tells the switch of an
/// upgrade by a field of its own.
fn grants(head_back: &mut ResponseHead, head: &RequestHead, terms: &Terms<'_>) -> Result<bool> {
    if terms.sidecar
        && let Some(protocol) = head_back.fields.get(UPGRADE_FIELD)
    {
        head_back.upgrade = HeaderValue::from_bytes(protocol).ok();
        head_back.status = StatusCode::SWITCHING_PROTOCOLS;
        head_back.fields.remove(UPGRADE_FIELD);
        if !head_back.grants_tunnel(head) {
            return Err(malformed("it switches to a protocol that was not offered"));
        }
    }
    Ok(head_back.grants_tunnel(head))
}

/// It is an ordinary request then, without a body.
async fn refused_tunnel(
    head_back: ResponseHead,
    body: &mut Body<'_>,
    sink: &mut impl Sink,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done<Frames>> {
    sink.end(None);
    let _ = poll_fn(|cx| sink.poll_flush(cx)).await;
    let status = head_back.status;
    answer(head_back, body, respond, terms).await?;
    Ok(Done { status, reusable: true, tunnel: None })
}

async fn h2_head(
    response: &mut ::h2::client::ResponseFuture,
    method: &Method,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<(ResponseHead, Body<'static>)> {
    loop {
        let next = unless_gone(respond, terms.patience, |cx| {
            if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                return Poll::Ready(Ok(Err(interim)));
            }
            Pin::new(&mut *response).poll(cx).map(|r| r.map(Ok))
        });
        match next.await?.map_err(|error| reset(&error))? {
            Ok(last) => return Ok(h2::received(last, method)),
            Err(early) if early.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(malformed("it switches protocols, which HTTP/2 does not have"));
            }
            Err(early) => {
                let (parts, ()) = early.into_parts();
                Box::pin(interim(parts.status, parts.headers.into(), respond, terms)).await?;
            }
        }
    }
}

/// Sends a request to another sidecar and carries its answer back.
pub(super) async fn over_mesh(
    link: mesh::Link,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done<Frames>> {
    let mut own = HeaderMap::new();
    if let Some(protocols) = &head.upgrade {
        own.insert(UPGRADE_FIELD, protocols.clone());
    } else if terms.h2 {
        own.insert(PROTOCOL_FIELD, HeaderValue::from_static("h2"));
    }
    // Nothing has left as long as the stream is not open.
    let (mut sink, mut response) = link.send(head, terms.host, &own).map_err(|lost| untaken(&lost))?;
    drop(link);
    if head.asks_for_tunnel() {
        return Box::pin(tunnel_over_mesh(sink, response, head, respond, terms)).await;
    }
    let sending = Sending::new();
    let send = pump(body, &mut sink, terms.bounds.body_timeout);
    let receive = async {
        let head_back = mesh_head(&mut response, respond, terms).await?;
        let status = head_back.status;
        let mut body = response.body(&head_back, &head.method);
        if !sending.is_done() {
            respond.last();
        }
        answer(head_back, &mut body, respond, terms).await?;
        Ok(Done { status, reusable: true, tunnel: None })
    };
    both(send, receive, &sending).await
}

/// The final head of an answer; interim ones are passed on.
async fn mesh_head(
    response: &mut mesh::Response,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<ResponseHead> {
    loop {
        let next = unless_gone(respond, terms.patience, |cx| response.poll_head(cx)).await?;
        let next = next.map_err(|lost| stream_lost(&lost))?;
        match next.status {
            StatusCode::SWITCHING_PROTOCOLS => {
                return Err(malformed("it switches protocols, which streams do not have"));
            }
            status if status.is_informational() => {
                Box::pin(interim(status, next.fields, respond, terms)).await?;
            }
            _ => return Ok(next),
        }
    }
}

/// What a stream's loss before the answer says of the request.
fn stream_lost(lost_stream: &mesh::Lost) -> Error {
    match lost_stream {
        mesh::Lost::Untaken | mesh::Lost::Reset(mesh::Code::REFUSED_STREAM) => untaken(lost_stream),
        mesh::Lost::Malformed(why) => malformed(why),
        mesh::Lost::Reset(_) => lost(format!("the stream was lost before an answer: {lost_stream}")),
        mesh::Lost::Connection(why) => lost(format!("the connection was lost before an answer: {why}")),
    }
}

fn untaken(lost_stream: &mesh::Lost) -> Error {
    Error::new(Reason::UpstreamRefused, format!("the peer took no request: {lost_stream}"))
        .retry(Retry::Unprocessed)
}

/// Passes an interim answer on.
async fn interim(
    status: StatusCode,
    mut fields: Fields,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<()> {
    if !terms.sidecar {
        fields.remove_where(is_own);
    }
    respond.interim(status, fields).await.map_err(|_| given_up())
}

/// Tells the downstream that it has the tunnel that it asked for.
async fn grant(mut head: ResponseHead, respond: &mut Responder<'_>, terms: &Terms<'_>) -> Result<()> {
    if !terms.sidecar {
        head.fields.remove_where(is_own);
    }
    respond.tunnel(head).await.map_err(|_| given_up())
}

/// Carries the answer to the downstream. Once it has begun, nothing can be tried again.
async fn answer(
    mut head: ResponseHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<()> {
    if !terms.sidecar {
        head.fields.remove_where(is_own);
    }
    // The head of a body of known length waits for its first bytes: an endpoint that dies in
    // between has not answered, and another may. A body of unknown length may be a stream that is
    // silent for long, so there the head goes ahead.
    let first = match head.length {
        Length::Sized(_) if !body.is_done() => {
            unless_gone(respond, terms.bounds.body_timeout, |cx| body.poll_frame(cx)).await?
        }
        _ => Ok(None),
    };
    let first = beginning(first)?;
    respond.head(head).map_err(|_| given_up())?;
    if let Some(data) = first {
        respond.data(data);
    }
    pump(body, respond, terms.bounds.body_timeout).await.map_err(|broken| match broken {
        Broken::Sink(_) => given_up(),
        Broken::Silent => silent(),
        Broken::Stuck => {
            Error::new(Reason::HttpDownstreamGone, "the downstream took nothing for http.body_timeout")
        }
        Broken::Source(BodyError::Malformed(why)) => malformed(why),
        Broken::Source(BodyError::Gone(error)) => cut(&error),
        Broken::Source(BodyError::Reset(error)) => cut(&error),
    })
}

/// The first bytes of a body of known length.
fn beginning(first: Result<Option<Frame>, BodyError>) -> Result<Option<Bytes>> {
    match first {
        Ok(Some(Frame::Data(data))) => Ok(Some(data)),
        Ok(Some(Frame::Trailers(_))) => Err(malformed("its body is shorter than announced")),
        Ok(None) => Ok(None),
        Err(BodyError::Malformed(why)) => Err(malformed(why)),
        Err(BodyError::Gone(error)) => Err(lost(format!("lost between head and body: {error}"))),
        Err(BodyError::Reset(error)) => Err(lost(format!("lost between head and body: {error}"))),
    }
}

/// How far a request has gone.
struct Sending(Cell<Sent>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Partly,
    Wholly,
    /// It could not be sent to its end.
    Broken,
}

impl Sending {
    fn new() -> Self {
        Self(Cell::new(Sent::Partly))
    }

    fn is_done(&self) -> bool {
        self.0.get() == Sent::Wholly
    }
}

pin_project! {
    /// What [`both`] returns.
    struct Both<'a, S, R> {
        #[pin]
        send: S,
        #[pin]
        receive: R,
        sending: &'a Sending,
    }
}

/// Runs both ways of an exchange until the answer is there. A request that could not be sent to
/// its end may still be answered; one that the downstream broke off is not to be.
fn both<S, R>(send: S, receive: R, sending: &Sending) -> Both<'_, S, R> {
    Both { send, receive, sending }
}

impl<S, R, T> Future for Both<'_, S, R>
where
    S: Future<Output = Result<(), Broken>>,
    R: Future<Output = Result<Done<T>>>,
{
    type Output = Result<Done<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.sending.0.get() == Sent::Partly
            && let Poll::Ready(end) = this.send.poll(cx)
        {
            this.sending.0.set(Sent::Broken);
            match end {
                Ok(()) => this.sending.0.set(Sent::Wholly),
                Err(Broken::Sink(_)) => {}
                Err(Broken::Stuck) => return Poll::Ready(Err(silent())),
                Err(Broken::Silent) => {
                    let why = "the request's body stopped coming";
                    return Poll::Ready(Err(Error::new(Reason::HttpBodyTimeout, why)));
                }
                Err(Broken::Source(BodyError::Malformed(why))) => {
                    return Poll::Ready(Err(Error::new(Reason::HttpMalformed, why)));
                }
                Err(Broken::Source(BodyError::Gone(_) | BodyError::Reset(_))) => {
                    return Poll::Ready(Err(given_up()));
                }
            }
        }
        this.receive.poll(cx)
    }
}

fn given_up() -> Error {
    Error::new(Reason::HttpDownstreamGone, "the downstream gave the request up")
}

fn silent() -> Error {
    Error::new(Reason::UpstreamTimeout, "nothing came from the upstream for http.body_timeout")
}

/// It may have been processed: nobody answered.
fn lost(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::UpstreamReset, detail).retry(Retry::Idempotent)
}

/// The answer ended before its end.
fn cut(error: &dyn std::fmt::Display) -> Error {
    Error::new(Reason::UpstreamReset, format!("the answer's body was cut: {error}"))
}

fn malformed(why: &'static str) -> Error {
    Error::new(Reason::UpstreamMalformed, format!("the answer is not valid HTTP: {why}"))
}

/// What an HTTP/2 error before the answer says of the request (RFC 9113 section 8.7): a stream
/// that was refused, or that lies beyond a GOAWAY's last, was not processed.
fn reset(error: &::h2::Error) -> Error {
    let refused = error.is_reset() && error.reason() == Some(::h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) {
        return Error::new(Reason::UpstreamRefused, format!("the peer took no request: {error}"))
            .retry(Retry::Unprocessed);
    }
    if error.is_library() {
        // What came could not be read: the crate gave up on it, not the peer.
        let why = match error.reason() {
            // So large a frame is text: HTTP/1, in which the server complains.
            Some(::h2::Reason::FRAME_SIZE_ERROR) => "the upstream does not speak HTTP/2, as its caller does",
            _ => "the answer is not valid HTTP/2",
        };
        return Error::new(Reason::UpstreamMalformed, format!("{why}: {error}"));
    }
    let detail = match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
            "the connection was lost before an answer".into()
        }
        _ => format!("the stream was lost before an answer: {error}"),
    };
    lost(detail)
}
