//! Both ends of a proxy in one process: upstreams that end idle connections at an exact age, and
//! clients that send at exactly that age. So it knows of each request whether it was answered, on
//! which connection, and how often it was acted on. One thread: what it does, it does in one order.
//!
//! It reads orders, one JSON object a line (`plan.rs`), answers each with a line, and ends with its
//! input.

mod hub;
mod lane;
mod plan;
mod relay;
mod tally;
mod timer;
mod upstream;
mod wire;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

use crate::hub::{Hub, Life};
use crate::lane::Lane;
use crate::plan::Order;
use crate::relay::Relay;
use crate::timer::Timer;
use crate::upstream::{Door, Upstream};

const INPUT: Token = Token(0);
const TIMER: Token = Token(1);
const STDIN: i32 = 0;
const CHUNK: usize = 64 << 10;

/// What has turns.
pub(crate) enum Thing {
    Door(Door),
    Upstream(Upstream),
    Relay(Relay),
    Lane(Lane),
}

struct Edge {
    poll: Poll,
    hub: Hub,
    things: HashMap<Token, Thing>,
    /// Of an order that has not come whole.
    order: Vec<u8>,
    /// Requests are being sent.
    runs: bool,
}

fn main() -> io::Result<()> {
    let poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&STDIN), INPUT, Interest::READABLE)?;
    let timer = Timer::new(poll.registry(), TIMER)?;
    let hub = Hub::new(poll.registry().try_clone()?, timer, TIMER);
    Edge { poll, hub, things: HashMap::new(), order: Vec::new(), runs: false }.run()
}

impl Edge {
    /// Until the input ends.
    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            self.hub.timer.arm()?;
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            // What has come is read before what is due is ended, as servers do.
            for event in &events {
                match event.token() {
                    TIMER => {}
                    INPUT => {
                        if !self.read()? {
                            return Ok(());
                        }
                    }
                    token => self.turn(token, Thing::ready)?,
                }
            }
            while let Some(token) = self.hub.timer.pop() {
                self.turn(token, Thing::due)?;
            }
            if self.runs && self.hub.tally.open == 0 {
                self.runs = false;
                say(&self.hub.tally.result())?;
            }
        }
    }

    fn turn(
        &mut self,
        token: Token,
        what: fn(&mut Thing, &mut Hub, Token) -> io::Result<Life>,
    ) -> io::Result<()> {
        if let Some(thing) = self.things.get_mut(&token)
            && what(thing, &mut self.hub, token)? == Life::Over
        {
            self.things.remove(&token);
        }
        self.things.extend(self.hub.born.drain(..));
        Ok(())
    }

    /// Takes orders; false at the end of the input.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK];
        // To the end of the line, which is on its way: nothing is measured meanwhile.
        loop {
            let read = io::stdin().lock().read(&mut chunk)?;
            if read == 0 {
                return Ok(false);
            }
            self.order.extend_from_slice(&chunk[..read]);
            if self.order.ends_with(b"\n") {
                break;
            }
        }
        let order = std::mem::take(&mut self.order);
        match serde_json::from_slice(&order)? {
            Order::Serve(behaviours) => {
                self.hub.behaviours = behaviours;
                let mut ports = serde_json::Map::new();
                for behaviour in 0..self.hub.behaviours.len() {
                    let port = Door::open(&mut self.hub, behaviour)?;
                    ports.insert(self.hub.behaviours[behaviour].name.clone(), port.into());
                }
                self.things.extend(self.hub.born.drain(..));
                say(&json!({ "ports": ports }))?;
            }
            Order::Run(rows) => {
                self.hub.tally.begin(rows.iter().map(|row| row.name.clone()));
                for (number, row) in rows.into_iter().enumerate() {
                    Lane::begin(&mut self.hub, number, row)?;
                }
                self.things.extend(self.hub.born.drain(..));
                self.runs = true;
            }
        }
        Ok(true)
    }
}

impl Thing {
    fn ready(&mut self, hub: &mut Hub, token: Token) -> io::Result<Life> {
        Ok(match self {
            Self::Door(door) => return door.ready(hub).map(|()| Life::On),
            Self::Upstream(upstream) => upstream.ready(hub, token),
            Self::Relay(relay) => relay.ready(hub),
            Self::Lane(lane) => lane.ready(hub),
        })
    }

    fn due(&mut self, hub: &mut Hub, _token: Token) -> io::Result<Life> {
        Ok(match self {
            Self::Door(_) => Life::On,
            Self::Upstream(upstream) => upstream.due(hub),
            Self::Relay(relay) => relay.due(hub),
            Self::Lane(lane) => lane.due(hub),
        })
    }
}

fn say(answer: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{answer}")?;
    out.flush()
}
