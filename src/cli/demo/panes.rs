//! What the screen shows, pane by pane.

use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Wrap};

use super::config::ENDPOINTS;
use super::stage::{Frame, Note, Row};
use super::summary::{grouped, millis};
use super::watch::State;

/// Characters of a full bar.
const BAR: usize = 14;

/// Draws a frame.
pub(super) fn render(to: &mut ratatui::Frame<'_>, frame: &Frame<'_>) {
    let endpoints = frame.rows.len() as u16 + 3;
    let panes = [1, 5, 3, endpoints, 4].map(Constraint::Length);
    let [head, now, traffic, service, limit, seen] =
        Layout::vertical(panes.into_iter().chain([Constraint::Min(0)])).areas(to.area());
    to.render_widget(header(frame), head);
    pane(to, now, frame.act.title, vec![Line::from(frame.act.about)]);
    pane(to, traffic, "Traffic", vec![figures(frame)]);
    let rows = frame.rows.iter().map(endpoint).chain([countdown(frame)]).collect();
    pane(to, service, "Endpoints, as the caller's sidecar sees them", rows);
    pane(to, limit, "The limit on writes", decisions(frame));
    pane(to, seen, "Seen", outcomes(frame, seen.height.saturating_sub(2)));
}

fn pane(to: &mut ratatui::Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>) {
    let block =
        Block::bordered().title(Span::from(format!(" {title} ")).bold()).border_style(Color::DarkGray);
    to.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }).block(block), area);
}

fn header<'a>(frame: &Frame<'a>) -> Line<'a> {
    let elapsed = format!("{:>3} s  ", frame.elapsed.as_secs());
    Line::from(vec![" Pannier  ".bold(), elapsed.into(), frame.about.dim(), "   (q stops)".dim()])
}

fn figures<'a>(frame: &Frame<'a>) -> Line<'a> {
    let (rates, failed) = (&frame.rates, frame.tally.failed());
    let latency = |time: Option<std::time::Duration>| time.map_or_else(|| "-".into(), millis);
    let failures = format!("{} failed", grouped(failed));
    Line::from(vec![
        format!("{} requests/s", grouped(rates.requests as u64)).bold(),
        format!("   p50 {}   p99 {}   ", latency(rates.p50), latency(rates.p99)).into(),
        if failed == 0 { failures.green() } else { failures.red().bold() },
        format!("   of {}", grouped(frame.tally.sent())).dim(),
    ])
}

fn endpoint<'a>(row: &Row) -> Line<'a> {
    let colour = match row.saturation {
        ..0.5 => Color::Green,
        0.5..0.8 => Color::Yellow,
        _ => Color::Red,
    };
    let (state, style) = match row.state {
        Some(State::Serving) => ("takes requests", Style::new()),
        Some(State::Leaving) => ("drains", Style::new().yellow()),
        Some(State::PassedOver) => ("passed over", Style::new().red()),
        None => ("not in DNS", Style::new().dim()),
    };
    let full = ((row.saturation * BAR as f64).ceil() as usize).min(BAR);
    let numbers = format!(
        " {:>3.0} %  {:>2}/{:<3} {:>4.0}/s  ",
        row.saturation * 100.0,
        row.in_flight,
        row.capacity,
        row.rate
    );
    Line::from(vec![
        format!("{:<9}", row.name).bold(),
        format!("{:<18}", row.address).dim(),
        Span::styled("█".repeat(full), colour),
        "░".repeat(BAR - full).dim(),
        numbers.into(),
        Span::styled(state, style),
    ])
}

fn countdown<'a>(frame: &Frame<'a>) -> Line<'a> {
    let Some(dns) = &frame.seen.dns else { return Line::from("no answer from the sidecar yet".dim()) };
    let left =
        dns.expires.map_or_else(|| "no expiry".into(), |left| format!("{:.1} s left", left.as_secs_f64()));
    Line::from(format!("{ENDPOINTS}: {}, {left}", dns.state).dim())
}

