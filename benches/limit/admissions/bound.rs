//! A log held against the bound: in any window T, at most R·T + B.
//!
//! A request was admitted somewhere between two readings of the clock. It counts for a window that both lie in,
//! so that nothing is allowed on top: what lies wholly in a window was admitted in it.

/// R, in requests a nanosecond, and B.
#[derive(Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) rate: f64,
    pub(crate) burst: f64,
}

/// The window that holds most of what it may.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Worst {
    /// What was admitted in it, of R·T + B.
    pub(crate) ratio: f64,
    /// T, in nanoseconds.
    pub(crate) window: u64,
    pub(crate) admitted: u64,
}

impl Bound {
    /// What a window of that length may hold.
    fn most(&self, window: u64) -> f64 {
        self.rate * window as f64 + self.burst
    }

    /// The most that a window of that length holds of these, of R·T + B.
    pub(crate) fn within(&self, spans: &[(u64, u64)], window: u64) -> f64 {
        // What takes longer lies in none.
        let short = spans.iter().filter(|(from, to)| to - from <= window);
        let (mut from, mut to): (Vec<u64>, Vec<u64>) = short.copied().unzip();
        from.sort_unstable();
        to.sort_unstable();
        // Of those that ended by the window's end, all but those that began before its beginning lie in it:
        // none is so long that it both began before and ends after.
        let (mut ended, mut most) = (0, 0);
        for (before, begin) in from.iter().enumerate() {
            while ended < to.len() && to[ended] <= begin + window {
                ended += 1;
            }
            // Windows that begin at the same time are counted from the first of them.
            if before == 0 || from[before - 1] < *begin {
                most = most.max(ended - before);
            }
        }
        most as f64 / self.most(window)
    }

    /// Of all windows, the one that holds most of what it may. A worst window begins where something begins,
    /// and ends where something ends.
    ///
    /// A window has more than the share s of what it may if its admissions less s·(R·T + B) are more than
    /// nothing. The window in which that is most has a share above s, unless s is the highest there is: so s
    /// is raised to it until it stays.
    pub(crate) fn worst(&self, spans: &[(u64, u64)]) -> Worst {
        let mut by_end = spans.to_vec();
        by_end.sort_unstable_by_key(|(_, to)| *to);
        let mut begins: Vec<u64> = spans.iter().map(|(from, _)| *from).collect();
        begins.sort_unstable();
        begins.dedup();
        let mut worst = Worst { ratio: 0.0, window: 0, admitted: 0 };
        loop {
            let found = self.beyond(&begins, &by_end, worst.ratio);
            match found.filter(|found| found.ratio > worst.ratio) {
                Some(found) => worst = found,
                None => return worst,
            }
        }
    }

    /// The window whose admissions are most above that share of what it may hold.
    fn beyond(&self, begins: &[u64], by_end: &[(u64, u64)], share: f64) -> Option<Worst> {
        let origin = *begins.first()?;
        let slope = share * self.rate;
        let mut tree = Tree::new(begins.iter().map(|begin| slope * (begin - origin) as f64));
        let (mut most, mut found) = (f64::NEG_INFINITY, None);
        for (from, to) in by_end {
            let place = begins.partition_point(|begin| begin <= from) - 1;
            // One more in every window that began by then.
            tree.add_up_to(place);
            // Of windows that end here, those that begin before.
            let last = begins.partition_point(|begin| begin <= to) - 1;
            let (value, begin) = tree.most_up_to(last);
            if value - slope * (to - origin) as f64 > most {
                most = value - slope * (to - origin) as f64;
                let window = to - begins[begin];
                let admitted = (value - slope * (begins[begin] - origin) as f64).round();
                found =
                    Some(Worst { ratio: admitted / self.most(window), window, admitted: admitted as u64 });
            }
        }
        found
    }

    /// How many requests that came at a time which `counts` one bucket of R and B, for each key, admits.
    pub(crate) fn one_bucket(
        &self,
        keys: usize,
        offered: &mut [(u64, u32)],
        counts: impl Fn(u64) -> bool,
    ) -> u64 {
        offered.sort_unstable();
        let mut full_at = vec![0.0; keys];
        let mut admitted = 0;
        for (at, key) in offered {
            let (now, full_at) = (*at as f64, &mut full_at[*key as usize]);
            let next = f64::max(*full_at, now) + 1.0 / self.rate;
            if next - now <= self.burst / self.rate {
                *full_at = next;
                admitted += u64::from(counts(*at));
            }
        }
        admitted
    }
}

/// Values in a row, of which the first so many are raised by one, or asked for their maximum.
struct Tree {
    /// A complete binary tree, its root at 1: the most below each place, with what was added to all of it.
    most: Vec<f64>,
    /// Added to all below, and not yet to them.
    added: Vec<f64>,
    leaves: usize,
}

