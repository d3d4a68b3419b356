//! How a connection begins, is known to live, and ends.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::{Side, State};
use crate::http::Announcement;
use crate::http::mesh::frame;
use crate::http::mesh::{Code, Lost};

impl State {
    /// Ready once the peer has said what it takes, with whether it has.
    pub(in crate::http::mesh) fn poll_greeted(&mut self, cx: &Context<'_>) -> Poll<Result<(), Arc<str>>> {
        match (&self.ended, &self.peer) {
            (Some(why), _) => Poll::Ready(Err(why.clone())),
            (None, Some(_)) => Poll::Ready(Ok(())),
            (None, None) => {
                self.greeting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Whether no stream may be opened any more.
    pub(in crate::http::mesh) fn is_ending(&self) -> bool {
        self.ended.is_some() || self.peer_takes.is_some() || self.last >= u32::MAX / 2
    }

    /// Notes that something of the peer has arrived. When that was, only those ask who open streams.
    pub(in crate::http::mesh) fn hears(&mut self) {
        if self.side == Side::Client {
            self.heard = Instant::now();
        }
        self.times_heard += 1;
        self.listening.drain(..).for_each(Waker::wake);
    }

    /// When something of the peer last arrived, where we are its client.
    pub(in crate::http::mesh) fn heard(&self) -> Instant {
        self.heard
    }

    /// How long nothing of the peer had arrived by `now`.
    pub(in crate::http::mesh) fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// Asks the peer to say something, if it has not been asked already.
    pub(in crate::http::mesh) fn ask(&mut self) {
        if self.pinged.is_none() && self.ended.is_none() {
            self.pinged = Some(Instant::now());
            self.pings += 1;
            frame::put_ping(&mut self.out.tail);
        }
    }

    /// Whether the peer owes us something: an answer, or that it has heard us.
    pub(in crate::http::mesh) fn is_owed(&self) -> bool {
        self.ended.is_none() && (self.pinged.is_some() || !self.streams.is_empty())
    }

    /// How long it has been asked in vain by `now`.
    pub(in crate::http::mesh) fn asked_for(&self, now: Instant) -> Duration {
        let asked = self.pinged.map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked));
        asked.min(self.silent_for(now))
    }

    /// How often something of the peer has arrived.
    pub(in crate::http::mesh) fn times_heard(&self) -> u64 {
        self.times_heard
    }

    /// Ready once something has been heard beyond so many `times`, or the connection has ended.
    pub(in crate::http::mesh) fn poll_heard(&mut self, times: u64, cx: &Context<'_>) -> Poll<()> {
        if self.times_heard > times || self.ended.is_some() {
            return Poll::Ready(());
        }
        self.listening.push(cx.waker().clone());
        Poll::Pending
    }

    /// How often the peer has answered a PING.
    pub(in crate::http::mesh) fn pongs(&self) -> u64 {
        self.pongs
    }

    /// Ready once the peer has answered one beyond so many, with what it said of how full it is.
    pub(in crate::http::mesh) fn poll_said(
        &mut self,
        pongs: u64,
        cx: &Context<'_>,
    ) -> Poll<Option<Announcement>> {
        if self.pongs > pongs || self.ended.is_some() {
            return Poll::Ready(self.said);
        }
        self.listening.push(cx.waker().clone());
        Poll::Pending
    }

    /// Answers the PINGs that have arrived, with how full we are.
    pub(in crate::http::mesh) fn answer_pings(&mut self, announces: &dyn Fn() -> Option<Announcement>) {
        while self.unanswered > 0 {
            self.unanswered -= 1;
            frame::put_pong(&mut self.out.tail, announces());
        }
    }

    /// Why it has ended, if it has.
    pub(in crate::http::mesh) fn ended(&self) -> Option<Arc<str>> {
        self.ended.clone()
    }

    /// Says that we are ending, and to open no more streams. What is on its way is still taken.
    pub(in crate::http::mesh) fn say_goodbye(&mut self) {
        frame::put_goaway(&mut self.out.tail, u32::MAX, Code::NO_ERROR);
        frame::put_ping(&mut self.out.tail);
        self.pinged = Some(Instant::now());
        self.pings += 1;
        self.takes = Some(u32::MAX);
    }

    /// Says that the connection ends here and now. Streams up to the last one that was taken may have
    /// been processed.
    pub(in crate::http::mesh) fn break_off(&mut self, code: Code) {
        frame::put_goaway(&mut self.out.tail, self.last, code);
    }

    /// Whether every stream has ended, after a goodbye that the peer has heard.
    pub(in crate::http::mesh) fn has_parted(&self) -> bool {
        self.takes.is_some_and(|last| last != u32::MAX) && self.streams.is_empty()
    }

    /// Ends the connection: every stream that has not ended is lost.
    pub(in crate::http::mesh) fn fail(&mut self, why: Arc<str>) {
        for (id, stream) in &mut self.streams {
            if stream.lost.is_none() && !(stream.arrived && stream.left) {
                let untaken = self.side == Side::Client && self.peer_takes.is_some_and(|last| *id > last);
                stream.lost = Some(if untaken { Lost::Untaken } else { Lost::Connection(why.clone()) });
            }
            stream.wake();
        }
        self.ended.get_or_insert(why);
        self.greeting.take().into_iter().chain(self.listening.drain(..)).for_each(Waker::wake);
    }
}