fn decisions<'a>(frame: &Frame<'a>) -> Vec<Line<'a>> {
    let Some(limit) = &frame.seen.limit else { return Vec::new() };
    let rates = &frame.rates;
    let counted = match frame.seen.redis {
        Some(true) => format!(
            "mesh-wide: {} tokens leased, {} calls of Redis for {} decisions",
            limit.leased,
            limit.redis_calls,
            limit.admitted + limit.refused
        ),
        Some(false) => "mesh-wide, but Redis does not answer".into(),
        None => format!("in this sidecar: {} decisions", limit.admitted + limit.refused),
    };
    vec![
        Line::from(vec![
            format!("{}, burst {}   ", limit.rate, limit.burst).bold(),
            format!("{:.0}/s admitted", rates.writes).green(),
            format!("   {:.0}/s refused (429)   ", rates.refused).yellow(),
            format!("{} and {} in all", limit.admitted, limit.refused).dim(),
        ]),
        Line::from(counted.dim()),
    ]
}

/// What was seen in the acts so far, the last act first.
fn outcomes<'a>(frame: &Frame<'a>, height: u16) -> Vec<Line<'a>> {
    let notes = frame.acts.iter().rev().flat_map(|act| &act.notes);
    let line = |note: &'a Note| {
        let mark = if note.good { note.mark().green() } else { note.mark().red() };
        Line::from(vec![mark, " ".into(), note.text.as_str().into()])
    };
    notes.map(line).take(height.into()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::demo::meter::Rates;
    use crate::cli::demo::stage::Act;
    use crate::cli::demo::traffic::Tally;
    use crate::cli::demo::watch::{Dns, Limit, Seen};

    /// Something that went well.
    pub(in crate::cli::demo) fn note(text: &str) -> Note {
        Note { good: true, text: text.into() }
    }

    /// A frame in the middle of the story.
    pub(in crate::cli::demo) fn frame<'a>(act: &'a Act, acts: &'a [Act]) -> Frame<'a> {
        let row = |name, saturation, in_flight, state, rate| Row {
            name,
            address: "10.88.0.11:8080".into(),
            saturation,
            in_flight,
            capacity: 48,
            state,
            rate,
        };
        let limit = Limit {
            rate: "10/s".into(),
            burst: 10,
            admitted: 240,
            refused: 130,
            leased: 3,
            redis_calls: 21,
            at: Instant::now(),
        };
        Frame {
            about: "on loopback",
            elapsed: Duration::from_secs(12),
            act,
            acts,
            rates: Rates {
                requests: 2_049.0,
                writes: 10.0,
                refused: 40.0,
                pods: BTreeMap::new(),
                p50: Some(Duration::from_micros(8_940)),
                p99: Some(Duration::from_micros(25_100)),
            },
            tally: Tally {
                reads: 24_000,
                failures: BTreeMap::from([("GET: 503".into(), 1)]),
                ..Tally::default()
            },
            rows: vec![
                row("orders-1", 0.14, 7, Some(State::Serving), 857.0),
                row("orders-2", 0.0, 0, None, 0.0),
                row("orders-3", 0.10, 5, Some(State::Leaving), 285.0),
            ],
            seen: Seen {
                endpoints: Vec::new(),
                dns: Some(Dns { state: "fresh".into(), expires: Some(Duration::from_millis(1_300)) }),
                limit: Some(limit),
                redis: Some(true),
            },
            fresh: act.title.is_empty(),
        }
    }

    fn drawn(width: u16, height: u16) -> String {
        let act = Act { title: "It returns", about: "orders-2 is back.", ..Act::default() };
        let acts = [Act { title: "Traffic begins", notes: vec![note("all went well")], ..Act::default() }];
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|to| render(to, &frame(&act, &acts))).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn an_ordinary_terminal_shows_it_all() {
        let screen = drawn(80, 24);
        for part in [
            "It returns",
            "orders-2 is back.",
            "2,049 requests/s",
            "1 failed",
            "p99 25.1 ms",
            "██░░",
            "14 %",
            "7/48",
            "takes requests",
            "not in DNS",
            "drains",
            "fresh, 1.3 s left",
            "10/s, burst 10",
            "40/s refused (429)",
            "3 tokens leased, 21 calls of Redis for 370",
            "✓ all went well",
        ] {
            assert!(screen.contains(part), "{part} is missing from\n{screen}");
        }
    }

    #[test]
    fn a_small_terminal_is_no_failure() {
        for (width, height) in [(1, 1), (20, 5), (200, 3)] {
            drawn(width, height);
        }
    }
}
