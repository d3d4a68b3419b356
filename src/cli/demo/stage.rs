//! Where the story is played: a mesh with traffic, and the screen that shows it. Whatever the story
//! waits for, the screen is kept up meanwhile, and somebody may stop it.

use std::time::{Duration, Instant};

use super::ended::{Result, Stop};
use super::mesh::Mesh;
use super::meter::{Meter, Rates};
use super::screen::Screen;
use super::traffic::{Tally, Traffic};
use super::watch::{Seen, State, Watch};

/// How often the screen is drawn.
const BEAT: Duration = Duration::from_millis(200);

/// A mesh that is being shown.
pub(super) struct Stage<'a> {
    pub(super) mesh: Mesh,
    pub(super) traffic: Traffic,
    watch: Watch,
    meter: Meter,
    screen: Screen,
    stop: &'a Stop,
    begun: Instant,
    act: Act,
    /// Requests that had failed when the act began.
    failed: u64,
    acts: Vec<Act>,
}

/// A part of the story.
#[derive(Debug, Clone, Default)]
pub(super) struct Act {
    /// What happens.
    pub(super) title: &'static str,
    /// What it is meant to show.
    pub(super) about: &'static str,
    /// What was seen.
    pub(super) notes: Vec<Note>,
}

/// Something that was seen.
#[derive(Debug, Clone)]
pub(super) struct Note {
    /// Whether it is as it was meant to be.
    pub(super) good: bool,
    pub(super) text: String,
}

/// What the screen shows.
pub(super) struct Frame<'a> {
    pub(super) about: &'static str,
    pub(super) elapsed: Duration,
    pub(super) act: &'a Act,
    pub(super) acts: &'a [Act],
    pub(super) rates: Rates,
    pub(super) tally: Tally,
    pub(super) rows: Vec<Row>,
    pub(super) seen: Seen,
    /// The rates are of another second than in the frame before.
    pub(super) fresh: bool,
}

/// A pod, as the caller's sidecar sees it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) address: String,
    pub(super) saturation: f64,
    pub(super) in_flight: u64,
    pub(super) capacity: u64,
    /// What it does; none: it is not in DNS, and has nothing to finish.
    pub(super) state: Option<State>,
    /// Answers a second.
    pub(super) rate: f64,
}

impl Act {
    /// Whether everything in it was as it was meant to be.
    pub(super) fn is_good(&self) -> bool {
        self.notes.iter().all(|note| note.good)
    }
}

impl Note {
    /// The mark before its text.
    pub(super) fn mark(&self) -> &'static str {
        if self.good { "✓" } else { "✗" }
    }
}

impl<'a> Stage<'a> {
    /// Opens the screen, and starts to watch and to send.
    pub(super) fn open(mesh: Mesh, stop: &'a Stop) -> Result<Self> {
        let watch = Watch::start(&mesh.caller.place, mesh.caller.sidecar.admin)?;
        let traffic = Traffic::start(&mesh.caller.place, mesh.caller.way)?;
        Ok(Self {
            mesh,
            traffic,
            watch,
            meter: Meter::new(),
            screen: Screen::open(stop)?,
            stop,
            begun: Instant::now(),
            act: Act::default(),
            failed: 0,
            acts: Vec::new(),
        })
    }

    /// Begins the next act.
    pub(super) fn act(&mut self, title: &'static str, about: &'static str) {
        self.end_act();
        self.failed = self.traffic.tally().failed();
        self.act = Act { title, about, notes: Vec::new() };
    }

    /// Notes what was seen in this act.
    pub(super) fn saw(&mut self, text: String) {
        self.act.notes.push(Note { good: true, text });
    }

    /// Notes that something was not as it was meant to be.
    pub(super) fn broke(&mut self, text: String) {
        self.act.notes.push(Note { good: false, text });
    }

    /// Lets a time pass.
    pub(super) fn play(&mut self, time: Duration) -> Result<()> {
        self.until(time, |_| None::<()>).map(drop)
    }

    /// Lets time pass until `done` gives a value, or `limit` is over.
    pub(super) fn until<T>(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<Option<T>> {
        let end = Instant::now() + limit;
        let mut draw = Instant::now();
        loop {
            if let Some(value) = done(self) {
                return Ok(Some(value));
            }
            let now = Instant::now();
            if now >= draw {
                self.draw()?;
                draw = now + BEAT;
            }
            if now >= end {
                return Ok(None);
            }
            self.stop.sleep(Duration::from_millis(20).min(end - now))?;
        }
    }

    /// What the caller's sidecar said last.
    pub(super) fn seen(&self) -> Seen {
        self.watch.seen()
    }

    /// Closes the screen. What is said from here on is read like any program's output.
    pub(super) fn close_screen(&mut self) {
        self.screen.close();
    }

    /// The acts that were played, and how long it took.
    pub(super) fn acts(&mut self) -> (Vec<Act>, Duration) {
        self.end_act();
        (std::mem::take(&mut self.acts), self.begun.elapsed())
    }

    fn end_act(&mut self) {
        if self.act.title.is_empty() {
            return;
        }
        let failed = self.traffic.tally().failed() - self.failed;
        if failed > 0 {
            self.broke(format!("{failed} requests failed"));
        } else {
            self.saw("no request failed".into());
        }
        self.acts.push(std::mem::take(&mut self.act));
    }

    fn draw(&mut self) -> Result<()> {
        let (rates, tally, fresh) = self.meter.read(&self.traffic);
        let seen = self.watch.seen();
        let row = |pod: &super::mesh::Pod| {
            let endpoint = seen.endpoints.iter().find(|endpoint| endpoint.address == pod.address);
            Row {
                name: pod.name,
                address: pod.address.to_string(),
                saturation: endpoint.map_or(0.0, |e| e.saturation),
                in_flight: endpoint.map_or(0, |e| e.in_flight),
                capacity: endpoint.map_or(0, |e| e.capacity),
                state: endpoint.map(|e| e.state),
                rate: rates.pods.get(pod.name).copied().unwrap_or(0.0),
            }
        };
        let rows = self.mesh.pods.iter().map(row).collect();
        let frame = Frame {
            about: self.mesh.about,
            elapsed: self.begun.elapsed(),
            act: &self.act,
            acts: &self.acts,
            rates,
            tally,
            rows,
            seen,
            fresh,
        };
        self.screen.draw(&frame)
    }
}
