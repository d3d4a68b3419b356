//! One HTTP/1 connection with what is known of it, and what a request needs of one.

use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::balance::{Handed, Open, Wanted};
use crate::http::h1::{self, Hint};

/// A connection that has idled for less than this is used without asking the kernel about it, for
/// a request that may be sent again: the runtime has looked since.
pub(super) const LOOKED_AT: Duration = Duration::from_millis(5);

/// What a close may take to be noticed beyond the round trip.
const SOON: Duration = Duration::from_millis(10);

/// So much before the end that a peer has given one connection that one is not used any more, beyond the
/// same share of it that is kept of every limit.
const SAID_MARGIN: Duration = Duration::from_millis(10);

/// An HTTP/1 connection that carries one request.
pub struct Lease(pub(super) Box<Kept>);

/// A connection, with what is known of it.
pub(super) struct Kept {
    pub(super) conn: h1::Conn,
    /// After the connection: it is closed before it is counted as such.
    pub(super) open: Open,
    pub(super) id: u64,
    pub(super) bell: Waker,
    /// Requests that it has carried, and after which its peer has said that it ends.
    pub(super) requests: u32,
    pub(super) most: u32,
    /// How long it had idled before this request; none: it was opened for it.
    pub(super) idled: Option<Duration>,
    /// How long its peer has said that it keeps it, if it has.
    pub(super) said: Option<Duration>,
    /// Whether it has cast doubt on what is known of its peer, since it idles.
    pub(super) doubted: bool,
    /// Since when it has been idle.
    pub(super) since: Instant,
    /// When it is too old, if its endpoint may be many behind one address.
    pub(super) retires: Instant,
}

/// What a request needs of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It may be sent again, should the connection turn out to have just been closed.
    Usable,
    /// It may not.
    Proven,
    /// A new one: another has just failed.
    New,
}

impl Lease {
    /// The connection.
    pub fn conn(&mut self) -> &mut h1::Conn {
        &mut self.0.conn
    }

    /// Whether it was opened for this request: nobody has used it, nor has it waited.
    pub fn is_new(&self) -> bool {
        self.0.idled.is_none()
    }

    /// Notes that it was lost, `after` the request was sent, if that is because the peer had closed it
    /// already: nothing has come back, and no later than that could.
    pub fn was_lost(&self, after: Duration) {
        let peer = &self.0.open.endpoint().keep_alive;
        let crossed = after <= 2 * peer.report().trip + SOON;
        if let Some(idled) = self.0.idled.filter(|_| crossed && self.0.conn.reader.is_untouched()) {
            peer.closed(idled, self.0.requests);
        }
    }

    /// The connection as bytes, and what was read of it and not used.
    pub fn into_stream(self) -> Option<(TcpStream, Bytes, Open)> {
        let Kept { conn: h1::Conn { reader, writer }, open, .. } = *self.0;
        let (stream, read) = reader.reunite(writer)?;
        Some((stream, read, open))
    }
}

impl Kept {
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Whether it has been to one of many for long enough: the next one may be to another.
    pub(super) fn is_aged(&self, now: Instant) -> bool {
        self.open.endpoint().standing.is_virtual() && self.retires <= now
    }

    /// Whether it is to be used no more.
    pub(super) fn is_spent(&self) -> bool {
        self.requests >= self.most || !self.open.endpoint().keep_alive.takes_more(self.requests)
    }

    /// Whether it may be used for what needs as much, after it has idled for `age`.
    pub(super) fn suits(&self, need: Need, age: Duration) -> bool {
        let peer = &self.open.endpoint().keep_alive;
        let limit = if need == Need::Usable { peer.reuse() } else { peer.proven() };
        let said = self.said.map_or(Duration::MAX, |said| said - (said / 32 + SAID_MARGIN).min(said));
        age < limit.min(said)
            && !self.is_spent()
            && match need {
                Need::Usable => true,
                // One that was kept warm has shown nothing yet.
                Need::Proven => {
                    self.requests > 0 && self.open.endpoint().keep_alive.surely_takes_more(self.requests)
                }
                Need::New => false,
            }
    }

    /// Notes that it has carried a request, and what its peer said with the answer.
    pub(super) fn served(&mut self, hint: Option<Hint>) {
        let peer = &self.open.endpoint().keep_alive;
        if let Some(idled) = self.idled {
            // That it was answered shows better than any look that it lived.
            peer.lives(idled.max(LOOKED_AT), self.requests, &mut self.doubted);
        }
        self.doubted = false;
        self.requests = self.requests.saturating_add(1);
        let Some(hint) = hint else { return };
        peer.hinted(hint);
        if hint.timeout != 0 {
            let said = Duration::from_secs(hint.timeout.into());
            self.said = Some(self.said.map_or(said, |before| before.min(said)));
        }
        // Of some it is what is left, of others what there was at first: so the first counts, and its end.
        let most = |max: u32| if max == 0 { 0 } else { (self.requests - 1).saturating_add(max) };
        self.most = self.most.min(hint.max.map_or(u32::MAX, most));
    }

    /// Has its bell rung when anything happens to it; false if something has already.
    pub(super) fn watch(&self) -> bool {
        self.conn.reader.poll_disturbed(&mut Context::from_waker(&self.bell)).is_pending()
    }

    /// Notes that it is not as it should be, if that is the peer's close.
    pub(super) fn ended(&self, now: Instant) {
        if self.conn.reader.is_ended() {
            self.open.endpoint().keep_alive.closed(self.age(now), self.requests);
        }
    }

    /// Gives it to whoever has waited longest for it, or closes it for them.
    pub(super) fn hand_on(self: Box<Self>) {
        let idled = self.age(Instant::now());
        let quiet = self.conn.reader.is_quiet();
        let [usable, proven] = [Need::Usable, Need::Proven].map(|need| quiet && self.suits(need, idled));
        let suits = |wanted| match wanted {
            Wanted::Used => usable,
            Wanted::Proven => proven,
            Wanted::New => false,
        };
        let Kept { conn: h1::Conn { reader, writer }, open, requests, most, said, retires, .. } = *self;
        let written = writer.written().get();
        let hand = move || {
            let (stream, read) = reader.reunite(writer)?;
            let stream = stream.into_std().ok().filter(|_| read.is_empty())?;
            Some(Handed { stream, written, requests, most, said, idled, retires })
        };
        open.hand_on(suits, hand);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("conn", &self.0.conn).finish_non_exhaustive()
    }
}
