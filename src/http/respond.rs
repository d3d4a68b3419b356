//! The answer on its way to the downstream, over either protocol, and the answers that Pannier
//! makes itself.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use ::h2::Reason as Code;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode, Version};

use super::claim::Runner;
use super::h1::{Keeps, Writer};
use super::pump::Sink;
use super::{Fields, Length, ResponseHead, h2, mesh};
use crate::error::{Error, Limited, REFUSED_FIELD, Reason};

/// Where the answer to one request goes.
#[derive(Debug)]
pub enum Responder<'a> {
    /// To an HTTP/1 connection.
    H1(Answer<'a>),
    /// To an HTTP/2 stream.
    H2(h2::Answer),
    /// To a stream between sidecars.
    Mesh(mesh::Answer),
    /// To whichever of these, if no other try has been answered first.
    Raced(Runner<'a>),
}

/// An answer on an HTTP/1 connection.
pub struct Answer<'a> {
    pub(super) writer: &'a mut Writer,
    pub(super) method: Method,
    pub(super) version: Version,
    /// Whether the connection ends with this answer.
    pub(super) close: bool,
    /// Whether it is to, whatever the request says: asked when the answer begins, which may be long after
    /// its request has.
    pub(super) retires: &'a dyn Fn() -> bool,
    /// For how many seconds the client is told that the connection is kept; 0: nothing is said.
    pub(super) kept: u32,
    /// The client waits for 100 (Continue) before it sends its body.
    pub(super) expects: bool,
    pub(super) begun: bool,
    /// Whether its end has been written into the buffer, and whether all of it has left.
    pub(super) ended: bool,
    pub(super) done: bool,
}

impl std::fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("method", &self.method)
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}

