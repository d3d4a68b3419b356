//! What came of it all, as text.

use std::fmt::Write;
use std::time::Duration;

use super::stage::Act;
use super::traffic::Tally;
use crate::telemetry::Latency;

/// All that is told at the end.
pub(super) struct Summary<'a> {
    pub(super) acts: &'a [Act],
    pub(super) took: Duration,
    pub(super) tally: &'a Tally,
    /// Of reads.
    pub(super) latency: &'a Latency,
    /// What the tightened limit has let through, and whether it kept its promise.
    pub(super) bound: Option<(String, bool)>,
}

impl Summary<'_> {
    /// Whether everything was as promised.
    pub(super) fn is_good(&self) -> bool {
        self.tally.failed() == 0
            && self.tally.reads > 0
            && self.acts.iter().all(Act::is_good)
            && self.bound.as_ref().is_none_or(|(_, held)| *held)
    }

    /// The text.
    pub(super) fn text(&self) -> String {
        let Self { acts, took, tally, latency, bound } = self;
        let mut text = String::new();
        for act in *acts {
            let _ = writeln!(text, "{}", act.title);
            for note in &act.notes {
                let _ = writeln!(text, "  {} {}", note.mark(), note.text);
            }
        }
        let _ = writeln!(text, "\nIn {}:", seconds(*took));
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<12}{value}");
        };
        line("requests", grouped(tally.sent()));
        line("failures", grouped(tally.failed()));
        for (why, count) in &tally.failures {
            line("", format!("{count} × {why}"));
        }
        let quantile = |q| latency.quantile(q).map_or("none".into(), millis);
        line("latency", format!("p50 {}, p99 {}", quantile(0.5), quantile(0.99)));
        for (pod, count) in &tally.pods {
            line(pod, format!("{} answers", grouped(*count)));
        }
        let (writes, refused) = (grouped(tally.writes), grouped(tally.refused));
        line("writes", format!("{writes} admitted, {refused} refused by the limit"));
        if let Some((admitted, held)) = bound {
            let verdict = if *held { "held" } else { "NOT held" };
            line("its bound", format!("{verdict}: {admitted}"));
        }
        text.push_str(if self.is_good() {
            "\nNo request failed.\n"
        } else {
            "\nNot everything was as it should be.\n"
        });
        text
    }
}

/// `1.8 s`.
pub(super) fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 0.1 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

/// `8.9 ms`.
pub(super) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// `24,103`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::stage::Note;
    use super::*;

    fn note(good: bool, text: &str) -> Note {
        Note { good, text: text.into() }
    }

    fn tally() -> Tally {
        Tally { reads: 24_103, writes: 200, refused: 90, ..Tally::default() }
    }

    fn summary<'a>(acts: &'a [Act], tally: &'a Tally, latency: &'a Latency, held: bool) -> Summary<'a> {
        let bound = Some(("20 writes".into(), held));
        Summary { acts, took: Duration::from_secs(36), tally, latency, bound }
    }

    #[test]
    fn a_good_run_says_so() {
        let acts =
            [Act { title: "Traffic begins", notes: vec![note(true, "no request failed")], ..Act::default() }];
        let (tally, latency) = (tally(), Latency::default());
        let summary = summary(&acts, &tally, &latency, true);
        assert!(summary.is_good());
        let text = summary.text();
        for part in [
            "Traffic begins\n  ✓ no request failed\n",
            "requests    24,393",
            "failures    0",
            "200 admitted, 90 refused",
            "held: 20 writes",
            "No request failed.",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
    }

    #[test]
    fn one_failure_a_broken_act_or_a_broken_bound_is_not_good() {
        let (good, latency) = (tally(), Latency::default());
        let mut failed = tally();
        failed.failures.insert("GET: 503".into(), 1);
        let broken = [Act { title: "It returns", notes: vec![note(false, "it did not")], ..Act::default() }];
        assert!(!summary(&[], &failed, &latency, true).is_good());
        assert!(summary(&[], &failed, &latency, true).text().contains("1 × GET: 503"));
        assert!(!summary(&broken, &good, &latency, true).is_good());
        assert!(summary(&broken, &good, &latency, true).text().contains("It returns\n  ✗ it did not"));
        assert!(!summary(&[], &good, &latency, false).is_good());
        assert!(!summary(&[], &Tally::default(), &latency, true).is_good(), "nothing was sent");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(seconds(Duration::from_millis(42)), "42 ms");
        assert_eq!(seconds(Duration::from_millis(1_840)), "1.8 s");
        assert_eq!(millis(Duration::from_micros(8_940)), "8.9 ms");
    }
}
