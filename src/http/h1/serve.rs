//! The server side of an HTTP/1 connection: one request after another, each handed on with its
//! body and the place for its answer.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Version};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::parse::{ParsedRequest, Refused};
use super::{Conn, HeadError};
use crate::error::{Error, Reason};
use crate::http::handler::{Handler, Next};
use crate::http::pump::taken;
use crate::http::respond::Answer;
use crate::http::{Body, Bounds, Frame, Responder};

/// What is left unread of a request's body after its answer, and how long it may take to come,
/// before the connection is closed instead.
const DRAIN_BYTES: usize = 256 << 10;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// It is closed.
    Closed,
    /// It has become a tunnel: the stream, what was already read from it, and its other end.
    Tunnel(TcpStream, Bytes, T),
}

/// Serves one connection until it ends.
pub async fn serve<H: Handler>(stream: TcpStream, handler: &H) -> Ended<H::Tunnel> {
    let bounds = handler.bounds();
    let mut conn = Conn::new(stream);
    let mut watchdog = pin!(Watchdog::new(bounds.idle_timeout));
    let mut closing = pin!(handler.closing());
    loop {
        watchdog.as_mut().rest();
        tokio::select! {
            biased;
            ready = conn.reader.idle() => if ready.is_err() { return Ended::Closed },
            () = &mut closing => return Ended::Closed,
            () = watchdog.as_mut().expired() => return Ended::Closed,
        }
        let parsed = match timeout(bounds.head_timeout, conn.reader.request(&bounds)).await {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(HeadError::Closed | HeadError::Lost(_))) => return Ended::Closed,
            Ok(Err(HeadError::Refused(refused))) => {
                return refuse(conn, handler, &bounds, refusal(refused)).await;
            }
            // A client that has sent nothing waits for no answer; to a later request it would be one.
            Err(_) if conn.reader.is_blank() => return Ended::Closed,
            Err(_) => {
                let error = Error::new(Reason::HttpHeadTimeout, "the request's head did not arrive in time");
                return refuse(conn, handler, &bounds, error).await;
            }
        };
        // In memory of its own, so that a connection holds it no longer than a request takes.
        match Box::pin(one(&mut conn, parsed, handler, &bounds)).await {
            Turn::Again => {}
            Turn::Close => return linger(conn).await,
            Turn::Abort => return abort(conn),
            Turn::Tunnel(other) => {
                let Conn { reader, writer } = conn;
                return match reader.reunite(writer) {
                    Some((stream, leftover)) => Ended::Tunnel(stream, leftover, other),
                    None => Ended::Closed,
                };
            }
        }
    }
}

enum Turn<T> {
    Again,
    Close,
    Abort,
    Tunnel(T),
}

async fn one<H: Handler>(
    conn: &mut Conn,
    parsed: ParsedRequest,
    handler: &H,
    bounds: &Bounds,
) -> Turn<H::Tunnel> {
    let ParsedRequest { head, keep_alive } = parsed;
    let Conn { reader, writer } = conn;
    let expects = head.version == Version::HTTP_11
        && head.fields.get("expect").is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
    let mut responder = Responder::H1(Answer {
        writer,
        method: head.method.clone(),
        version: head.version,
        close: !keep_alive || handler.is_draining(),
        expects: expects && !head.length.is_empty(),
        begun: false,
        done: false,
    });
    let mut body = match head.length {
        length if length.is_empty() => Body::Empty,
        length => Body::H1(reader.body(length, true)),
    };
    let next = handler.handle(head, &mut body, &mut responder).await;
    let Responder::H1(answer) = responder else { return Turn::Abort };
    match next {
        Next::Tunnel(other) => Turn::Tunnel(other),
        Next::Request if !answer.done => Turn::Abort,
        Next::Request if answer.close => Turn::Close,
        Next::Request if body.is_done() => Turn::Again,
        Next::Request => match timeout(DRAIN_TIME.min(bounds.body_timeout), drain(&mut body)).await {
            Ok(true) => Turn::Again,
            _ => Turn::Close,
        },
    }
}

/// Reads what is left of a body that nobody wants; false if it is too much, or broken.
pub async fn drain(body: &mut Body<'_>) -> bool {
    let mut room = DRAIN_BYTES;
    loop {
        match body.frame().await {
            Ok(None | Some(Frame::Trailers(_))) => return true,
            Ok(Some(Frame::Data(data))) => match room.checked_sub(data.len()) {
                Some(left) => room = left,
                None => return false,
            },
            Err(_) => return false,
        }
    }
}

fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Malformed(why) => Error::new(Reason::HttpMalformed, why),
        Refused::TooLarge => Error::new(Reason::HttpHeadTooLarge, "the request's head is too large"),
        Refused::Version => Error::new(Reason::HttpVersion, "only HTTP/1.0, 1.1 and 2 are spoken here"),
        Refused::Unsupported(why) => Error::new(Reason::HttpUnsupported, why),
        Refused::Expectation => Error::new(Reason::HttpExpectation, "only 100-continue can be expected here"),
    }
}

/// Answers what could not be read, and closes: where the next request begins is not known.
async fn refuse<H: Handler>(mut conn: Conn, handler: &H, bounds: &Bounds, error: Error) -> Ended<H::Tunnel> {
    handler.refused(&error);
    let mut responder = Responder::H1(Answer {
        writer: &mut conn.writer,
        method: Method::GET,
        version: Version::HTTP_11,
        close: true,
        expects: false,
        begun: false,
        done: false,
    });
    if taken(responder.refusal(&error, false), bounds.body_timeout).await.is_err() {
        return Ended::Closed;
    }
    linger(conn).await
}

/// Closes so that the answer is read: a close with unread input is a reset, which would destroy
/// it on its way (RFC 9112 section 9.6).
async fn linger<T>(mut conn: Conn) -> Ended<T> {
    if conn.writer.shutdown().await.is_ok() {
        let _ = timeout(DRAIN_TIME, conn.reader.discard(DRAIN_BYTES)).await;
    }
    Ended::Closed
}

/// Resets the connection, so that half an answer is not taken for a whole one.
fn abort<T>(conn: Conn) -> Ended<T> {
    conn.reader.reset_on_close();
    // Dropping it would send an orderly end first, which to a reader until the close is the end of
    // the answer.
    conn.writer.into_half().forget();
    Ended::Closed
}

/// An idle timeout that costs a timer only when it runs out: it is looked at again then, and
/// rests until the connection would really have idled too long.
struct Watchdog {
    limit: Duration,
    since: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), sleep: Box::pin(sleep(limit)) }
    }

    /// Notes that the connection begins to idle.
    fn rest(mut self: Pin<&mut Self>) {
        self.since = Instant::now();
    }

    async fn expired(mut self: Pin<&mut Self>) {
        loop {
            self.sleep.as_mut().await;
            let end = self.since + self.limit;
            if Instant::now() >= end {
                return;
            }
            self.sleep.as_mut().reset(end);
        }
    }
}