impl Responder<'_> {
    /// Sends an interim response (1xx). Clients of HTTP/1.0 know none and get none.
    pub async fn interim(&mut self, status: StatusCode, fields: Fields) -> io::Result<()> {
        match self {
            Responder::H1(answer) if answer.version == Version::HTTP_10 => Ok(()),
            Responder::H1(answer) => {
                answer.expects &= status != StatusCode::CONTINUE;
                answer.writer.interim(status, &fields);
                answer.writer.flush().await
            }
            Responder::H2(answer) => answer.interim(status, fields),
            Responder::Mesh(answer) => answer.interim(status, fields),
            // Of an answer that may not be given.
            Responder::Raced(_) => Ok(()),
        }
    }

    /// Sends the head. On HTTP/1 it leaves with the first bytes of the body, or at the end.
    pub fn head(&mut self, head: ResponseHead) -> io::Result<()> {
        match self {
            Responder::H1(answer) => {
                answer.begun = true;
                let endless = head.length == Length::Stream && answer.version == Version::HTTP_10;
                answer.close |=
                    answer.expects || (answer.retires)() || (endless && head.may_have_body(&answer.method));
                let kept = if answer.close { Keeps::Not } else { Keeps::For(answer.kept) };
                answer.writer.response(&head, &answer.method, answer.version, kept);
                Ok(())
            }
            Responder::H2(answer) => answer.head(head),
            Responder::Mesh(answer) => answer.head(&head),
            Responder::Raced(runner) => {
                runner.claim()?;
                runner.with(Ok(()), |answer| answer.head(head))
            }
        }
    }

    /// Says in the answer's head that the connection ends with it, since the request's body is not
    /// going to be read.
    pub fn last(&mut self) {
        match self {
            Responder::H1(answer) => answer.close = true,
            Responder::H2(_) | Responder::Mesh(_) => {}
            Responder::Raced(runner) => runner.with((), |answer| answer.last()),
        }
    }

    /// Sends the head of an answer after which the connection or stream is a tunnel (RFC 9110 sections
    /// 7.8 and 9.3.6).
    pub async fn tunnel(&mut self, head: ResponseHead) -> io::Result<()> {
        match self {
            Responder::H1(answer) => {
                answer.begun = true;
                answer.done = true;
                answer.writer.tunnel(&head);
                answer.writer.flush().await
            }
            Responder::H2(answer) => answer.tunnel(head),
            Responder::Mesh(answer) => answer.tunnel(head),
            // No two are asked for.
            Responder::Raced(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Ready when there is room for a piece of the body, with for how much.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Responder::H1(answer) => answer.writer.poll_room(cx),
            Responder::H2(answer) => answer.poll_room(cx),
            Responder::Mesh(answer) => {
                answer.sink().map_or(Poll::Ready(Ok(usize::MAX)), |sink| sink.poll_room(cx))
            }
            Responder::Raced(runner) => runner.with(Poll::Pending, |answer| answer.poll_room(cx)),
        }
    }

    /// Sends a piece of the body, if there is room.
    pub fn data(&mut self, data: Bytes) {
        match self {
            Responder::H1(answer) => answer.writer.data(data),
            Responder::H2(answer) => answer.data(data),
            Responder::Mesh(answer) => {
                if let Some(sink) = answer.sink() {
                    sink.data(data);
                }
            }
            Responder::Raced(runner) => runner.with((), |answer| answer.data(data)),
        }
    }

    /// Ends the answer. It has been sent once it has been flushed.
    pub fn end(&mut self, trailers: Option<Fields>) {
        match self {
            Responder::H1(answer) => {
                answer.writer.end(trailers);
                answer.ended = true;
            }
            Responder::H2(answer) => answer.end(trailers),
            Responder::Mesh(answer) => {
                if let Some(sink) = answer.sink() {
                    sink.end(trailers);
                }
            }
            Responder::Raced(runner) => runner.with((), |answer| answer.end(trailers)),
        }
    }

    /// Sends what waits for company, since none is at hand.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Responder::H1(answer) => {
                let flushed = answer.writer.poll_flush(cx);
                answer.done |= answer.ended && matches!(flushed, Poll::Ready(Ok(())));
                flushed
            }
            Responder::H2(answer) => answer.poll_flush(cx),
            Responder::Mesh(answer) => answer.sink().map_or(Poll::Ready(Ok(())), |sink| sink.poll_flush(cx)),
            Responder::Raced(runner) => runner.with(Poll::Pending, |answer| answer.poll_flush(cx)),
        }
    }

    /// Whether the final head has been sent, after which no other can be.
    pub fn has_begun(&self) -> bool {
        match self {
            Responder::H1(answer) => answer.begun,
            Responder::H2(answer) => answer.has_begun(),
            Responder::Mesh(answer) => answer.has_begun(),
            Responder::Raced(runner) => runner.has_won() && runner.with(true, |answer| answer.has_begun()),
        }
    }

    /// Takes back a head of which nothing has left, so that another can be sent; false if some has.
    pub fn take_back(&mut self) -> bool {
        let Responder::H1(answer) = self else { return false };
        let unsent = answer.writer.take_back();
        if unsent {
            (answer.begun, answer.ended, answer.done) = (false, false, false);
        }
        unsent
    }

    /// Refuses the stream before anything of it was processed, so that the peer may send it
    /// elsewhere (RFC 9113 section 8.7); in frames of our own it says what for, as that tells the peer whether
    /// to come back. False where the protocol cannot say so.
    pub fn refuse_stream(&mut self, reason: Reason) -> bool {
        let code = match reason {
            Reason::AdmitFull => mesh::Code::FULL,
            // One that does not accept in time may be busy.
            Reason::PoolConnect => mesh::Code::UNREACHED,
            _ => mesh::Code::REFUSED_STREAM,
        };
        match self {
            Responder::H1(_) => false,
            Responder::H2(answer) => answer.reset(Code::REFUSED_STREAM),
            Responder::Mesh(answer) => answer.reset(code),
            Responder::Raced(_) => false,
        }
    }

    /// Ends the stream without an answer: what became of the request is not known, so the peer may
    /// send it again if that is safe. False where the protocol cannot say so.
    pub fn fail_stream(&mut self) -> bool {
        match self {
            Responder::H1(_) => false,
            Responder::H2(answer) => answer.reset(Code::INTERNAL_ERROR),
            Responder::Mesh(answer) => answer.reset(mesh::Code::INTERNAL_ERROR),
            Responder::Raced(_) => false,
        }
    }

    /// Ready when the downstream has given the request up.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Responder::H1(answer) => {
                let interim = !answer.begun && answer.version == Version::HTTP_11;
                answer.writer.poll_lost(cx, interim)
            }
            Responder::H2(answer) => answer.poll_gone(cx),
            Responder::Mesh(answer) => answer.poll_gone(cx),
            Responder::Raced(runner) => runner.poll_gone(cx),
        }
    }

    /// Answers with a refusal: its status, its reason in `x-pannier-refused`, and a sentence.
    pub async fn refusal(&mut self, error: &Error, grpc: bool) -> io::Result<()> {
        let mut fields = HeaderMap::with_capacity(8);
        fields.insert(HeaderName::from_static(REFUSED_FIELD), refused(error));
        if let Some(after) = error.retry_after {
            fields.insert(RETRY_AFTER, HeaderValue::from(seconds(after)));
        }
        if let Some(limit) = error.limit.as_deref().filter(|_| error.reason == Reason::LimitExhausted) {
            quota(&mut fields, limit, error.retry_after.unwrap_or_default());
        }
        if grpc {
            super::grpc::refusal(&mut fields, error);
            let head = ResponseHead { fields: fields.into(), ..ResponseHead::new(StatusCode::OK) };
            self.head(head)?;
            self.end(None);
            return poll_fn(|cx| self.poll_flush(cx)).await;
        }
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let text = Bytes::from(format!("pannier: {error}\n"));
        let length = Length::Sized(text.len() as u64);
        let head = ResponseHead { fields: fields.into(), length, ..ResponseHead::new(error.status()) };
        self.head(head)?;
        self.data(text);
        self.end(None);
        poll_fn(|cx| self.poll_flush(cx)).await
    }
}

/// The reason, and as a parameter which limit it is about.
fn refused(error: &Error) -> HeaderValue {
    let reason = error.reason.name();
    let named = error.limit.as_ref().map(|limit| format!("{reason};limit=\"{}\"", limit.name));
    named
        .and_then(|text| HeaderValue::try_from(text).ok())
        .unwrap_or_else(|| HeaderValue::from_static(reason))
}

/// Whole seconds, rounded up (RFC 9110 section 10.2.3).
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// What an exhausted limit admits, and that nothing of it is left (draft-ietf-httpapi-ratelimit-headers-10).
fn quota(fields: &mut HeaderMap, limit: &Limited, after: Duration) {
    let Limited { name, quota, window, .. } = limit;
    let policy = format!("\"{name}\";q={quota};w={}", window.as_secs());
    let left = format!("\"{name}\";r=0;t={}", seconds(after));
    for (field, text) in [("ratelimit-policy", policy), ("ratelimit", left)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            fields.insert(HeaderName::from_static(field), value);
        }
    }
}