impl Tree {
    fn new(values: impl ExactSizeIterator<Item = f64>) -> Self {
        let leaves = values.len().next_power_of_two();
        let mut most = vec![f64::NEG_INFINITY; 2 * leaves];
        for (place, value) in values.enumerate() {
            most[leaves + place] = value;
        }
        for node in (1..leaves).rev() {
            most[node] = most[2 * node].max(most[2 * node + 1]);
        }
        Self { most, added: vec![0.0; 2 * leaves], leaves }
    }

    /// Raises the first ones, up to that one, by 1.
    fn add_up_to(&mut self, last: usize) {
        let mut node = self.leaves + last;
        self.raise(node);
        while node > 1 {
            // What is left of a place that was reached from the right is all among the first.
            if node % 2 == 1 {
                self.raise(node - 1);
            }
            node /= 2;
            self.most[node] = self.most[2 * node].max(self.most[2 * node + 1]) + self.added[node];
        }
    }

    fn raise(&mut self, node: usize) {
        self.most[node] += 1.0;
        self.added[node] += 1.0;
    }

    /// The most of the first ones, up to that one, and where it is.
    fn most_up_to(&self, last: usize) -> (f64, usize) {
        let mut node = self.leaves + last;
        let (mut value, mut place) = (self.most[node], node);
        while node > 1 {
            if node % 2 == 1 && self.most[node - 1] > value {
                (value, place) = (self.most[node - 1], node - 1);
            }
            node /= 2;
            value += self.added[node];
        }
        // From where the most was found down to its leaf.
        while place < self.leaves {
            place = 2 * place + usize::from(self.most[2 * place] < self.most[2 * place + 1]);
        }
        (value, place - self.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Bound = Bound { rate: 0.01, burst: 5.0 };

    /// Some requests by chance, some of which took long.
    fn some(seed: u64, count: usize) -> Vec<(u64, u64)> {
        let mut random = fastrand::Rng::with_seed(seed);
        let one = |_| {
            let from = random.u64(..2_000);
            (from, from + if random.bool() { random.u64(..3) } else { random.u64(..300) })
        };
        (0..count).map(one).collect()
    }

    /// The same, window by window.
    fn held(spans: &[(u64, u64)], begin: u64, end: u64) -> usize {
        spans.iter().filter(|(from, to)| *from >= begin && *to <= end).count()
    }

    #[test]
    fn the_worst_of_all_windows_is_found() {
        for seed in 0..200 {
            let spans = some(seed, 1 + seed as usize / 2);
            let all = spans.iter().flat_map(|(begin, _)| spans.iter().map(|(_, end)| (*begin, *end)));
            let ratio = |(begin, end): (u64, u64)| held(&spans, begin, end) as f64 / BOUND.most(end - begin);
            let naive = all.filter(|(begin, end)| begin <= end).map(ratio).fold(0.0, f64::max);
            let worst = BOUND.worst(&spans);
            assert!((worst.ratio - naive).abs() < 1e-9, "{seed}: {worst:?}, and not {naive}");
            assert!((worst.admitted as f64 / BOUND.most(worst.window) - worst.ratio).abs() < 1e-9);
        }
    }

    #[test]
    fn windows_of_one_length_hold_what_lies_in_them() {
        for seed in 0..200 {
            let spans = some(seed, 1 + seed as usize / 2);
            for window in [1, 100, 1_000, 5_000] {
                let naive = spans.iter().map(|(begin, _)| held(&spans, *begin, begin + window)).max();
                let naive = naive.unwrap_or(0) as f64 / BOUND.most(window);
                assert!((BOUND.within(&spans, window) - naive).abs() < 1e-9, "{seed}: {window}");
            }
        }
    }

    #[test]
    fn a_bucket_keeps_the_bound_to_the_last_request_and_one_more_breaks_it() {
        let mut spans = vec![(0, 0); 5];
        spans.extend((1..=50).map(|n| (100 * n, 100 * n)));
        assert!((BOUND.worst(&spans).ratio - 1.0).abs() < 1e-9);
        spans.push((100, 100));
        assert!(BOUND.worst(&spans).ratio > 1.0);
        assert_eq!(BOUND.worst(&[]), Worst { ratio: 0.0, window: 0, admitted: 0 });
    }

    #[test]
    fn one_bucket_admits_its_burst_and_then_its_rate() {
        let mut offered: Vec<(u64, u32)> = (0..10_000).map(|n| (n, 0)).collect();
        assert_eq!(BOUND.one_bucket(1, &mut offered, |_| true), 5 + 99);
        assert_eq!(BOUND.one_bucket(1, &mut offered, |at| at >= 5_000), 50);
        let mut two: Vec<(u64, u32)> = (0..20_000).map(|n| (n / 2, n as u32 % 2)).collect();
        assert_eq!(BOUND.one_bucket(2, &mut two, |_| true), 2 * (5 + 99));
    }
}
