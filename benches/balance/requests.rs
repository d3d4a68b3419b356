//! Requests on their way. Slots are used again, so that a run allocates for what it has at once.

use crate::events::Nanos;
use crate::policy::{Outcome, Report};

/// How many servers that were tried are remembered.
pub(crate) const TRIED: usize = 4;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: the slot is free.
    Free,
    /// At its client, which has not chosen.
    Client,
    /// On its way to a server, there, or on its way back.
    Sent,
    /// As `Sent`, and its client waits for it no longer.
    Abandoned,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) number: u32,
    pub(crate) client: u16,
    pub(crate) server: u16,
    pub(crate) place: Place,
    /// What the server said.
    pub(crate) outcome: Outcome,
    pub(crate) attempts: u8,
    pub(crate) tried: [u16; TRIED],
    /// A worker has it.
    pub(crate) runs: bool,
    /// It counts.
    pub(crate) measured: bool,
    /// Nanoseconds of work at speed 1.
    pub(crate) work: Nanos,
    /// When the client had it.
    pub(crate) came: Nanos,
    /// When it was sent, the last time.
    pub(crate) sent: Nanos,
    /// When it reached the server.
    pub(crate) reached: Nanos,
    /// How many the server had then, this one included.
    pub(crate) met: u32,
    /// What its server told with the answer.
    pub(crate) report: Report,
}

#[derive(Default)]
pub(crate) struct Requests {
    slots: Vec<Request>,
    free: Vec<u32>,
}

impl Requests {
    pub(crate) fn add(&mut self, request: Request) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = request;
            return slot;
        }
        self.slots.push(request);
        self.slots.len() as u32 - 1
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        self[slot].place = Place::Free;
        self.free.push(slot);
    }

    /// Whether this is still that request.
    pub(crate) fn is(&self, slot: u32, number: u32) -> bool {
        let request = &self[slot];
        request.number == number && request.place != Place::Free
    }
}

impl std::ops::Index<u32> for Requests {
    type Output = Request;

    fn index(&self, slot: u32) -> &Request {
        &self.slots[slot as usize]
    }
}

impl std::ops::IndexMut<u32> for Requests {
    fn index_mut(&mut self, slot: u32) -> &mut Request {
        &mut self.slots[slot as usize]
    }
}
