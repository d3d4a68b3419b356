//! An exchange on a stream among others: between sidecars, or of HTTP/2.

use std::borrow::Cow;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use super::{
    Done, Frames, MAX_INTERIM, Sending, Sent, Terms, answer, both, endless, grant, interim, lost, malformed,
    unless_gone,
};
use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::expiry::{TIMEOUT_FIELD, millis};
use crate::http::h1::parse::is_status;
use crate::http::pump::{Sink, pump, taken};
use crate::http::{Body, PROTOCOL_FIELD, RequestHead, Responder, ResponseHead, UPGRADE_FIELD, h2, mesh};

/// Sends a request on an HTTP/2 connection and carries its answer back.
pub(in crate::proxy) async fn over_h2(
    mut sender: h2::Sender,
    head: &RequestHead,
    mut body: &Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done<Frames>> {
    let mut own =
        if terms.sidecar { own(head, terms).into_owned() } else { terms.own.cloned().unwrap_or_default() };
    if let (Some(left), None) = (terms.left, terms.own) {
        own.insert(HeaderName::from_static(TIMEOUT_FIELD), HeaderValue::from(millis(left)));
    }
    // Nothing has left as long as the stream is not open.
    let exchange = h2::send(&mut sender, head, terms.host, own)
        .map_err(|error| reset(&error).retry(Retry::Unprocessed))?;
    let h2::Exchange { mut sink, mut response } = exchange;
    if head.asks_for_tunnel() {
        return Box::pin(tunnel_over_h2(sink, response, head, respond, terms)).await;
    }
    let sending = Sending::new();
    let least = terms.least(head, body);
    let send = pump(&mut body, &mut sink, terms.bounds.body_timeout).at_least(least);
    let receive = async {
        let (head_back, mut body) = h2_head(&mut response, &head.method, respond, terms, &sending).await?;
        let (status, early) = (head_back.status, terms.grpc_status(&head_back));
        if !sending.is_done() {
            respond.last();
        }
        let late = answer(head_back, &mut body, respond, terms).await?;
        let grpc = early.or(late).filter(|_| head.is_grpc());
        Ok(Done { status, grpc, reusable: true, hint: None, tunnel: None })
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
    // But for its head, such a request has nothing to send.
    let sent = Sending(Cell::new(Sent::Wholly));
    let (mut head_back, mut body) = h2_head(&mut response, &head.method, respond, terms, &sent).await?;
    if grants(&mut head_back, head, terms)? {
        let status = head_back.status;
        grant(head_back, respond, terms).await?;
        return Ok(Done {
            status,
            grpc: None,
            reusable: true,
            hint: None,
            tunnel: Some((Box::new(sink), body)),
        });
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
    let sent = Sending(Cell::new(Sent::Wholly));
    let mut head_back = mesh_head(&mut response, respond, terms, &sent).await?;
    if grants(&mut head_back, head, terms)? {
        let status = head_back.status;
        grant(head_back, respond, terms).await?;
        return Ok(Done {
            status,
            grpc: None,
            reusable: true,
            hint: None,
            tunnel: Some((Box::new(sink), response.tunnel())),
        });
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
        head_back.upgrade = HeaderValue::from_bytes(protocol).ok().map(Box::new);
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
    let _ = taken(poll_fn(|cx| sink.poll_flush(cx)), terms.bounds.body_timeout).await;
    let status = head_back.status;
    answer(head_back, body, respond, terms).await?;
    Ok(Done { status, grpc: None, reusable: true, hint: None, tunnel: None })
}

async fn h2_head(
    response: &mut ::h2::client::ResponseFuture,
    method: &Method,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
    sending: &Sending,
) -> Result<(ResponseHead, Body<'static>)> {
    let mut interim_left = MAX_INTERIM;
    loop {
        let next = unless_gone(respond, terms.patience(), Some(sending), |cx| {
            if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                return Poll::Ready(Ok(Err(interim)));
            }
            Pin::new(&mut *response).poll(cx).map(|r| r.map(Ok))
        });
        match next.await?.map_err(|error| reset(&error))? {
            Ok(last) if !is_status(&last.status()) => return Err(malformed("the status is not a status")),
            Ok(last) => {
                let (mut head, body) = h2::received(last, method);
                terms.hear(&mut head, Instant::now);
                terms.judged(&head)?;
                return Ok((head, body));
            }
            Err(early) if early.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(malformed("it switches protocols, which HTTP/2 does not have"));
            }
            Err(early) => {
                interim_left = interim_left.checked_sub(1).ok_or_else(endless)?;
                let (parts, ()) = early.into_parts();
                Box::pin(interim(parts.status, parts.headers.into(), respond, terms)).await?;
            }
        }
    }
}

/// Sends a request to another sidecar and carries its answer back.
pub async fn over_mesh(
    link: mesh::Link,
    head: &RequestHead,
    mut body: &Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done<Frames>> {
    // Nothing has left as long as the stream is not open.
    let (mut sink, mut response) = send_head(link, head, terms).map_err(|lost| untaken(&lost))?;
    if head.asks_for_tunnel() {
        return Box::pin(tunnel_over_mesh(sink, response, head, respond, terms)).await;
    }
    let sending = Sending::new();
    let least = terms.least(head, body);
    let send = pump(&mut body, &mut sink, terms.bounds.body_timeout).at_least(least);
    let receive = async {
        let head_back = mesh_head(&mut response, respond, terms, &sending).await?;
        let (status, early) = (head_back.status, terms.grpc_status(&head_back));
        let mut body = response.body(&head_back, &head.method);
        if !sending.is_done() {
            respond.last();
        }
        let late = answer(head_back, &mut body, respond, terms).await?;
        let grpc = early.or(late).filter(|_| head.is_grpc());
        Ok(Done { status, grpc, reusable: true, hint: None, tunnel: None })
    };
    both(send, receive, &sending).await
}

/// Opens a stream with a request's head, and with what only the peer is told.
fn send_head(
    link: mesh::Link,
    head: &RequestHead,
    terms: &Terms<'_>,
) -> Result<(mesh::Sink, mesh::Response), mesh::Lost> {
    link.send(head, terms.host, &own(head, terms), terms.left)
}

/// The fields that a sidecar adds for another.
fn own<'a>(head: &RequestHead, terms: &Terms<'a>) -> Cow<'a, HeaderMap> {
    let told = match &head.upgrade {
        Some(protocols) => Some((UPGRADE_FIELD, HeaderValue::clone(protocols))),
        None => terms.h2.then(|| (PROTOCOL_FIELD, HeaderValue::from_static("h2"))),
    };
    match (told, terms.own) {
        (None, Some(own)) => Cow::Borrowed(own),
        (None, None) => Cow::Owned(HeaderMap::new()),
        (Some((name, value)), own) => {
            let mut own = own.cloned().unwrap_or_default();
            own.insert(name, value);
            Cow::Owned(own)
        }
    }
}

/// The final head of an answer; interim ones are passed on.
async fn mesh_head(
    response: &mut mesh::Response,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
    sending: &Sending,
) -> Result<ResponseHead> {
    let mut interim_left = MAX_INTERIM;
    loop {
        let next = unless_gone(respond, terms.patience(), Some(sending), |cx| response.poll_head(cx)).await?;
        let mut next = next.map_err(|lost| stream_lost(&lost))?;
        match next.status {
            StatusCode::SWITCHING_PROTOCOLS => {
                return Err(malformed("it switches protocols, which streams do not have"));
            }
            status if status.is_informational() => {
                interim_left = interim_left.checked_sub(1).ok_or_else(endless)?;
                Box::pin(interim(status, next.fields, respond, terms)).await?;
            }
            _ => {
                terms.hear(&mut next, || response.heard());
                terms.judged(&next)?;
                return Ok(next);
            }
        }
    }
}

/// What a stream's loss before the answer says of the request.
fn stream_lost(lost_stream: &mesh::Lost) -> Error {
    match lost_stream {
        mesh::Lost::Untaken | mesh::Lost::Reset(mesh::Code::REFUSED_STREAM) => untaken(lost_stream),
        mesh::Lost::Reset(mesh::Code::FULL) => {
            Error::new(Reason::AdmitFull, "the application has as many requests as it is given")
                .retry(Retry::Unprocessed)
                .retry_after(Duration::from_secs(1))
        }
        mesh::Lost::Reset(mesh::Code::UNREACHED) => {
            Error::new(Reason::PoolConnect, "its sidecar could not reach the application")
                .retry(Retry::Unprocessed)
        }
        mesh::Lost::Malformed(why) => malformed(why),
        mesh::Lost::Reset(_) => lost(format!("the stream was lost before an answer: {lost_stream}")),
        mesh::Lost::Connection(why) => lost(format!("the connection was lost before an answer: {why}")),
    }
}

fn untaken(lost_stream: &mesh::Lost) -> Error {
    Error::new(Reason::UpstreamRefused, format!("the peer took no request: {lost_stream}"))
        .retry(Retry::Unprocessed)
}

/// What an HTTP/2 error before the answer says of the request (RFC 9113 section 8.7): a stream
/// that was refused, or that lies beyond a GOAWAY's last, was not processed.
fn reset(error: &::h2::Error) -> Error {
    let refused = error.is_reset() && error.reason() == Some(::h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) {
        return Error::new(Reason::UpstreamRefused, format!("the peer took no request: {error}"))
            .retry(Retry::Unprocessed);
    }
    if h2::is_not_spoken(error) {
        return Error::new(
            Reason::UpstreamMalformed,
            "the upstream does not speak HTTP/2, as its caller does",
        );
    }
    if error.is_library() {
        // What came could not be read: the crate gave up on it, not the peer.
        return Error::new(Reason::UpstreamMalformed, format!("the answer is not valid HTTP/2: {error}"));
    }
    let detail = match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
            "the connection was lost before an answer".into()
        }
        _ => format!("the stream was lost before an answer: {error}"),
    };
    lost(detail)
}
