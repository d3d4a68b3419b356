//! One answer for which two tries of a request run: the first that has the head of one takes it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::task::{Context, Poll};

use super::Responder;

/// Where the answer goes, and whose it is.
#[derive(Debug)]
pub struct Race<'a, 'b> {
    respond: RefCell<&'a mut Responder<'b>>,
    winner: Cell<Option<u8>>,
}

/// One of those who run.
#[derive(Debug)]
pub struct Runner<'a> {
    race: &'a dyn Course,
    number: u8,
}

/// A [`Race`], whatever its answer borrows.
trait Course: fmt::Debug {
    fn winner(&self) -> &Cell<Option<u8>>;
    fn with(&self, act: &mut dyn FnMut(&mut Responder<'_>));
}

impl<'a, 'b> Race<'a, 'b> {
    /// For an answer of which nothing has begun.
    pub fn new(respond: &'a mut Responder<'b>) -> Self {
        Self { respond: RefCell::new(respond), winner: Cell::new(None) }
    }

    /// One who runs, by a number of its own.
    pub fn runner(&self, number: u8) -> Responder<'_> {
        Responder::Raced(Runner { race: self, number })
    }

    /// Whose the answer is.
    pub fn winner(&self) -> Option<u8> {
        self.winner.get()
    }
}

impl Course for Race<'_, '_> {
    fn winner(&self) -> &Cell<Option<u8>> {
        &self.winner
    }

    fn with(&self, act: &mut dyn FnMut(&mut Responder<'_>)) {
        act(&mut self.respond.borrow_mut());
    }
}

impl Runner<'_> {
    /// Takes the answer; an error if another has it.
    pub(super) fn claim(&self) -> io::Result<()> {
        let winner = self.race.winner();
        if winner.get().is_some_and(|winner| winner != self.number) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        winner.set(Some(self.number));
        Ok(())
    }

    /// Whether the answer is this one's.
    pub(super) fn has_won(&self) -> bool {
        self.race.winner().get() == Some(self.number)
    }

    /// Ready when nobody wants this one's answer any more.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.race.winner().get().is_some() && !self.has_won() {
            return Poll::Ready(());
        }
        self.with(Poll::Pending, |respond| respond.poll_gone(cx))
    }

    /// Does something with the answer; `otherwise` stands for what it gives if it could not be done.
    pub(super) fn with<T>(&self, otherwise: T, act: impl FnOnce(&mut Responder<'_>) -> T) -> T {
        let (mut act, mut given) = (Some(act), otherwise);
        self.race.with(&mut |respond| {
            if let Some(act) = act.take() {
                given = act(respond);
            }
        });
        given
    }
}
