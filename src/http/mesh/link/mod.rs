//! One connection's state, shared by its task and its streams: who may send how much, what has
//! arrived for whom, and how it ends.

mod arriving;
mod life;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::frame::{self, Header, Kind, Settings};
use super::{Code, Lost, budget};
use crate::http::out::Out;
use crate::http::{Announcement, Bounds};

/// What both sides take for granted until they have heard the other's [`Settings`].
const ASSUMED_STREAMS: u32 = 100;
const ASSUMED_STREAM: u32 = 16 << 10;
const ASSUMED_CONNECTION: u32 = 64 << 10;

/// What may wait to be written before bodies have to.
const ENOUGH: usize = 128 << 10;

/// Pieces below this size are put together while they wait to be taken.
const GATHERED: usize = 2 << 10;

/// What windows grow to at most.
const MAX_STREAM_WINDOW: u32 = 4 << 20;
const MAX_CONNECTION_WINDOW: u32 = 16 << 20;

/// Which side of a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Opens streams.
    Client,
    /// Takes them.
    Server,
}

/// A connection's state.
pub(super) struct Shared {
    state: RefCell<State>,
    /// Whether its task has been woken since it last ran.
    woken: Cell<bool>,
    task: RefCell<Option<Waker>>,
    pub bounds: Bounds,
}

pub(super) struct State {
    side: Side,
    streams: HashMap<u32, Stream, FixedState>,
    /// Streams that we serve at once.
    serves: usize,
    /// The highest stream that was opened, by whoever opens them.
    last: u32,
    /// Requests that have arrived and that nobody has begun to serve.
    pub accepted: VecDeque<(u32, Bytes, bool)>,
    pub out: Out,
    /// What the peer has said of itself, and who waits for it.
    peer: Option<Settings>,
    greeting: Option<Waker>,
    /// What all streams together may still send.
    credit: i64,
    /// Streams that wait for that, or for `out` to drain.
    waiting: VecDeque<u32>,
    /// What the peer may send before we return credit, what it has sent since, and how much of that
    /// is still held.
    window: u32,
    unreturned: u32,
    pub held: usize,
    /// Whether credit is not returned only because the budget is spent, on whichever connection.
    pub keeps_credit: bool,
    /// The last stream that the peer will take, once it is ending.
    peer_takes: Option<u32>,
    /// The last stream that we take, once we are ending.
    takes: Option<u32>,
    /// When the peer was last heard, how often it was, and who waits for the next time.
    heard: Instant,
    times_heard: u64,
    listening: Vec<Waker>,
    /// When the PING on its way left, and the shortest that one took.
    pinged: Option<Instant>,
    pings: u32,
    /// PINGs of the peer that are still to be answered.
    unanswered: u32,
    /// How often the peer has answered ours, and what it said the last time.
    pongs: u64,
    said: Option<Announcement>,
    round_trip: Option<Duration>,
    /// Since when the peer has taken nothing of what we write.
    blocked: Option<Instant>,
    /// What is still to come of a large piece of a body.
    rest: Option<Header>,
    ended: Option<Arc<str>>,
}

/// One stream.
pub(super) struct Stream {
    /// Who serves it, if it waits for anything.
    waker: Option<Waker>,
    pub heads: SmallVec<[Bytes; 1]>,
    pub pieces: VecDeque<Bytes>,
    pub trailers: Option<Bytes>,
    /// The peer has sent all.
    pub arrived: bool,
    /// We have sent all.
    pub left: bool,
    pub lost: Option<Lost>,
    /// Parts of it that somebody holds.
    holders: u8,
    /// What we may still send.
    credit: i64,
    is_waiting: bool,
    has_turn: bool,
    /// As of the connection: what the peer may send, and has sent since.
    window: u32,
    available: i64,
    taken: u32,
    returned: Option<Instant>,
    held: budget::Held,
}

impl Shared {
    pub(super) fn new(side: Side, bounds: Bounds) -> Rc<Self> {
        let mut out = Out::default();
        let settings = Settings {
            streams: bounds.streams,
            stream_window: budget::stream_window(),
            connection_window: budget::connection_window(),
        };
        settings.put(&mut out.tail);
        frame::put_ping(&mut out.tail);
        let state = State {
            side,
            streams: HashMap::default(),
            serves: bounds.streams as usize,
            last: 0,
            accepted: VecDeque::new(),
            out,
            peer: None,
            greeting: None,
            credit: i64::from(ASSUMED_CONNECTION),
            waiting: VecDeque::new(),
            window: settings.connection_window,
            unreturned: 0,
            held: 0,
            keeps_credit: false,
            peer_takes: None,
            takes: None,
            heard: Instant::now(),
            times_heard: 0,
            listening: Vec::new(),
            pinged: Some(Instant::now()),
            pings: 1,
            unanswered: 0,
            pongs: 0,
            said: None,
            round_trip: None,
            blocked: None,
            rest: None,
            ended: None,
        };
        Rc::new(Self {
            state: RefCell::new(state),
            woken: Cell::new(false),
            task: RefCell::default(),
            bounds,
        })
    }

