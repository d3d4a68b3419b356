//! What every client does around its work: wait for its turn, count, and tell the result.

use std::io::{self, BufRead, Read, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::histogram::Histogram;

/// What went wrong, by kind.
#[derive(Default)]
pub(crate) struct Failures {
    /// Connections that could not be made.
    pub(crate) connect: u64,
    /// Connections that broke or ended while an answer was due.
    pub(crate) broken: u64,
    /// Answers that are none, or not of the expected length.
    pub(crate) malformed: u64,
    /// Answers that were not 2xx.
    pub(crate) status: u64,
    /// Answers that never came.
    pub(crate) unanswered: u64,
}

impl Failures {
    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.connect + self.broken + self.malformed + self.status + self.unanswered
    }
}

/// Says that everything is open, and waits for the word to go.
pub(crate) fn ready() -> io::Result<()> {
    println!("ready");
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new()).map(drop)
}

/// Tells the result, and returns when the other side has no more to read from the connections'
/// ends.
pub(crate) fn finished(result: Map<String, Value>) -> io::Result<()> {
    println!("{}", Value::Object(result));
    io::stdout().flush()?;
    io::stdin().lock().read_to_end(&mut Vec::new()).map(drop)
}

/// The fields that every result has.
pub(crate) fn result(count: u64, took: Duration, failures: &Failures) -> Map<String, Value> {
    let seconds = took.as_secs_f64();
    let mut result = Map::new();
    result.insert("requests".into(), count.into());
    result.insert("seconds".into(), seconds.into());
    result.insert("rps".into(), (count as f64 / seconds.max(1e-9)).into());
    result.insert("failures".into(), failures.total().into());
    result.insert(
        "failed".into(),
        json!({
            "connect": failures.connect, "broken": failures.broken, "malformed": failures.malformed,
            "status": failures.status, "unanswered": failures.unanswered,
        }),
    );
    result
}

/// Adds latencies to a result, in microseconds.
pub(crate) fn latencies(result: &mut Map<String, Value>, histogram: &Histogram) {
    let micros = |nanoseconds: u64| Value::from(nanoseconds as f64 / 1e3);
    for (name, share) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        result.insert(name.into(), micros(histogram.quantile(share)));
    }
    result.insert("max_us".into(), micros(histogram.max()));
}
