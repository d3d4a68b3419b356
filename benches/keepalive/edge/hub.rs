//! What everything that runs here has in common: the poll, the timer, the behaviours, the counts. A
//! token is never given twice, so that no late event meets another connection.

use std::io;

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::Thing;
use crate::plan::{Behaviour, Gap};
use crate::tally::Tally;
use crate::timer::{Nanos, Timer, from_millis};

/// Whether something goes on, once it had its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    On,
    Over,
}

pub(crate) struct Hub {
    pub(crate) registry: Registry,
    pub(crate) timer: Timer,
    pub(crate) behaviours: Vec<Behaviour>,
    pub(crate) tally: Tally,
    /// Came into being during this turn.
    pub(crate) born: Vec<(Token, Thing)>,
    last: Token,
}

impl Hub {
    pub(crate) fn new(registry: Registry, timer: Timer, last: Token) -> Self {
        let (behaviours, born) = (Vec::new(), Vec::new());
        Self { registry, timer, behaviours, tally: Tally::default(), born, last }
    }

    pub(crate) fn now(&self) -> Nanos {
        self.timer.now()
    }

    pub(crate) fn token(&mut self) -> Token {
        self.last.0 += 1;
        self.last
    }

    pub(crate) fn watch(&self, source: &mut impl Source, token: Token) -> io::Result<()> {
        self.registry.register(source, token, Interest::READABLE)
    }

    /// As `watch`, and tells when the connection takes more.
    pub(crate) fn watch_both(&self, stream: &mut TcpStream, token: Token) -> io::Result<()> {
        let _ = stream.set_nodelay(true);
        self.registry.register(stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// For how long a behaviour lets a connection idle that begins to just now.
    pub(crate) fn idle(&self, behaviour: usize) -> Nanos {
        let behaviour = &self.behaviours[behaviour];
        let turn = if behaviour.idle.len() > 1 { self.now() / from_millis(behaviour.period) } else { 0 };
        from_millis(behaviour.idle[turn as usize % behaviour.idle.len()])
    }

    /// A pause from the range.
    pub(crate) fn draw(&self, gap: &Gap) -> Nanos {
        let beyond = gap.beyond.as_ref();
        let base = beyond
            .and_then(|name| self.behaviours.iter().position(|one| one.name == *name))
            .map_or(0, |behaviour| self.idle(behaviour));
        let from_base = gap.from + (gap.to - gap.from) * fastrand::f64();
        from_millis(base as f64 / 1e6 + from_base)
    }
}
