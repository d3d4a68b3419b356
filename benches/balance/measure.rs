//! What a run has shown.

use crate::events::{MICROSECOND, Nanos, SECOND};

#[derive(Default)]
pub(crate) struct Measured {
    /// From when a client had a request until it had the answer, in microseconds.
    latencies: Vec<u32>,
    /// Requests that count and had no answer, or one that says that the server failed.
    pub(crate) errors: u64,
    /// All requests, those included that do not count.
    pub(crate) came: u64,
    /// Attempts, and questions about load, of all requests.
    pub(crate) sends: u64,
    pub(crate) probes: u64,
    pub(crate) requests: u64,
    /// What the server had that failed.
    pub(crate) victim: Option<Victim>,
    /// Requests a second that came, of all clients.
    pub(crate) rate: f64,
    /// Answers as a share of what the servers could have done.
    pub(crate) goodput: f64,
}

impl Measured {
    pub(crate) fn new(victim: Option<Victim>) -> Self {
        Self { victim, ..Self::default() }
    }

    pub(crate) fn answered(&mut self, latency: Nanos) {
        self.latencies.push((latency / MICROSECOND).min(u64::from(u32::MAX)) as u32);
    }

    pub(crate) fn answers(&self) -> usize {
        self.latencies.len()
    }

    /// In microseconds.
    pub(crate) fn mean(&self) -> f64 {
        let sum: u64 = self.latencies.iter().map(|latency| u64::from(*latency)).sum();
        sum as f64 / self.latencies.len().max(1) as f64
    }

    /// The latency that this share of answers do not exceed, in microseconds.
    pub(crate) fn percentile(&mut self, share: f64) -> u32 {
        let rank = (share * self.latencies.len() as f64).ceil() as usize;
        match rank.clamp(1, self.latencies.len().max(1)) - 1 {
            _ if self.latencies.is_empty() => 0,
            place => *self.latencies.select_nth_unstable(place).1,
        }
    }
}

/// What a server gets that has failed, from the first failure on that a client has seen.
pub(crate) struct Victim {
    pub(crate) server: u16,
    first: Option<Nanos>,
    /// Attempts of all at it and at any, within the first second and later.
    within: (u64, u64),
    later: (u64, u64),
    /// Of each client, those at it after the client has seen a failure of its own.
    again: Vec<Option<u32>>,
}

impl Victim {
    pub(crate) fn new(server: u16, clients: usize) -> Self {
        Self { server, first: None, within: (0, 0), later: (0, 0), again: vec![None; clients] }
    }

    pub(crate) fn failed(&mut self, now: Nanos, client: u16) {
        self.first.get_or_insert(now);
        self.again[usize::from(client)].get_or_insert(0);
    }

    pub(crate) fn sent(&mut self, now: Nanos, client: u16, server: u16) {
        let Some(first) = self.first else { return };
        let (at_it, all) = if now < first + SECOND { &mut self.within } else { &mut self.later };
        *all += 1;
        if server == self.server {
            *at_it += 1;
            if let Some(again) = &mut self.again[usize::from(client)] {
                *again += 1;
            }
        }
    }

    /// Its share of all attempts within a second of the first failure, and after that.
    pub(crate) fn shares(&self) -> (f64, f64) {
        let share = |(at_it, all): (u64, u64)| at_it as f64 / all.max(1) as f64;
        (share(self.within), share(self.later))
    }

    /// Attempts of a client at it after the first failure that it has seen: of the average client, and
    /// the most.
    pub(crate) fn again(&self) -> (f64, u32) {
        let (mut clients, mut sum, mut most) = (0, 0, 0);
        for again in self.again.iter().flatten() {
            clients += 1;
            sum += u64::from(*again);
            most = most.max(*again);
        }
        (sum as f64 / f64::from(clients.max(1)), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_least_that_so_many_do_not_exceed() {
        let mut measured = Measured::default();
        assert_eq!(measured.percentile(0.5), 0);
        let mut latencies: Vec<_> = (1..=1000).collect();
        fastrand::Rng::with_seed(1).shuffle(&mut latencies);
        latencies.into_iter().for_each(|latency| measured.answered(latency * MICROSECOND));
        assert_eq!([0.5, 0.99, 0.999, 1.0].map(|share| measured.percentile(share)), [500, 990, 999, 1000]);
        assert_eq!(measured.percentile(0.9991), 1000);
        assert_eq!(measured.mean(), 500.5);
    }
}
