//! The server side of an HTTP/1 connection: one request after another, each handed on with its
//! body and the place for its answer.

use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Version};
use tokio::net::TcpStream;

use super::parse::{ParsedRequest, Refused};
use super::{Conn, HeadError, Reader};
use crate::error::{Error, Reason};
use crate::http::closing::Closed;
use crate::http::deadline::{Deadline, within};
use crate::http::handler::{Handler, Next};
use crate::http::pump::taken;
use crate::http::respond::Answer;
use crate::http::{Body, Frame, Responder};

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
///
/// Between two requests, what this future holds is what an idle connection costs: everything that
/// a request or an end needs has memory of its own for as long as it takes.
pub async fn serve<H: Handler>(stream: TcpStream, handler: &H) -> Ended<H::Tunnel> {
    let mut conn = Conn::new(stream);
    let mut closing = handler.closing();
    let bounds = handler.bounds();
    let (mut lifetime, kept) = (Deadline::new(bounds.lifetime()), hint(bounds.idle_timeout));
    let end = loop {
        let (parsed, stays) = match next(&mut conn.reader, &mut closing, &mut lifetime, handler).await {
            Ok((parsed, is_old)) => (parsed, Stays { is_old, kept }),
            Err(None) => return Ended::Closed,
            Err(Some(error)) => break End::Refuse(error),
        };
        if let ControlFlow::Break(end) = Box::pin(one(&mut conn, parsed, handler, stays)).await {
            break end;
        }
    };
    match end {
        End::Refuse(error) => Box::pin(refuse(conn, handler, error)).await,
        End::Close => Box::pin(linger(conn)).await,
        End::Abort => abort(conn),
        End::Tunnel(other) => {
            let Conn { reader, writer } = conn;
            match reader.reunite(writer) {
                Some((stream, leftover)) => Ended::Tunnel(stream, leftover, other),
                None => Ended::Closed,
            }
        }
    }
}

/// What becomes of a connection after a request.
struct Stays {
    /// It is to be the last.
    is_old: bool,
    /// For how many seconds its client is told that it is kept.
    kept: u32,
}

/// What a connection comes to after its last request.
enum End<T> {
    Refuse(Error),
    Close,
    Abort,
    Tunnel(T),
}

/// The next request's head, and whether the connection is so old that it is the last; none if there will
/// be no other, an error if it cannot be read.
fn next<H: Handler>(
    reader: &mut Reader,
    closing: &mut Closed,
    lifetime: &mut Deadline,
    handler: &H,
) -> impl Future<Output = Result<(ParsedRequest, bool), Option<Error>>> {
    let mut begun = reader.has_leftover();
    let bounds = handler.bounds();
    let mut patience = Deadline::new(if begun { bounds.head_timeout } else { bounds.idle_timeout });
    poll_fn(move |cx| {
        if !begun {
            match reader.poll_idle(cx) {
                Poll::Ready(Ok(())) => {
                    begun = true;
                    patience = Deadline::new(handler.bounds().head_timeout);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(None)),
                Poll::Pending => {
                    let over = Pin::new(&mut *closing).poll(cx).is_ready() || patience.poll(cx).is_ready();
                    // A request may have begun to arrive that the runtime will tell of next.
                    return if over && reader.is_quiet() { Poll::Ready(Err(None)) } else { Poll::Pending };
                }
            }
        }
        match reader.poll_request(cx, &handler.bounds()) {
            Poll::Ready(Ok(parsed)) => Poll::Ready(Ok((parsed, lifetime.poll(cx).is_ready()))),
            Poll::Ready(Err(HeadError::Closed | HeadError::Lost(_))) => Poll::Ready(Err(None)),
            Poll::Ready(Err(HeadError::Refused(refused))) => Poll::Ready(Err(Some(refusal(refused)))),
            Poll::Pending => match patience.poll(cx) {
                Poll::Pending => Poll::Pending,
                // A client that has sent nothing waits for no answer; to a later request it would
                // be one.
                Poll::Ready(()) if reader.is_blank() => Poll::Ready(Err(None)),
                Poll::Ready(()) => {
                    let why = "the request's head did not arrive in time";
                    Poll::Ready(Err(Some(Error::new(Reason::HttpHeadTimeout, why))))
                }
            },
        }
    })
}

/// One request and its answer. What this is given is kept where it was put, and not beside it once
/// more, as an `async fn` would.
#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps what it moves twice")]
fn one<H: Handler>(
    conn: &mut Conn,
    mut parsed: ParsedRequest,
    handler: &H,
    stays: Stays,
) -> impl Future<Output = ControlFlow<End<H::Tunnel>>> {
    async move {
        let ParsedRequest { head, keep_alive } = &mut parsed;
        let Conn { reader, writer } = conn;
        let expects = head.version == Version::HTTP_11
            && head.fields.get("expect").is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        let mut responder = Responder::H1(Answer {
            writer,
            method: head.method.clone(),
            version: head.version,
            close: !*keep_alive,
            retires: &|| stays.is_old || handler.is_draining(),
            kept: stays.kept,
            expects: expects && !head.length.is_empty(),
            begun: false,
            ended: false,
            done: false,
        });
        let mut body = match head.length {
            length if length.is_empty() => Body::Empty,
            length => Body::H1(reader.body(length, true)),
        };
        let next = handler.handle(head, &mut body, &mut responder).await;
        let Responder::H1(answer) = responder else { return ControlFlow::Break(End::Abort) };
        answer.writer.rest();
        match next {
            Next::Tunnel(other) => ControlFlow::Break(End::Tunnel(other)),
            Next::Request if !answer.done => ControlFlow::Break(End::Abort),
            Next::Request if answer.close => ControlFlow::Break(End::Close),
            Next::Request if body.is_done() => ControlFlow::Continue(()),
            Next::Request => match Box::pin(within(DRAIN_TIME, drain(&mut body))).await {
                Some(true) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(End::Close),
            },
        }
    }
}

