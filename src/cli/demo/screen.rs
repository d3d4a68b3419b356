//! The screen: one that is redrawn where stdout is a terminal, one line a second where it is not.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use super::ended::{Result, Stop, cannot};
use super::panes;
use super::stage::{Act, Frame};
use super::summary::{grouped, millis};
use super::watch::State;

/// How often it is looked at whether the screen has been closed.
const LOOK: Duration = Duration::from_millis(100);

/// What shows the frames.
pub(super) struct Screen(Kind);

enum Kind {
    Live(Live),
    /// What was said last: the act's title, and how many acts had ended.
    Lines(&'static str, usize),
    Closed,
}

struct Live {
    terminal: DefaultTerminal,
    closed: Arc<AtomicBool>,
    keys: Option<JoinHandle<()>>,
}

impl Screen {
    /// Takes the terminal over, where there is one. Ctrl-C and `q` stop the demo then as SIGINT does.
    pub(super) fn open(stop: &Stop) -> Result<Self> {
        if !io::stdout().is_terminal() {
            return Ok(Self(Kind::Lines("", 0)));
        }
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore());
        let terminal = terminal.map_err(cannot("take the terminal over"))?;
        let closed = Arc::new(AtomicBool::new(false));
        let keys = keys(stop.clone(), closed.clone());
        let live = Live { terminal, closed, keys: Some(keys) };
        Ok(Self(Kind::Live(live)))
    }

    /// Shows a frame.
    pub(super) fn draw(&mut self, frame: &Frame<'_>) -> Result<()> {
        let drawn = match &mut self.0 {
            Kind::Live(live) => live.terminal.draw(|to| panes::render(to, frame)).map(drop),
            Kind::Lines(title, ended) => {
                let text = lines(frame, title, ended);
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes()).and_then(|()| out.flush())
            }
            Kind::Closed => Ok(()),
        };
        drawn.map_err(cannot("write to stdout"))
    }

    /// Gives the terminal back.
    pub(super) fn close(&mut self) {
        self.0 = Kind::Closed;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(keys) = self.keys.take() {
            let _ = keys.join();
        }
        ratatui::restore();
    }
}

/// Reads what is typed: the terminal makes no signals of it meanwhile.
fn keys(stop: Stop, closed: Arc<AtomicBool>) -> JoinHandle<()> {
    thread::spawn(move || {
        while !closed.load(Ordering::Relaxed) {
            match event::poll(LOOK) {
                Ok(true) => {}
                Ok(false) => continue,
                // Without keys, signals are left.
                Err(_) => return,
            }
            if let Ok(Event::Key(key)) = event::read() {
                let control_c =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if control_c || key.code == KeyCode::Char('q') {
                    stop.stop();
                }
            }
        }
    })
}

/// What is new in a frame, as lines.
fn lines(frame: &Frame<'_>, title: &mut &'static str, ended: &mut usize) -> String {
    let mut text = String::new();
    for act in &frame.acts[*ended..] {
        text.push_str(&outcome(act));
    }
    *ended = frame.acts.len();
    if *title != frame.act.title {
        *title = frame.act.title;
        let _ = writeln!(text, "\n{title}: {}", frame.act.about);
    }
    if frame.fresh {
        text.push_str(&line(frame));
    }
    text
}

/// What was seen in an act.
fn outcome(act: &Act) -> String {
    act.notes.iter().fold(String::new(), |text, note| format!("{text}   {} {}\n", note.mark(), note.text))
}

/// A second in one line.
fn line(frame: &Frame<'_>) -> String {
    let Frame { rates, tally, rows, seen, elapsed, .. } = frame;
    let latency = |time: Option<Duration>| time.map_or_else(|| "-".into(), millis);
    let mut text = format!(
        "{:>4} s  {:>6} req/s  p50 {}  p99 {}  failures {}",
        elapsed.as_secs(),
        grouped(rates.requests as u64),
        latency(rates.p50),
        latency(rates.p99),
        tally.failed(),
    );
    text.push_str(" |");
    for row in rows {
        let _ = match row.state {
            None => write!(text, " {} gone", row.name),
            Some(state) => {
                let mark = match state {
                    State::Serving => "",
                    State::Leaving => " leaving",
                    State::PassedOver => " passed over",
                };
                write!(text, " {} {:.0}%{mark} {:.0}/s", row.name, row.saturation * 100.0, row.rate)
            }
        };
    }
    if let Some(expires) = seen.dns.as_ref().and_then(|dns| dns.expires) {
        let _ = write!(text, " | DNS {:.1} s", expires.as_secs_f64());
    }
    if let Some(limit) = &seen.limit {
        let _ = write!(
            text,
            " | writes {:.0}/s admitted, {:.0}/s refused of {}, {} leased",
            rates.writes, rates.refused, limit.rate, limit.leased
        );
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::panes::tests::{frame, note};

    #[test]
    fn an_act_is_announced_once_and_its_outcome_told() {
        let act = Act { title: "It returns", about: "It is back.", ..Act::default() };
        let (mut title, mut ended) = ("", 0);
        assert_eq!(lines(&frame(&act, &[]), &mut title, &mut ended), "\nIt returns: It is back.\n");
        let told = [Act { notes: vec![note("no request failed")], ..act.clone() }];
        assert_eq!(lines(&frame(&act, &told), &mut title, &mut ended), "   ✓ no request failed\n");
        assert_eq!(lines(&frame(&act, &told), &mut title, &mut ended), "");
    }

    #[test]
    fn a_line_says_it_all() {
        let act = Act::default();
        let line = line(&frame(&act, &[]));
        for part in [
            "2,049 req/s",
            "p50 8.9 ms",
            "failures 1",
            "orders-1 14% 857/s",
            "orders-2 gone",
            "orders-3 10% leaving 285/s",
            "DNS 1.3 s",
            "10/s admitted, 40/s refused of 10/s, 3 leased",
        ] {
            assert!(line.contains(part), "{part} is missing from {line}");
        }
    }
}
