//! One request over one connection: its body goes while its answer comes.

mod streams;

pub(super) use streams::over_h2;
pub use streams::over_mesh;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::balance::Upstream;
use crate::config::units::Rate;
use crate::error::{Error, Reason, Result, Retry};
use crate::http::body::Replay;
use crate::http::deadline::Deadline;
use crate::http::h1::parse::{ParsedResponse, Refused, is_own};
use crate::http::h1::{Conn, HeadError, Hint, Reader};
use crate::http::pump::{Broken, Sink, pump, taken};
use crate::http::{
    Announcement, Body, BodyError, Bounds, Fields, Frame, LOAD_FIELD, Length, RequestHead, Responder,
    ResponseHead,
};
use crate::pool::has_left;

/// Interim answers that one request may be given.
const MAX_INTERIM: u8 = 64;

/// What an exchange needs to know beside the message.
pub struct Terms<'a> {
    /// The bounds of messages.
    pub bounds: &'a Bounds,
    /// When this try began.
    pub begun: Instant,
    /// How long nothing may come before an answer.
    pub patience: Duration,
    /// Who stands in for the host of a request that names none.
    pub host: &'a str,
    /// The peer is a sidecar that proved itself: its own fields are believed, and it is told which
    /// protocol the application speaks.
    pub sidecar: bool,
    /// The application speaks HTTP/2.
    pub h2: bool,
    /// Where what a sidecar says of how full its pod is goes to, and when it was said.
    pub heard: &'a Cell<Option<(Announcement, Instant)>>,
    /// What the downstream, a sidecar, is told likewise.
    pub announces: Option<&'a Upstream>,
    /// Fields that this hop adds to the request.
    pub own: Option<&'a HeaderMap>,
    /// What is left of its caller's time, for a sidecar.
    pub left: Option<Duration>,
    /// Looks at an answer's head before anything of it goes on: an error turns the answer down.
    pub judge: &'a Judge<'a>,
}

/// See [`Terms::judge`].
pub type Judge<'a> = dyn Fn(&ResponseHead) -> Result<()> + 'a;

impl Terms<'_> {
    /// Takes what an answer that came at a time says to us alone.
    fn hear(&self, head: &mut ResponseHead, at: impl FnOnce() -> Instant) {
        let said = head.load.take().filter(|_| self.sidecar);
        self.heard.set(said.map(|said| (said, at())));
    }

    /// Leaves nothing in an answer that is not its downstream's, and says what that alone is told.
    fn load(&self, head: &mut ResponseHead) {
        if self.sidecar {
            // It has another place in frames, and was taken out of HTTP/2's.
            head.fields.remove(LOAD_FIELD);
        } else {
            head.fields.remove_where(is_own);
        }
        head.load = self.announces.map(Upstream::announces);
    }

    /// When an answer must have come.
    fn patience(&self) -> Deadline {
        Deadline::since(self.begun, self.patience)
    }

    /// The least that must come of the request's body. Streams of gRPC may be as slow as they like:
    /// they have deadlines of their own.
    fn least(&self, head: &RequestHead, body: &Replay<'_, '_>) -> Option<Rate> {
        if body.is_empty() || head.is_grpc() { None } else { self.bounds.least }
    }

    /// What an answer's head says in gRPC, which is the whole answer then.
    fn grpc_status(&self, head: &ResponseHead) -> Option<u8> {
        if self.h2 { head.fields.grpc_status() } else { None }
    }

    /// What is said of an answer by its head.
    fn judged(&self, head: &ResponseHead) -> Result<()> {
        (self.judge)(head)
    }
}

/// How an exchange ended well.
pub struct Done<T = ()> {
    /// The answer's status.
    pub status: StatusCode,
    /// What it says in gRPC, where the application speaks HTTP/2 and this is asked in it.
    pub grpc: Option<u8>,
    /// Whether the connection may carry another request.
    pub reusable: bool,
    /// How long the peer says that it keeps the connection.
    pub hint: Option<Hint>,
    /// The request asked for a tunnel and got it: the upstream's end, where the exchange has it.
    pub tunnel: Option<T>,
}