/// For how long a client is told that its connection is kept, in seconds: for less than it is, so that
/// it does not send as we close. 0: it is told nothing.
fn hint(idle_timeout: Duration) -> u32 {
    u32::try_from(idle_timeout.as_secs().saturating_sub(1)).unwrap_or(u32::MAX)
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

/// What is answered to a head that cannot be read.
pub fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Malformed(why) => Error::new(Reason::HttpMalformed, why),
        Refused::TooLarge => Error::new(Reason::HttpHeadTooLarge, "the request's head is too large"),
        Refused::Version => Error::new(Reason::HttpVersion, "only HTTP/1.0, 1.1 and 2 are spoken here"),
        Refused::Unsupported(why) => Error::new(Reason::HttpUnsupported, why),
        Refused::Expectation => Error::new(Reason::HttpExpectation, "only 100-continue can be expected here"),
    }
}

/// Answers what could not be read, and closes: where the next request begins is not known.
async fn refuse<H: Handler>(mut conn: Conn, handler: &H, error: Error) -> Ended<H::Tunnel> {
    handler.refused(&error);
    let mut responder = Responder::H1(Answer {
        writer: &mut conn.writer,
        method: Method::GET,
        version: Version::HTTP_11,
        close: true,
        retires: &|| true,
        kept: 0,
        expects: false,
        begun: false,
        ended: false,
        done: false,
    });
    let limit = handler.bounds().body_timeout;
    if taken(responder.refusal(&error, false), limit).await.is_err() {
        return Ended::Closed;
    }
    linger(conn).await
}

/// Closes so that the answer is read: a close with unread input is a reset, which would destroy
/// it on its way (RFC 9112 section 9.6).
async fn linger<T>(mut conn: Conn) -> Ended<T> {
    if conn.writer.shutdown().is_ok() {
        let _ = within(DRAIN_TIME, conn.reader.discard(DRAIN_BYTES)).await;
    }
    Ended::Closed
}

/// Resets the connection, so that half an answer is not taken for a whole one.
fn abort<T>(conn: Conn) -> Ended<T> {
    conn.reader.reset_on_close();
    // Dropping it would send an orderly end first, which to a reader until the close is the end of
    // the answer.
    if let Some(half) = conn.writer.into_half() {
        half.forget();
    }
    Ended::Closed
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Read, Write};
    use std::rc::Rc;

    use http::StatusCode;
    use tokio::task::{spawn_local, yield_now};

    use super::*;
    use crate::http::closing::Closing;
    use crate::http::{Announcement, Bounds, Length, RequestHead, ResponseHead};

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

    #[derive(Default)]
    struct Empty {
        closing: Rc<Closing>,
        served: Cell<u32>,
    }

    impl Handler for Empty {
        type Tunnel = ();

        async fn handle(
            &self,
            _: &mut RequestHead,
            _: &mut Body<'_>,
            respond: &mut Responder<'_>,
        ) -> Next<()> {
            self.served.set(self.served.get() + 1);
            let head = ResponseHead { length: Length::Sized(0), ..ResponseHead::new(StatusCode::OK) };
            respond.head(head).expect("the client is there");
            crate::http::pump::pump(&mut Body::Empty, respond, BOUNDS.body_timeout).await.expect("taken");
            Next::Request
        }

        async fn tunnel(&self, (): (), _: &mut Body<'_>, _: &mut Responder<'_>) {}

        fn refused(&self, _: &Error) {}

        fn bounds(&self) -> Bounds {
            BOUNDS
        }

        fn shares_connections(&self) -> bool {
            false
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

    /// What a client reads until the end, whose connection idles when the word is said; `sends` it has
    /// sent just before, so that the kernel has it and the runtime has not looked again.
    fn at_the_word(sends: &[u8]) -> (String, u32) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .expect("a runtime");
        runtime.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            let mut client =
                std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            let (server, _) = listener.accept().expect("accepted");
            server.set_nonblocking(true).expect("a socket");
            let handler = Rc::new(Empty::default());
            let serving = spawn_local({
                let (handler, stream) = (handler.clone(), TcpStream::from_std(server).expect("a socket"));
                async move { drop(serve(stream, &*handler).await) }
            });
            // Long enough for it to find nothing, and to wait.
            for _ in 0..1000 {
                yield_now().await;
            }
            client.write_all(sends).expect("sent");
            handler.closing.say();
            serving.await.expect("it does not panic");
            let mut answers = String::new();
            client.read_to_string(&mut answers).expect("an orderly end");
            (answers, handler.served.get())
        })
    }

    #[test]
    fn an_idle_connection_is_closed_at_the_word() {
        assert_eq!(at_the_word(b""), (String::new(), 0));
    }

    #[test]
    fn one_with_a_request_that_has_arrived_is_not() {
        let (answers, served) = at_the_word(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(answers.starts_with("HTTP/1.1 200 "), "{answers:?}");
        assert_eq!(served, 1);
    }
}
