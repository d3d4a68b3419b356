//! That what is admitted is also what the limit allows, for many sidecars: the script and buckets on a clock of the
//! test's own, with answers that take no time.

use std::collections::BTreeSet;

use super::*;

const SECOND: u64 = 1000 * MS;

/// Sidecars that share a limit, and when each is to look at its bucket again.
struct Mesh {
    redis: Clocked,
    plan: Arc<Plan>,
    buckets: Vec<Bucket>,
    later: BTreeSet<(u64, usize)>,
}

impl Mesh {
    fn new(rate: &str, burst: u32, sidecars: usize) -> Self {
        let plan = plan_of(rate, burst, 0);
        let buckets = (0..sidecars).map(|_| bucket_of(&plan, "a")).collect();
        Self { redis: Clocked::start(), plan, buckets, later: BTreeSet::new() }
    }

    /// Asks Redis, as the refill task does.
    fn ask(&mut self, who: usize, now: u64) {
        let (plan, bucket) = (&self.plan, &self.buckets[who]);
        let want = bucket.want(plan, 0, now, plan.terms[0].tau / 50);
        let grants = self.redis.ask(DAY + now, plan, &who.to_string(), &[("a", want)], now);
        let grant = grants[0];
        let again = bucket.granted(plan, &grant, now);
        let dead = bucket.dies(&plan.terms[0], &grant, now);
        self.later.extend(again.into_iter().chain(dead).map(|at| (at, who)));
    }

    /// Looks again at the buckets for which it is time by `now`.
    fn look_again(&mut self, now: u64) {
        while let Some((at, who)) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            self.later.pop_first();
            let (bucket, terms) = (&self.buckets[who], &self.plan.terms[0]);
            if bucket.is_left(terms, at) || bucket.is_refused_until(at) && bucket.is_busy(terms, at) {
                self.ask(who, at);
            }
        }
    }

    /// Is a request admitted that comes to a sidecar at `now`?
    fn admits(&mut self, who: usize, now: u64) -> bool {
        self.look_again(now);
        if let Some((_, low)) = self.buckets[who].take(now, 1) {
            if low {
                self.ask(who, now);
            }
            return true;
        }
        self.buckets[who].missed(1);
        if self.buckets[who].refused_until(now, 1).is_some() {
            return false;
        }
        self.buckets[who].waits(1);
        self.ask(who, now);
        self.buckets[who].waits_no_more(1);
        self.buckets[who].take(now, 1).is_some()
    }

    /// What is admitted of twice the rate, as a part of the rate, in the last of so many seconds but the first.
    /// `to` says who a request comes to.
    fn utilisation(&mut self, seconds: u64, to: impl Fn(&mut fastrand::Rng, u64) -> usize) -> f64 {
        let mut random = fastrand::Rng::with_seed(7);
        let per_second = self.plan.terms[0].of.rate.per_second();
        let (mut now, mut admitted) = (SECOND as f64, 0_u32);
        while now < (1 + seconds) as f64 * SECOND as f64 {
            now -= (1.0 - random.f64()).ln() / (2.0 * per_second) * SECOND as f64;
            let who = to(&mut random, now as u64);
            let counts = now >= 2.0 * SECOND as f64;
            admitted += u32::from(self.admits(who, now as u64) && counts);
        }
        f64::from(admitted) / per_second / (seconds - 1) as f64
    }
}

#[test]
fn nearly_all_of_the_rate_is_used_by_many_however_unevenly() {
    for (rate, burst, sidecars) in
        [("1000/s", 100, 3), ("1000/s", 100, 20), ("1000/s", 200, 50), ("100/s", 40, 20)]
    {
        let seconds = if rate == "100/s" { 31 } else { 6 };
        let even =
            Mesh::new(rate, burst, sidecars).utilisation(seconds, |random, _| random.usize(..sidecars));
        assert!(even >= 0.99, "{rate}, {burst}, {sidecars}: {even}");
        let skewed = Mesh::new(rate, burst, sidecars)
            .utilisation(seconds, |random, _| if random.f64() < 0.9 { 0 } else { random.usize(1..sidecars) });
        assert!(skewed >= 0.99, "{rate}, {burst}, {sidecars}, skewed: {skewed}");
    }
    // Half of them have nothing, and every 20 ms another one begins to and one ends.
    let turns = Mesh::new("1000/s", 200, 50)
        .utilisation(6, |random, now| ((now * 50 / SECOND) as usize + random.usize(..25)) % 50);
    assert!(turns >= 0.99, "by turns: {turns}");
}
