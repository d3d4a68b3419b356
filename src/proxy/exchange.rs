//! One request over one connection: its body goes while its answer comes.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::time::timeout;

use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::h1::parse::{ParsedResponse, Refused, is_own};
use crate::http::h1::{Conn, HeadError, Reader};
use crate::http::pump::{Broken, pump};
use crate::http::{
    Body, BodyError, Bounds, Fields, Frame, Length, PROTOCOL_FIELD, RequestHead, Responder, ResponseHead, h2,
};

/// What an exchange needs to know beside the message.
pub struct Terms<'a> {
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
pub struct Done {
    /// The answer's status.
    pub status: StatusCode,
    /// Whether the connection may carry another request.
    pub reusable: bool,
}

/// Sends a request on an HTTP/1 connection and carries its answer back.
pub async fn over_h1(
    conn: &mut Conn,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done> {
    let Conn { reader, writer } = conn;
    let written = writer.written();
    let sends = !body.is_empty();
    let all_sent = Cell::new(false);
    writer.request(head, terms.host);
    let send = async {
        if sends {
            pump(body, writer, terms.bounds.body_timeout).await?;
        } else {
            writer.end(None).await.map_err(Broken::Sink)?;
        }
        all_sent.set(true);
        Ok(())
    };
    let receive = async {
        let parsed = h1_head(reader, &head.method, respond, terms, &written).await?;
        let mut body = match parsed.head.length {
            length if length.is_empty() || !parsed.head.may_have_body(&head.method) => Body::Empty,
            length => Body::H1(reader.body(length, parsed.chunked)),
        };
        let status = parsed.head.status;
        if !all_sent.get() {
            respond.last();
        }
        answer(parsed.head, &mut body, respond, terms).await?;
        Ok(Done { status, reusable: parsed.keep_alive && !reader.has_leftover() })
    };
    let (sent, done) = both(send, receive).await?;
    Ok(Done { reusable: sent && done.reusable, ..done })
}

/// The final head of an answer; interim ones are passed on.
async fn h1_head(
    reader: &mut Reader,
    method: &Method,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
    written: &Cell<u64>,
) -> Result<ParsedResponse> {
    loop {
        let parsed = tokio::select! {
            biased;
            parsed = timeout(terms.patience, reader.response(terms.bounds, method)) => parsed,
            () = respond.gone() => return Err(given_up()),
        };
        let parsed = parsed.map_err(|_| silent())?;
        let parsed = parsed.map_err(|error| match error {
            // The write took nothing, so nobody can have read anything.
            HeadError::Closed if written.get() == 0 => {
                Error::new(Reason::UpstreamReset, "the connection was closed before the request left")
                    .retry(Retry::Unprocessed)
            }
            HeadError::Closed => lost("the connection was closed before an answer"),
            HeadError::Lost(error) => {
                lost(format!("the connection was lost within the answer's head: {error}"))
            }
            HeadError::Refused(Refused::TooLarge) => malformed("its head is too large"),
            HeadError::Refused(Refused::Malformed(why) | Refused::Unsupported(why)) => malformed(why),
            HeadError::Refused(Refused::Version) => malformed("its version is not HTTP/1"),
        })?;
        match parsed.head.status {
            StatusCode::SWITCHING_PROTOCOLS => return Err(malformed("it switches protocols unasked")),
            status if status.is_informational() => {
                interim(status, parsed.head.fields, respond, terms).await?;
            }
            _ => return Ok(parsed),
        }
    }
}

/// Sends a request on an HTTP/2 connection and carries its answer back.
pub(super) async fn over_h2(
    mut sender: h2::Sender,
    head: &RequestHead,
    body: &mut Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done> {
    let told = (terms.sidecar && terms.h2)
        .then(|| (HeaderName::from_static(PROTOCOL_FIELD), HeaderValue::from_static("h2")));
    // Nothing has left as long as the stream is not open.
    let exchange = h2::send(&mut sender, head, terms.host, told)
        .map_err(|error| reset(&error).retry(Retry::Unprocessed))?;
    let h2::Exchange { mut sink, mut response } = exchange;
    let all_sent = Cell::new(body.is_empty());
    let send = async {
        if !all_sent.get() {
            pump(body, &mut sink, terms.bounds.body_timeout).await?;
            all_sent.set(true);
        }
        Ok(())
    };
    let receive = async {
        let (head_back, mut body) = h2_head(&mut response, &head.method, respond, terms).await?;
        let status = head_back.status;
        if !all_sent.get() {
            respond.last();
        }
        answer(head_back, &mut body, respond, terms).await?;
        Ok(Done { status, reusable: true })
    };
    both(send, receive).await.map(|(_, done)| done)
}

async fn h2_head(
    response: &mut ::h2::client::ResponseFuture,
    method: &Method,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<(ResponseHead, Body<'static>)> {
    loop {
        let next = poll_fn(|cx| {
            if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                return Poll::Ready(Ok(Err(interim)));
            }
            Pin::new(&mut *response).poll(cx).map(|r| r.map(Ok))
        });
        let next = tokio::select! {
            biased;
            next = timeout(terms.patience, next) => {
                next.map_err(|_| silent())?.map_err(|error| reset(&error))?
            }
            () = respond.gone() => return Err(given_up()),
        };
        match next {
            Ok(last) => return Ok(h2::received(last, method)),
            Err(early) if early.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(malformed("it switches protocols, which HTTP/2 does not have"));
            }
            Err(early) => {
                let (parts, ()) = early.into_parts();
                interim(parts.status, parts.headers.into(), respond, terms).await?;
            }
        }
    }
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
    let first = match head.length {
        Length::Sized(_) if !body.is_done() => first(body, respond, terms).await?,
        _ => None,
    };
    respond.head(head).map_err(|_| given_up())?;
    if let Some(data) = first {
        respond.data(data).await.map_err(|_| given_up())?;
    }
    pump(body, respond, terms.bounds.body_timeout).await.map_err(|broken| match broken {
        Broken::Sink(_) => given_up(),
        Broken::Silent => silent(),
        Broken::Source(BodyError::Malformed(why)) => malformed(why),
        Broken::Source(BodyError::Gone(error)) => cut(&error),
        Broken::Source(BodyError::Reset(error)) => cut(&error),
    })
}

/// The first bytes of a body of known length. Its head waits for them: an endpoint that dies in
/// between has not answered, and another may. A body of unknown length may be a stream that is
/// silent for long, so there the head goes ahead.
async fn first(body: &mut Body<'_>, respond: &mut Responder<'_>, terms: &Terms<'_>) -> Result<Option<Bytes>> {
    let frame = tokio::select! {
        biased;
        frame = timeout(terms.bounds.body_timeout, body.frame()) => frame.map_err(|_| silent())?,
        () = respond.gone() => return Err(given_up()),
    };
    match frame {
        Ok(Some(Frame::Data(data))) => Ok(Some(data)),
        Ok(Some(Frame::Trailers(_))) => Err(malformed("its body is shorter than announced")),
        Ok(None) => Ok(None),
        Err(BodyError::Malformed(why)) => Err(malformed(why)),
        Err(BodyError::Gone(error)) => Err(lost(format!("lost between head and body: {error}"))),
        Err(BodyError::Reset(error)) => Err(lost(format!("lost between head and body: {error}"))),
    }
}

/// Runs both ways of an exchange until the answer is there. A request that could not be sent to
/// its end may still be answered; one that the downstream broke off is not to be.
async fn both(
    send: impl Future<Output = Result<(), Broken>>,
    receive: impl Future<Output = Result<Done>>,
) -> Result<(bool, Done)> {
    let (mut send, mut receive) = (pin!(send), pin!(receive));
    let (mut sending, mut sent) = (true, false);
    poll_fn(|cx| {
        if sending && let Poll::Ready(end) = send.as_mut().poll(cx) {
            sending = false;
            match end {
                Ok(()) => sent = true,
                Err(Broken::Sink(_)) => {}
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
        receive.as_mut().poll(cx).map(|done| done.map(|done| (sent, done)))
    })
    .await
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
    let detail = match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
            "the connection was lost before an answer".into()
        }
        _ => format!("the stream was lost before an answer: {error}"),
    };
    lost(detail)
}
