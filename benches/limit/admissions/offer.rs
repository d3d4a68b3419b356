//! Requests as they come: at random (Poisson), to sidecars that have their parts of them, whatever becomes of
//! those before.

use clap::ValueEnum;

use crate::SECOND;

/// Which sidecars get the requests.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// Each as many as another.
    Even,
    /// Each is on or off for half a second at a time, by chance, and gets twice its part while it is on.
    Bursty,
    /// The first gets nine tenths.
    Skewed,
}

/// For how long a bursty sidecar is on or off, in nanoseconds.
const SPELL: u64 = SECOND / 2;

/// One request.
pub(crate) struct Request {
    /// When it comes, in nanoseconds from the start.
    pub(crate) at: u64,
    pub(crate) sidecar: usize,
    pub(crate) key: u32,
}

/// The requests of one thread, in order and without end.
pub(crate) struct Offer {
    shape: Shape,
    /// Nanoseconds between two, on average.
    gap: f64,
    sidecars: usize,
    keys: usize,
    /// The same for all threads: of who is on.
    seed: u64,
    random: fastrand::Rng,
    at: f64,
}

impl Offer {
    /// So many requests a second, to so many sidecars, of so many keys. `thread` tells this one from others
    /// that have the same seed.
    pub(crate) fn new(shape: Shape, rate: f64, sidecars: usize, keys: usize, seed: u64, thread: u64) -> Self {
        // What comes to a sidecar that is off does not come.
        let rate = if shape == Shape::Bursty { 2.0 * rate } else { rate };
        let random = fastrand::Rng::with_seed(seed ^ (thread + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { shape, gap: SECOND as f64 / rate, sidecars, keys, seed, random, at: 0.0 }
    }

    fn sidecar(&mut self) -> usize {
        let others = self.sidecars - 1;
        match self.shape {
            Shape::Skewed if others == 0 || self.random.f64() < 0.9 => 0,
            Shape::Skewed => 1 + self.random.usize(..others),
            Shape::Even | Shape::Bursty => self.random.usize(..self.sidecars),
        }
    }

    /// Is a bursty sidecar on? Their spells begin at different times.
    fn is_on(&self, sidecar: usize, at: u64) -> bool {
        let spell = (at + SPELL * sidecar as u64 / self.sidecars as u64) / SPELL;
        fastrand::Rng::with_seed(self.seed.wrapping_add((sidecar as u64) << 32).wrapping_add(spell)).bool()
    }
}

impl Iterator for Offer {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        loop {
            self.at -= self.gap * (1.0 - self.random.f64()).ln();
            let (at, sidecar) = (self.at as u64, self.sidecar());
            if self.shape != Shape::Bursty || self.is_on(sidecar, at) {
                return Some(Request { at, sidecar, key: self.random.usize(..self.keys) as u32 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of each sidecar come within ten seconds of 10,000 a second.
    fn counts(shape: Shape) -> Vec<u64> {
        let mut counts = vec![0; 10];
        let offer = Offer::new(shape, 10_000.0, 10, 3, 7, 0);
        for request in offer.take_while(|request| request.at < 10 * SECOND) {
            counts[request.sidecar] += 1;
        }
        counts
    }

    #[test]
    fn every_shape_offers_what_it_says() {
        let even = counts(Shape::Even);
        assert!(even.iter().all(|count| (9_500..10_500).contains(count)), "{even:?}");
        let skewed = counts(Shape::Skewed);
        assert!((89_000..91_000).contains(&skewed[0]), "{skewed:?}");
        assert!(skewed[1..].iter().all(|count| (950..1_300).contains(count)), "{skewed:?}");
        let bursty = counts(Shape::Bursty);
        assert!((80_000..120_000).contains(&bursty.iter().sum::<u64>()), "{bursty:?}");
    }

    #[test]
    fn a_bursty_sidecar_has_nothing_for_half_a_second_and_twice_its_part_for_another() {
        let mut spells = vec![0_u64; 40];
        let offer = Offer::new(Shape::Bursty, 1_000.0, 1, 1, 3, 0);
        for request in offer.take_while(|request| request.at < 20 * SECOND) {
            spells[(request.at / SPELL) as usize] += 1;
        }
        assert!(spells.iter().all(|count| *count == 0 || *count > 850), "{spells:?}");
        assert!(spells.contains(&0) && spells.iter().any(|count| *count > 0), "{spells:?}");
    }
}