    /// Does something with the state; the connection's task runs afterwards if there is anything
    /// to write.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.borrow_mut();
        let done = act(&mut state);
        if !state.out.is_empty() {
            drop(state);
            self.wake();
        }
        done
    }

    /// Has the connection's task run.
    pub(super) fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(task) = &*self.task.borrow()
        {
            task.wake_by_ref();
        }
    }

    /// The connection's task is running.
    pub(super) fn runs(&self, cx: &Context<'_>) {
        self.woken.set(false);
        let mut task = self.task.borrow_mut();
        match &mut *task {
            Some(task) => task.clone_from(cx.waker()),
            None => *task = Some(cx.waker().clone()),
        }
    }

    /// As [`with`](Self::with), for the task itself, which need not be woken.
    pub(super) fn within<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.borrow_mut())
    }
}

impl State {
    /// Streams that are open.
    pub(super) fn open(&self) -> usize {
        self.streams.len()
    }

    /// Streams that the peer serves at once.
    pub(super) fn most(&self) -> usize {
        self.peer.map_or(ASSUMED_STREAMS, |peer| peer.streams) as usize
    }

    /// How long the peer has taken nothing of what we write.
    pub(super) fn blocked_for(&self) -> Duration {
        self.blocked.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Opens a stream, and returns its number.
    pub(super) fn open_stream(&mut self) -> u32 {
        self.last += 1;
        let credit = self.peer.map_or(ASSUMED_STREAM, |peer| peer.stream_window);
        self.streams.insert(self.last, Stream::new(credit));
        self.last
    }

    pub(super) fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.get_mut(&id)
    }

