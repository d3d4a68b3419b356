//! The story: what happens to the mesh while traffic runs, act by act, and what is to be seen.

use std::time::{Duration, Instant};

use super::config::TIGHT;
use super::ended::Result;
use super::stage::Stage;
use super::summary::{grouped, seconds};
use super::traffic::WRITES;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// How long the tightened limit was in force, and what it let through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tightened {
    /// Since when.
    since: Instant,
    /// Writes that had been answered then.
    writes: u64,
}

/// Plays it all.
pub(super) fn tell(stage: &mut Stage<'_>) -> Result<Tightened> {
    traffic_begins(stage)?;
    an_endpoint_leaves(stage)?;
    it_returns(stage)?;
    let tightened = the_limit_tightens(stage)?;
    a_pod_is_killed(stage)?;
    Ok(tightened)
}

fn traffic_begins(stage: &mut Stage<'_>) -> Result<()> {
    stage.act(
        "Traffic begins",
        "The application sends plain HTTP to a name. Its sidecar sends each request over mTLS to the \
         pod that is least full: orders-3 is slow, and gets fewer.",
    );
    stage.play(secs(7))?;
    let tally = stage.traffic.tally();
    let most = tally.pods.values().max().copied().unwrap_or(0);
    let slow = tally.pods.get("orders-3").copied().unwrap_or(0);
    stage.saw(format!("the fastest pod answered {} requests, the slow one {}", grouped(most), grouped(slow)));
    Ok(())
}

fn an_endpoint_leaves(stage: &mut Stage<'_>) -> Result<()> {
    stage.act(
        "An endpoint leaves DNS",
        "The address of orders-2 is taken out of the answers, which are valid for 2 s. It drains: what \
         it has is finished, what is new goes elsewhere.",
    );
    stage.mesh.publish(&["orders-1", "orders-3"])?;
    let changed = Instant::now();
    stage.play(secs(6))?;
    let last = last_request(stage, "orders-2");
    let quiet = last.map_or(secs(6), |last| last.elapsed());
    if quiet < secs(1) {
        stage.broke("orders-2 still takes requests, 6 s after the change".into());
    } else {
        let took = last.map_or(Duration::ZERO, |last| last.saturating_duration_since(changed));
        stage.saw(format!("the last request came to orders-2 {} after the change", seconds(took)));
    }
    Ok(())
}

fn it_returns(stage: &mut Stage<'_>) -> Result<()> {
    stage.act("It returns", "orders-2 is in the answers again, and gets its share.");
    stage.mesh.publish(&["orders-1", "orders-2", "orders-3"])?;
    let changed = Instant::now();
    let came = |stage: &mut Stage<'_>| last_request(stage, "orders-2").filter(|last| *last > changed);
    match stage.until(secs(6), came)? {
        Some(_) => {
            let took = changed.elapsed();
            stage.saw(format!("a request came to orders-2 {} after the change", seconds(took)));
            stage.play(secs(3))
        }
        None => {
            stage.broke("no request came to orders-2 for 6 s".into());
            Ok(())
        }
    }
}

fn the_limit_tightens(stage: &mut Stage<'_>) -> Result<Tightened> {
    stage.act(
        "The limit on writes tightens",
        "The caller sends 50 writes a second, and 100 are allowed. A new configuration file allows 10. \
         The sidecar takes it over as it runs; refusals with 429 are what is wanted.",
    );
    let refused = stage.traffic.tally().refused;
    let changed = Instant::now();
    stage.mesh.limit(TIGHT)?;
    let rate = format!("{}/s", TIGHT.0);
    let in_force = |stage: &mut Stage<'_>| stage.seen().limit.filter(|limit| limit.rate == rate);
    let Some(limit) = stage.until(secs(5), in_force)? else {
        stage.broke("the new limit is not in force after 5 s".into());
        return Ok(Tightened { since: Instant::now(), writes: stage.traffic.tally().writes });
    };
    let tightened = Tightened { since: limit.at, writes: stage.traffic.tally().writes };
    stage.saw(format!("the new limit was in force {} after the change", seconds(limit.at - changed)));
    let refuses = |stage: &mut Stage<'_>| (stage.traffic.tally().refused > refused).then(Instant::now);
    match stage.until(secs(4), refuses)? {
        Some(at) => stage.saw(format!("it refused a write {} after the change", seconds(at - changed))),
        // Whether the limit holds is counted at the end.
        None => stage.saw("so few writes were sent that none was refused: this machine is busy".into()),
    }
    stage.play(secs(5))?;
    Ok(tightened)
}

fn a_pod_is_killed(stage: &mut Stage<'_>) -> Result<()> {
    stage.act(
        "A pod is killed",
        "The sidecar and the application of orders-1 die at once, and DNS still names them. What they \
         had is sent to another pod, what is new passes them over.",
    );
    let address = stage.mesh.pod("orders-1").map(|pod| pod.address);
    let seen = stage.seen();
    let in_flight = seen.endpoints.iter().find(|e| Some(e.address) == address).map_or(0, |e| e.in_flight);
    if let Some(pod) = stage.mesh.pod("orders-1") {
        pod.kill();
    }
    stage.play(secs(5))?;
    stage.saw(format!("it had about {in_flight} requests in flight"));
    stage.mesh.publish(&["orders-2", "orders-3"])?;
    stage.play(secs(4))
}

fn last_request(stage: &mut Stage<'_>, pod: &str) -> Option<Instant> {
    stage.mesh.pod(pod)?.app.as_ref()?.last_request()
}

impl Tightened {
    /// What the limit has let through since, and whether that is within its promise, R·T + B. Writes
    /// that were under way when it came into force belong to the old one.
    pub(super) fn report(self, writes: u64) -> (String, bool) {
        let time = self.since.elapsed().as_secs_f64();
        let (admitted, rate) = (writes - self.writes, f64::from(TIGHT.0));
        let bound = rate * time + rate;
        let held = admitted as f64 <= bound + WRITES.connections as f64;
        let text = format!("{admitted} writes in {time:.1} s, of R·T + B = {bound:.0} at most");
        (text, held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_rate_times_time_and_burst() {
        let since = Instant::now().checked_sub(secs(10)).expect("a machine that runs for 10 s");
        let tightened = Tightened { since, writes: 1_000 };
        let (text, held) = tightened.report(1_100);
        assert!(held && text.starts_with("100 writes in 10.0 s, of R·T + B = 110"), "{text}");
        assert!(!tightened.report(1_300).1);
    }
}
