//! What came of the requests: per row, and how exact the bench itself was.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::timer::Nanos;

/// Of one run.
#[derive(Default)]
pub(crate) struct Tally {
    rows: Vec<Counts>,
    /// For each request, in the order of their ids: whose it is, and how often it was acted on.
    asked: Vec<(usize, u32)>,
    /// The id of the first of them: ids are never given twice.
    first: u64,
    /// How much later than meant requests were sent.
    pub(crate) late: Vec<Nanos>,
    /// How much older than its behaviour allows a connection was when its upstream ended it.
    pub(crate) overdue: BTreeMap<String, Vec<Nanos>>,
    /// Lanes that are not done.
    pub(crate) open: usize,
}

#[derive(Default)]
struct Counts {
    name: String,
    trials: u64,
    answered: u64,
    reused: u64,
    twice: u64,
    /// By kind.
    failures: BTreeMap<String, u64>,
    /// How many lanes have had so many failures.
    lanes: BTreeMap<u32, u64>,
}

impl Tally {
    /// Begins anew.
    pub(crate) fn begin(&mut self, rows: impl Iterator<Item = String>) {
        let first = self.first + self.asked.len() as u64;
        let rows = rows.map(|name| Counts { name, ..Counts::default() }).collect();
        *self = Self { rows, first, ..Self::default() };
    }

    /// A request is about to be sent: its id.
    pub(crate) fn ask(&mut self, row: usize) -> u64 {
        self.asked.push((row, 0));
        self.first + self.asked.len() as u64 - 1
    }

    /// An upstream has read a request to its end, and acts on it.
    pub(crate) fn acted(&mut self, id: u64) {
        let Some(index) = id.checked_sub(self.first) else { return };
        let Some((row, times)) = self.asked.get_mut(index as usize) else { return };
        *times += 1;
        if *times == 2 {
            self.rows[*row].twice += 1;
        }
    }

    pub(crate) fn answered(&mut self, row: usize, reused: bool) {
        let row = &mut self.rows[row];
        row.trials += 1;
        row.answered += 1;
        row.reused += u64::from(reused);
    }

    pub(crate) fn failed(&mut self, row: usize, kind: String) {
        let row = &mut self.rows[row];
        row.trials += 1;
        *row.failures.entry(kind).or_default() += 1;
    }

    /// A lane is done.
    pub(crate) fn done(&mut self, row: usize, failures: u32) {
        *self.rows[row].lanes.entry(failures).or_default() += 1;
        self.open -= 1;
    }

    pub(crate) fn result(&mut self) -> Value {
        let rows: Map<_, _> = self.rows.iter().map(|row| (row.name.clone(), row.result())).collect();
        let overdue: Map<_, _> =
            self.overdue.iter_mut().map(|(name, times)| (name.clone(), quantiles(times))).collect();
        json!({ "rows": rows, "late_us": quantiles(&mut self.late), "overdue_us": overdue })
    }
}

impl Counts {
    fn result(&self) -> Value {
        let lanes: Map<_, _> =
            self.lanes.iter().map(|(failed, of)| (failed.to_string(), (*of).into())).collect();
        json!({
            "trials": self.trials, "answered": self.answered, "reused": self.reused, "twice": self.twice,
            "failures": self.failures, "lanes_by_failures": lanes,
        })
    }
}

/// In microseconds.
fn quantiles(times: &mut [Nanos]) -> Value {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    if times.is_empty() {
        return Value::Null;
    }
    json!({ "of": times.len(), "p50": at(0.5), "p99": at(0.99), "most": at(1.0) })
}