    /// Another part of a stream is held.
    pub(super) fn hold(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.holders += 1;
        }
    }

    /// A part of a stream is not held any more. With the last one the stream ends, as far as it has
    /// not been ended.
    pub(super) fn release(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.holders -= 1;
        if stream.holders > 0 {
            return;
        }
        let (unended, lost) = (!stream.left || !stream.arrived, stream.lost.is_some());
        if unended && !lost {
            // A whole answer before the end of the request wants no more of it, and nothing is
            // wrong (RFC 9113 section 8.1).
            let code = match self.side {
                Side::Server if stream.left => Code::NO_ERROR,
                Side::Server => Code::INTERNAL_ERROR,
                Side::Client => Code::CANCEL,
            };
            frame::put_number(&mut self.out.tail, Kind::Reset, id, code.0);
        }
        self.remove(id);
    }

    /// Ends a stream with a reset.
    pub(super) fn reset(&mut self, id: u32, code: Code) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.lost.is_none()
        {
            stream.lost = Some(Lost::Reset(code));
            frame::put_number(&mut self.out.tail, Kind::Reset, id, code.0);
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(stream) = self.streams.remove(&id) {
            self.held -= stream.held.bytes();
            self.return_connection_credit();
            if stream.has_turn {
                // It did not take it.
                self.wake_waiting();
            }
        }
    }

    /// Sends of `piece` what may be sent, the end included if all of it goes and `ends`. Ready when
    /// nothing is left.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        id: u32,
        piece: &mut Bytes,
        ends: bool,
    ) -> Poll<Result<(), Lost>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Lost::Reset(Code::CANCEL)));
        };
        while !piece.is_empty() {
            if let Some(lost) = stream.lost.clone() {
                if std::mem::take(&mut stream.has_turn) {
                    self.wake_waiting();
                }
                return Poll::Ready(Err(lost));
            }
            // Those who wait have their turn before those who do not.
            let waits = self.out.len() >= ENOUGH || (!self.waiting.is_empty() && !stream.has_turn);
            let room = if waits { 0 } else { self.credit.min(stream.credit).max(0) };
            let n = piece.len().min(room as usize).min(frame::MAX_DATA);
            stream.has_turn = false;
            if n == 0 {
                stream.wait(cx);
                if stream.credit > 0 && !std::mem::replace(&mut stream.is_waiting, true) {
                    self.waiting.push_back(id);
                }
                return Poll::Pending;
            }
            self.credit -= n as i64;
            stream.credit -= n as i64;
            let now = piece.split_to(n);
            let last = ends && piece.is_empty();
            frame::put_header(&mut self.out.tail, n, Kind::Data, u8::from(last), id);
            self.out.piece(now);
            stream.left |= last;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends what we send on a stream.
    pub(super) fn end(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.lost.is_none()
            && !std::mem::replace(&mut stream.left, true)
        {
            frame::put_header(&mut self.out.tail, 0, Kind::Data, frame::END, id);
        }
    }

    /// Notes that `n` bytes of a body have been taken, and returns their credit in due time.
    pub(super) fn took(&mut self, id: u32, n: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.held -= n;
        stream.held.sub(n);
        stream.taken += n as u32;
        if stream.taken >= stream.window / 2 && !stream.arrived {
            let mut credit = std::mem::take(&mut stream.taken);
            let now = Instant::now();
            let since = stream.returned.replace(now).map(|before| now - before);
            // Half a window in two round trips: it is the window that holds the peer up.
            let held_up = since.zip(self.round_trip).is_some_and(|(since, trip)| since < trip * 2);
            if held_up && stream.window < MAX_STREAM_WINDOW && budget::is_ample() {
                credit += stream.window;
                stream.window *= 2;
                let wanted = (stream.window * 2).min(MAX_CONNECTION_WINDOW);
                if wanted > self.window {
                    frame::put_number(&mut self.out.tail, Kind::Window, 0, wanted - self.window);
                    self.window = wanted;
                }
            }
            stream.available += i64::from(credit);
            frame::put_number(&mut self.out.tail, Kind::Window, id, credit);
        }
        self.return_connection_credit();
    }

    /// Credit of the connection returns on receipt, so that one slow stream holds up no other; with
    /// the budget spent, only for what has been taken.
    pub(super) fn return_connection_credit(&mut self) {
        let kept = if budget::is_spent() { u32::try_from(self.held).unwrap_or(u32::MAX) } else { 0 };
        let credit = self.unreturned.saturating_sub(kept);
        self.keeps_credit = kept > 0 && self.unreturned >= self.window / 2;
        if credit >= self.window / 2 {
            self.unreturned -= credit;
            frame::put_number(&mut self.out.tail, Kind::Window, 0, credit);
        }
    }

    /// Gives the streams that wait for the connection their turn, one piece each, as many as there is
    /// room for.
    pub(super) fn wake_waiting(&mut self) {
        let mut room = if self.credit > 0 { ENOUGH.saturating_sub(self.out.len()) } else { 0 };
        while room > 0
            && let Some(id) = self.waiting.pop_front()
        {
            if let Some(stream) = self.streams.get_mut(&id) {
                room = room.saturating_sub(frame::MAX_DATA);
                stream.is_waiting = false;
                stream.has_turn = true;
                stream.wake();
            }
        }
    }

    /// Notes whether the peer takes what we write.
    pub(super) fn note_blocked(&mut self, is_blocked: bool) {
        match (is_blocked, self.blocked) {
            (true, None) => self.blocked = Some(Instant::now()),
            (false, Some(_)) => self.blocked = None,
            _ => {}
        }
    }
}

impl Stream {
    fn new(credit: u32) -> Self {
        let window = budget::stream_window();
        Self {
            waker: None,
            heads: SmallVec::new(),
            pieces: VecDeque::new(),
            trailers: None,
            arrived: false,
            left: false,
            lost: None,
            holders: 0,
            credit: i64::from(credit),
            is_waiting: false,
            has_turn: false,
            window,
            available: i64::from(window),
            taken: 0,
            returned: None,
            held: budget::Held::default(),
        }
    }

    /// What we may still send on it.
    pub(super) fn room(&self) -> usize {
        usize::try_from(self.credit).unwrap_or(0)
    }

    /// Takes a piece that has arrived. Small ones that nobody has taken yet become one: many of a few
    /// bytes would hold far more memory than they count for.
    fn put(&mut self, piece: Bytes) {
        let small = |piece: &Bytes| piece.len() < GATHERED;
        match self.pieces.pop_back_if(|last| small(last) && small(&piece)).map(Bytes::try_into_mut) {
            Some(Ok(mut last)) => {
                last.extend_from_slice(&piece);
                self.pieces.push_back(last.freeze());
                return;
            }
            Some(Err(last)) => self.pieces.push_back(last),
            None => {}
        }
        self.pieces.push_back(piece);
    }

    /// Has whoever serves the stream woken when anything about it changes.
    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
