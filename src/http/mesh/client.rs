//! The side of a connection that opens streams.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::driver::Driver;
use super::frame;
use super::link::{Shared, Side, State};
use super::stream::{Hold, Incoming, Sink, leaving};
use super::{Code, Lost};
use crate::http::h1::parse::Refused;
use crate::http::{Announcement, Body, Bounds, Length, RequestHead, ResponseHead};

/// A connection, as those see it who send requests on it. It ends in order once nobody does.
pub struct Link(Rc<Shared>);

impl Clone for Link {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The task may hold the last one: it then ends.
        self.0.wake();
    }
}

/// Takes over a connection that was just opened. The future is its task: it ends with the
/// connection, and says why.
pub fn connect<IO>(io: IO, bounds: &Bounds) -> (Link, impl Future<Output = Arc<str>> + use<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let shared = Shared::new(Side::Client, *bounds);
    // Who calls has nothing to say of how full it is.
    let mut driver = Driver::new(io, shared.clone(), Box::new(|| None));
    let task = poll_fn(move |cx| if driver.is_forsaken() { driver.poll_leave(cx) } else { driver.poll(cx) });
    (Link(shared), task)
}

impl Link {
    /// Waits until the peer has said how many streams it takes, or the connection has ended.
    pub async fn greeted(&self) -> Result<(), Arc<str>> {
        poll_fn(|cx| self.0.within(|state| state.poll_greeted(cx))).await
    }

    /// Whether no stream can be opened on it any more.
    pub fn is_over(&self) -> bool {
        self.0.within(|state| state.is_ending())
    }

    /// The share of the streams that may be open that are, from 0 to 1.
    pub fn fullness(&self) -> f64 {
        self.0.within(|state| state.open() as f64 / state.most().max(1) as f64)
    }

    /// How long the peer has taken nothing of what is sent.
    pub fn blocked_for(&self) -> Duration {
        self.0.within(|state| state.blocked_for())
    }

    /// How long nothing of the peer had arrived by `now`.
    pub fn silent_for(&self, now: Instant) -> Duration {
        self.0.within(|state| state.silent_for(now))
    }

    /// How long it has been asked in vain by `now`.
    pub fn asked_for(&self, now: Instant) -> Duration {
        self.0.within(|state| state.asked_for(now))
    }

    /// Whether the peer owes us something.
    pub fn is_owed(&self) -> bool {
        self.0.within(|state| state.is_owed())
    }

    /// Asks the peer to say something, if it has not been asked already.
    pub fn ask(&self) {
        self.0.with(State::ask);
    }

    /// Asks, and waits until the peer has said something, or the connection has ended.
    pub async fn answers(&self) {
        let times = self.0.within(|state| state.times_heard());
        self.ask();
        poll_fn(|cx| self.0.within(|state| state.poll_heard(times, cx))).await;
    }

    /// Asks how full the peer's pod is; none, if it does not say so, or the connection has ended.
    pub async fn load(&self) -> Option<Announcement> {
        let pongs = self.0.within(|state| state.pongs());
        self.ask();
        poll_fn(|cx| self.0.within(|state| state.poll_said(pongs, cx))).await
    }

    /// Ends it here and now: every stream that has not ended is lost.
    pub fn give_up(&self, why: &str) {
        self.0.within(|state| state.fail(why.into()));
        self.0.wake();
    }

    /// Bytes of bodies that wait to be taken.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.0.within(|state| state.held)
    }

    /// Sends a request's head. `host` stands in where the request names nobody; `own` is for the
    /// peer alone, and so is what is `left` of its caller's time.
    pub fn send(
        &self,
        head: &RequestHead,
        host: &str,
        own: &HeaderMap,
        left: Option<Duration>,
    ) -> Result<(Sink, Response), Lost> {
        let ends = head.length.is_empty() && !head.asks_for_tunnel();
        let id = self.0.with(|state| {
            if state.is_ending() || state.open() >= state.most() {
                return Err(Lost::Untaken);
            }
            let id = state.open_stream();
            frame::put_request(&mut state.out.tail, id, head, host, own, left, ends);
            Ok(id)
        })?;
        let hold = Hold::new(self.0.clone(), id);
        Ok((leaving(hold.clone(), ends), Response { hold }))
    }
}

/// An answer that will come.
#[derive(Debug)]
pub struct Response {
    hold: Hold,
}

impl Response {
    /// The next head: interim ones first.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Lost>> {
        let arrived = self.hold.with(|state, id| {
            let Some(stream) = state.stream(id) else { return Poll::Ready(Err(Lost::Reset(Code::CANCEL))) };
            if !stream.heads.is_empty() {
                return Poll::Ready(Ok(stream.heads.remove(0)));
            }
            if let Some(lost) = &stream.lost {
                return Poll::Ready(Err(lost.clone()));
            }
            if stream.arrived {
                return Poll::Ready(Err(Lost::Malformed("an end without an answer")));
            }
            stream.wait(cx);
            Poll::Pending
        });
        arrived.map(|payload| {
            frame::response(payload?, &self.hold.link.bounds).map_err(|refused| match refused {
                Refused::TooLarge => Lost::Malformed("its head is too large"),
                Refused::Malformed(why) | Refused::Unsupported(why) => Lost::Malformed(why),
                Refused::Version | Refused::Expectation => Lost::Malformed("its version is unknown"),
            })
        })
    }

    /// When the peer was last heard.
    pub fn heard(&self) -> Instant {
        self.hold.link.within(|state| state.heard())
    }

    /// The body behind the final head.
    pub fn body(self, head: &ResponseHead, method: &Method) -> Body<'static> {
        let length = if head.may_have_body(method) { head.length } else { Length::None };
        let ended = self.hold.link.within(|state| {
            state
                .stream(self.hold.id)
                .is_none_or(|s| s.arrived && s.pieces.is_empty() && s.trailers.is_none())
        });
        if ended && length.is_empty() { Body::Empty } else { Body::Mesh(Incoming::new(self.hold, length)) }
    }

    /// What arrives once the stream has become a tunnel.
    pub fn tunnel(self) -> Body<'static> {
        Body::Mesh(Incoming::new(self.hold, Length::Stream))
    }
}