/// A stream that has become a tunnel: where bytes go, and where they come from.
pub(super) type Frames = (Box<dyn Sink>, Body<'static>);

/// Sends a request on an HTTP/1 connection and carries its answer back.
pub async fn over_h1(
    conn: &mut Conn,
    head: &RequestHead,
    mut body: &Replay<'_, '_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Done> {
    let Conn { reader, writer } = conn;
    let written = writer.written();
    let before = written.get();
    writer.request(head, terms.host, terms.own);
    let sending = Sending::new();
    let least = terms.least(head, body);
    let send = pump(&mut body, writer, terms.bounds.body_timeout).at_least(least);
    let receive = async {
        let parsed = h1_head(reader, head, respond, terms, &sending).await?;
        let status = parsed.head.status;
        if parsed.head.grants_tunnel(head) {
            Box::pin(grant(parsed.head, respond, terms)).await?;
            return Ok(Done { status, grpc: None, reusable: false, hint: None, tunnel: Some(()) });
        }
        let mut body = match parsed.head.length {
            length if length.is_empty() || !parsed.head.may_have_body(&head.method) => Body::Empty,
            length => Body::H1(reader.body(length, parsed.chunked)),
        };
        let (keep_alive, hint) = (parsed.keep_alive, parsed.hint);
        if !sending.is_done() {
            respond.last();
        }
        answer(parsed.head, &mut body, respond, terms).await?;
        Ok(Done { status, grpc: None, reusable: keep_alive && !reader.has_leftover(), hint, tunnel: None })
    };
    let done = both(send, receive, &sending).await;
    let done = done.map_err(|error| of_unsent(error, conn, before))?;
    Ok(Done { reusable: sending.is_done() && done.reusable, ..done })
}

/// The final head of an answer; interim ones are passed on.
async fn h1_head(
    reader: &mut Reader,
    request: &RequestHead,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
    sending: &Sending,
) -> Result<ParsedResponse> {
    let mut interim_left = MAX_INTERIM;
    loop {
        let coming = |cx: &mut Context<'_>| reader.poll_response(cx, terms.bounds, &request.method);
        let parsed = unless_gone(respond, terms.patience(), Some(sending), coming).await?;
        let parsed = parsed.map_err(unread)?;
        match parsed.head.status {
            StatusCode::SWITCHING_PROTOCOLS if !parsed.head.grants_tunnel(request) => {
                return Err(malformed("it switches to a protocol that was not offered"));
            }
            StatusCode::SWITCHING_PROTOCOLS => {
                terms.judged(&parsed.head)?;
                return Ok(parsed);
            }
            status if status.is_informational() => {
                interim_left = interim_left.checked_sub(1).ok_or_else(endless)?;
                Box::pin(interim(status, parsed.head.fields, respond, terms)).await?;
            }
            _ => {
                terms.judged(&parsed.head)?;
                return Ok(parsed);
            }
        }
    }
}

/// What a loss says of a request if nothing of it has left: that nobody can have read anything. `before`
/// bytes had been written when it began.
fn of_unsent(error: Error, conn: &Conn, before: u64) -> Error {
    let took_nothing = || conn.writer.written().get() == before;
    let unsent = || took_nothing() || !has_left(conn.reader.stream(), before);
    if error.retry == Retry::Idempotent && unsent() {
        return Error::new(Reason::UpstreamReset, "the connection was closed before the request left")
            .retry(Retry::Unprocessed);
    }
    error
}

/// What it says of a request that no head of an answer could be read.
fn unread(error: HeadError) -> Error {
    match error {
        HeadError::Closed => lost("the connection was closed before an answer"),
        HeadError::Lost(error) => lost(format!("the connection was lost within the answer's head: {error}")),
        HeadError::Refused(Refused::TooLarge) => malformed("its head is too large"),
        HeadError::Refused(Refused::Malformed(why) | Refused::Unsupported(why)) => malformed(why),
        HeadError::Refused(Refused::Version | Refused::Expectation) => malformed("its version is not HTTP/1"),
    }
}

/// Waits for what comes from the upstream, as long as the downstream wants it and no longer than
/// `patience`. That ends only while nothing is sent any more: as long as the request's body goes, it
/// is watched over there.
async fn unless_gone<T>(
    respond: &mut Responder<'_>,
    mut patience: Deadline,
    sending: Option<&Sending>,
    mut coming: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Result<T> {
    let mut was_sending = sending.is_some_and(Sending::goes_on);
    poll_fn(|cx| match coming(cx) {
        Poll::Ready(come) => Poll::Ready(Ok(come)),
        Poll::Pending if respond.poll_gone(cx).is_ready() => Poll::Ready(Err(given_up())),
        Poll::Pending => {
            ready!(patience.poll(cx));
            if !was_sending {
                return Poll::Ready(Err(silent()));
            }
            was_sending = sending.is_some_and(Sending::goes_on);
            patience.reset();
            patience.poll(cx).map(|()| Err(silent()))
        }
    })
    .await
}

/// Passes an interim answer on.
async fn interim(
    status: StatusCode,
    mut fields: Fields,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<()> {
    if terms.sidecar {
        fields.remove(LOAD_FIELD);
    } else {
        fields.remove_where(is_own);
    }
    taken(respond.interim(status, fields), terms.bounds.body_timeout).await.map_err(not_answered)
}

/// Tells the downstream that it has the tunnel that it asked for.
async fn grant(mut head: ResponseHead, respond: &mut Responder<'_>, terms: &Terms<'_>) -> Result<()> {
    terms.load(&mut head);
    taken(respond.tunnel(head), terms.bounds.body_timeout).await.map_err(not_answered)
}

/// Carries the answer to the downstream. Once it has begun, nothing can be tried again. Returns the status
/// of gRPC in its trailers.
async fn answer(
    mut head: ResponseHead,
    body: &mut Body<'_>,
    respond: &mut Responder<'_>,
    terms: &Terms<'_>,
) -> Result<Option<u8>> {
    terms.load(&mut head);
    // The head of a body of known length waits for its first bytes: an endpoint that dies in
    // between has not answered, and another may. A body of unknown length may be a stream that is
    // silent for long, so there the head goes ahead.
    let first = match head.length {
        Length::Sized(_) if !body.is_done() => {
            unless_gone(respond, Deadline::new(terms.bounds.body_timeout), None, |cx| {
                body.poll_frame(cx, usize::MAX)
            })
            .await?
        }
        _ => Ok(None),
    };
    let first = beginning(first)?;
    respond.head(head).map_err(|_| given_up())?;
    if let Some(data) = first {
        respond.data(data);
    }
    // An answer may come as slowly as it likes: streams of events do.
    pump(body, respond, terms.bounds.body_timeout).await.map_err(not_answered)
}

/// Why an answer did not reach the downstream.
fn not_answered(broken: Broken) -> Error {
    match broken {
        Broken::Sink(_) => given_up(),
        Broken::Silent | Broken::Slow => silent(),
        Broken::Stuck => {
            Error::new(Reason::HttpAnswerTimeout, "the downstream took nothing of its answer in time")
        }
        Broken::Source(BodyError::Malformed(why)) => malformed(why),
        Broken::Source(BodyError::Gone(error)) => cut(&error),
        Broken::Source(BodyError::Reset(error)) => cut(&error),
    }
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

    fn goes_on(&self) -> bool {
        self.0.get() == Sent::Partly
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
    S: Future<Output = Result<Option<u8>, Broken>>,
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
                Ok(_) => this.sending.0.set(Sent::Wholly),
                Err(Broken::Sink(_)) => {}
                Err(Broken::Silent) => {
                    let why = "the request's body stopped coming";
                    return Poll::Ready(Err(Error::new(Reason::HttpBodyTimeout, why)));
                }
                Err(Broken::Slow) => {
                    let why = "the request's body comes more slowly than http.min_body_rate";
                    return Poll::Ready(Err(Error::new(Reason::HttpBodySlow, why)));
                }
                Err(Broken::Stuck) => {
                    let why = "the upstream took nothing of the request's body for http.body_timeout";
                    return Poll::Ready(Err(Error::new(Reason::UpstreamTimeout, why)));
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

/// Nobody wants an answer any more.
pub(super) fn given_up() -> Error {
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

fn endless() -> Error {
    malformed("its interim answers have no end")
}

fn malformed(why: &'static str) -> Error {
    Error::new(Reason::UpstreamMalformed, format!("the answer is not valid HTTP: {why}"))
}
