//! Servers that answer with another part of a set each time, as some balance load: what they gave
//! lately is the set. Taken at their word, they would have endpoints leave and come back with every
//! TTL, and connections with them.
//!
//! A change that stays is followed at once, and so is one that is taken back after a while. A server
//! is taken to rotate once several answers in a row each differed from the one before and brought
//! back what had been gone: three that give and take, or six that only come and go, as a pod does
//! whose readiness flaps. From then on a record stays for [`ANSWERS`] answers without it, for
//! [`LONGEST`] at most; once [`QUIET`] answers are the same, they are taken at their word again.

use std::time::Duration;

use tokio::time::Instant;

/// What answers in a row, each unlike the one before, have to come to: one that gives and takes counts as
/// much as two that only do one of both.
const TURNS: u32 = 6;
/// So many of them have to bring back something.
const RETURNS: u32 = 2;

/// How many answers without it a record of a rotating server outlasts, and how long.
const ANSWERS: u64 = 64;
const LONGEST: Duration = Duration::from_secs(600);

/// So many equal answers end it.
const QUIET: u32 = 4;

/// Records that are remembered of one set.
const MOST: usize = 1024;

#[derive(Debug)]
pub(super) struct Rotation<T> {
    last: Vec<T>,
    /// Everything given lately.
    seen: Vec<Seen<T>>,
    /// Answers taken.
    answers: u64,
    turns: u32,
    returns: u32,
    quiet: u32,
    rotates: bool,
}

#[derive(Debug)]
struct Seen<T> {
    record: T,
    /// The answer that had it last, and when.
    answer: u64,
    at: Instant,
}

impl<T: Ord + Clone> Rotation<T> {
    /// Begins with a first answer, ascending and without duplicates as all are.
    pub(super) fn new(now: Instant, first: Vec<T>) -> Self {
        let seen = first.iter().map(|record| Seen { record: record.clone(), answer: 0, at: now }).collect();
        Self { last: first, seen, answers: 0, turns: 0, returns: 0, quiet: 0, rotates: false }
    }

    /// Takes an answer, and says what the set is.
    pub(super) fn take(&mut self, now: Instant, answer: Vec<T>) -> Vec<T> {
        self.answers += 1;
        if answer == self.last {
            (self.turns, self.returns) = (0, 0);
            self.quiet += 1;
            self.rotates &= self.quiet < QUIET;
        } else {
            let returned = answer.iter().any(|record| {
                self.last.binary_search(record).is_err()
                    && self.seen.iter().any(|seen| seen.record == *record)
            });
            let within =
                |some: &[T], other: &[T]| some.iter().all(|record| other.binary_search(record).is_ok());
            let one_sided = within(&answer, &self.last) || within(&self.last, &answer);
            self.turns += if one_sided { 1 } else { 2 };
            self.returns += u32::from(returned);
            self.quiet = 0;
            self.rotates |= self.turns >= TURNS && self.returns >= RETURNS;
        }
        for record in &answer {
            match self.seen.iter_mut().find(|seen| seen.record == *record) {
                Some(seen) => (seen.answer, seen.at) = (self.answers, now),
                None => self.seen.push(Seen { record: record.clone(), answer: self.answers, at: now }),
            }
        }
        let (answers, rotates) = (self.answers, self.rotates);
        self.seen.retain(|seen| answers - seen.answer <= ANSWERS && seen.at + LONGEST > now);
        if self.seen.len() > MOST {
            // Those of the last answer stay, however many they are.
            self.seen.retain(|seen| seen.answer == answers);
        }
        self.last.clone_from(&answer);
        if !rotates {
            return answer;
        }
        let mut whole: Vec<T> = self.seen.iter().map(|seen| seen.record.clone()).collect();
        whole.sort_unstable();
        whole
    }

    /// Whether there is nothing to remember: the last answers were all the same.
    pub(super) fn is_over(&self) -> bool {
        self.quiet >= QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Gives answers one after another, a second apart, and collects the sets.
    fn sets(answers: &[&[u8]]) -> Vec<Vec<u8>> {
        let start = Instant::now();
        let mut rotation = Rotation::new(start, answers[0].to_vec());
        let take = |(at, answer): (usize, &&[u8])| rotation.take(start + SECOND * at as u32, answer.to_vec());
        answers.iter().enumerate().skip(1).map(take).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_stays_is_followed_at_once() {
        let given: &[&[u8]] = &[&[1, 2], &[1, 3], &[1, 3], &[4], &[4], &[4, 5], &[5], &[6], &[7]];
        let expected: Vec<Vec<u8>> = given[1..].iter().map(|set| set.to_vec()).collect();
        assert_eq!(sets(given), expected, "even one after another, as long as nothing comes back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_is_taken_back_later_is_followed_too() {
        let mut given: Vec<&[u8]> = Vec::new();
        for _ in 0..6 {
            given.extend([&[1][..], &[1], &[2], &[2]]);
        }
        let expected: Vec<Vec<u8>> = given[1..].iter().map(|set| set.to_vec()).collect();
        assert_eq!(sets(&given), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_rotates_is_seen_through_after_a_few_answers() {
        let given: Vec<&[u8]> = [&[1, 2][..], &[2, 3], &[1, 3]].into_iter().cycle().take(30).collect();
        let sets = sets(&given);
        let first = sets.iter().position(|set| *set == [1, 2, 3]).expect("the whole set");
        assert!(first <= 4, "after {first} answers");
        assert!(sets[first..].iter().all(|set| *set == [1, 2, 3]), "{sets:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_and_goes_is_a_rotation_too() {
        let given: Vec<&[u8]> = [&[1, 2][..], &[1]].into_iter().cycle().take(20).collect();
        let sets = sets(&given);
        assert!(sets[6..].iter().all(|set| *set == [1, 2]), "{sets:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_flaps_twice_and_goes_is_gone() {
        let given: &[&[u8]] = &[&[1, 2], &[1], &[1, 2], &[1], &[1, 2], &[1], &[1]];
        let expected: Vec<Vec<u8>> = given[1..].iter().map(|set| set.to_vec()).collect();
        assert_eq!(sets(given), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_more_given_leaves_and_quiet_ends_it() {
        let start = Instant::now();
        let mut rotation = Rotation::new(start, vec![1, 2]);
        let mut now = start;
        let mut take = |rotation: &mut Rotation<u8>, answer: &[u8]| {
            now += SECOND;
            rotation.take(now, answer.to_vec())
        };
        for turn in 0..10 {
            take(&mut rotation, if turn % 2 == 0 { &[2, 3] } else { &[1, 2] });
        }
        // 1 is gone for good, while 2 and 3 still rotate.
        let mut last = Vec::new();
        for turn in 0..=ANSWERS {
            last = take(&mut rotation, if turn % 2 == 0 { &[3] } else { &[2] });
        }
        assert_eq!(last, [2, 3]);
        for _ in 0..QUIET {
            last = take(&mut rotation, &[3]);
        }
        assert_eq!(last, [3]);
        assert!(rotation.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_in_time() {
        let start = Instant::now();
        let mut rotation = Rotation::new(start, vec![1]);
        for turn in 1..6u32 {
            rotation.take(start + SECOND * turn, if turn % 2 == 0 { vec![1] } else { vec![2] });
        }
        assert_eq!(rotation.take(start + LONGEST * 2, vec![1]), [1]);
    }
}
