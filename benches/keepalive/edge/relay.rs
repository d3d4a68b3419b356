//! A relay that is a longer way: whatever happens on one side, bytes, an end or a reset, happens on
//! the other after a delay.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

use mio::Token;
use mio::net::TcpStream;

use crate::Thing;
use crate::hub::{Hub, Life};
use crate::timer::Nanos;
use crate::upstream::reset;

const CHUNK: usize = 4096;

/// One side of a relay.
pub(crate) struct Relay {
    both: Rc<RefCell<Both>>,
    side: usize,
}

struct Both {
    streams: [TcpStream; 2],
    tokens: [Token; 2],
    /// What is on its way to each side.
    under_way: [VecDeque<(Nanos, Happened)>; 2],
    /// Which sides were told that the other has ended.
    ended: [bool; 2],
    delay: Nanos,
    over: bool,
}

enum Happened {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl Relay {
    pub(crate) fn begin(hub: &mut Hub, from: TcpStream, to: SocketAddr, delay: Nanos) -> io::Result<()> {
        let (mut streams, tokens) = ([from, TcpStream::connect(to)?], [hub.token(), hub.token()]);
        for (stream, token) in streams.iter_mut().zip(tokens) {
            hub.watch_both(stream, token)?;
        }
        let (under_way, ended) = (Default::default(), [false; 2]);
        let both = Rc::new(RefCell::new(Both { streams, tokens, under_way, ended, delay, over: false }));
        for (side, token) in tokens.into_iter().enumerate() {
            hub.born.push((token, Thing::Relay(Self { both: both.clone(), side })));
        }
        Ok(())
    }

    pub(crate) fn ready(&mut self, hub: &mut Hub) -> Life {
        self.both.borrow_mut().read(hub, self.side)
    }

    pub(crate) fn due(&mut self, hub: &mut Hub) -> Life {
        self.both.borrow_mut().tell(hub, self.side)
    }
}

impl Both {
    /// Takes what has happened on a side.
    fn read(&mut self, hub: &mut Hub, side: usize) -> Life {
        while !self.over {
            let mut chunk = [0; CHUNK];
            let happened = match self.streams[side].read(&mut chunk) {
                Ok(0) => Happened::End,
                Ok(read) => Happened::Bytes(chunk[..read].into()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break;
                }
                Err(_) => Happened::Reset,
            };
            let last = !matches!(happened, Happened::Bytes(_));
            let at = hub.now() + self.delay;
            self.under_way[1 - side].push_back((at, happened));
            hub.timer.add(at, self.tokens[1 - side]);
            if last {
                break;
            }
        }
        self.life(hub)
    }

    /// Has happen on a side what is due there.
    fn tell(&mut self, hub: &mut Hub, side: usize) -> Life {
        while !self.over && self.under_way[side].front().is_some_and(|(at, _)| *at <= hub.now()) {
            let Some((_, happened)) = self.under_way[side].pop_front() else { break };
            let stream = &mut self.streams[side];
            match happened {
                // So little always fits what the kernel takes at once. A side that is gone says so itself.
                Happened::Bytes(bytes) => drop(stream.write_all(&bytes)),
                Happened::End => {
                    let _ = stream.shutdown(Shutdown::Write);
                    self.ended[side] = true;
                    self.over = self.ended == [true; 2];
                }
                Happened::Reset => {
                    reset(stream);
                    self.over = true;
                }
            }
        }
        self.life(hub)
    }

    /// Both sides are over together: that which has no turn now is given one.
    fn life(&mut self, hub: &mut Hub) -> Life {
        if !self.over {
            return Life::On;
        }
        for token in self.tokens {
            hub.timer.add(0, token);
        }
        Life::Over
    }
}
