//! The file of results: a line of JSON for each case, added when the case is done, so that a run can be ended
//! and gone on with.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::measure::Measured;
use crate::plan::Case;
use crate::scenario::Work;

/// What a line begins with: it names the case.
pub(crate) fn key(case: &Case, policy: &str) -> String {
    let work = Work::ALL.iter().find(|work| work.1 == case.work).map_or("", |work| work.0);
    format!(
        r#"{{"scenario":"{}","clients":{},"servers":{},"load":{},"work":"{work}","policy":"{policy}","seed":{}"#,
        case.scenario.name, case.clients, case.servers, case.load, case.seed
    )
}

/// The first field behind the key.
const BEHIND: &str = r#","requests""#;

pub(crate) struct Results {
    file: File,
    known: HashSet<String>,
}

impl Results {
    /// Those of the file, without what policies have that are simulated again.
    pub(crate) fn open(path: &Path, again: &[&str]) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let written = fs::read_to_string(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(error),
        })?;
        // A line that was cut off is no result.
        let whole = written.lines().filter(|line| line.ends_with('}'));
        let is_kept = |line: &&str| !again.iter().any(|name| line.contains(&format!(r#""policy":"{name}""#)));
        let kept: Vec<_> = whole.filter(is_kept).collect();
        let known = kept.iter().filter_map(|line| Some(line.split_once(BEHIND)?.0.to_owned())).collect();
        let mut text = kept.join("\n");
        text += if kept.is_empty() { "" } else { "\n" };
        if text != written {
            // All or nothing: hours are in it.
            let aside = path.with_extension("new");
            fs::write(&aside, text)?;
            fs::rename(&aside, path)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, known })
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.known.contains(key)
    }

    pub(crate) fn add(&mut self, key: &str, measured: &mut Measured, took: Duration) -> io::Result<()> {
        writeln!(self.file, "{}", line(key, measured, took))
    }
}

fn line(key: &str, measured: &mut Measured, took: Duration) -> String {
    let requests = measured.requests;
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|share| measured.percentile(share));
    let mut line = format!(
        r#"{key}{BEHIND}:{requests},"rate":{:.1},"mean_us":{:.1},"p50_us":{p50},"p90_us":{p90},"p99_us":{p99},"p999_us":{p999},"errors":{:.6},"goodput":{:.5},"sends":{:.4},"probes":{:.4}"#,
        measured.rate,
        measured.mean(),
        measured.errors as f64 / requests as f64,
        measured.goodput,
        measured.sends as f64 / measured.came as f64,
        measured.probes as f64 / measured.came as f64,
    );
    if let Some(victim) = &measured.victim {
        let ((mean, most), (within, later)) = (victim.again(), victim.shares());
        line += &format!(
            r#","again_mean":{mean:.2},"again_most":{most},"share_within":{within:.5},"share_later":{later:.5}"#
        );
    }
    line + &format!(r#","took_ms":{}}}"#, took.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::policy::POLICIES;
    use crate::scenario::Scenario;

    #[test]
    fn what_was_written_whole_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results/balance.jsonl");
        let scenario = Scenario::named("dead").unwrap();
        let case = Case { scenario, clients: 2, servers: 2, load: 50, work: Work::Bimodal, seed: 3 };
        let mut measured = POLICIES[0].1(&Plan::new(&case));
        let [first, second] = ["random", "oracle"].map(|policy| key(&case, policy));
        Results::open(&path, &[]).unwrap().add(&first, &mut measured, Duration::ZERO).unwrap();
        let line = fs::read_to_string(&path).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&parsed["policy"], &parsed["seed"]), (&"random".into(), &3.into()));
        assert!(parsed["share_later"].as_f64().unwrap() > 0.4, "{line}");
        fs::write(&path, format!("{line}{}", &line.replace("random", "oracle")[..150])).unwrap();
        let mut results = Results::open(&path, &[]).unwrap();
        assert!(results.has(&first) && !results.has(&second));
        results.add(&second, &mut measured, Duration::ZERO).unwrap();
        assert!(Results::open(&path, &[]).unwrap().has(&second));
        let anew = Results::open(&path, &["random"]).unwrap();
        assert!(anew.has(&second) && !anew.has(&first));
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}
