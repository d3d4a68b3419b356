//! Who waits for a place, and who is next.
//!
//! Promises: the shortest deadline is next, and of equal ones who came first. Once whoever came first of all has
//! waited for more than a tenth of his time, there is more than can be served, and who came last is next:
//! otherwise each would be served when his time is nearly over, and most answers would come too late. What
//! that is worth was measured: `docs/queue-order.md`.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// It is overload once the oldest has waited for more than one part in so many of his time.
const PART: u32 = 10;

/// Who waits, with what is his.
#[derive(Debug)]
pub struct Line<T> {
    came: u64,
    by_arrival: BTreeMap<Arrival, (Instant, T)>,
    by_deadline: BTreeSet<(Instant, Arrival)>,
}

/// When somebody came, and as which of all.
type Arrival = (Instant, u64);

/// His who waits: what he leaves by.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(Arrival);

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { came: 0, by_arrival: BTreeMap::new(), by_deadline: BTreeSet::new() }
    }
}

impl<T> Line<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.by_arrival.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.by_arrival.is_empty()
    }

    /// Adds one who waits since then, and until `deadline`.
    pub fn join(&mut self, since: Instant, deadline: Instant, one: T) -> Ticket {
        self.came += 1;
        let arrival = (since, self.came);
        self.by_arrival.insert(arrival, (deadline, one));
        self.by_deadline.insert((deadline, arrival));
        Ticket(arrival)
    }

    /// Removes him, if he waits still.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let (deadline, one) = self.by_arrival.remove(&ticket.0)?;
        self.by_deadline.remove(&(deadline, ticket.0));
        Some(one)
    }

    /// Removes who is next.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        let (oldest, (deadline, _)) = self.by_arrival.first_key_value()?;
        let time = deadline.saturating_duration_since(oldest.0);
        let is_overload = now.saturating_duration_since(oldest.0) > time / PART;
        let next =
            if is_overload { *self.by_arrival.last_key_value()?.0 } else { self.by_deadline.first()?.1 };
        self.leave(Ticket(next))
    }

    /// Removes all, in the order in which they came.
    pub fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.by_deadline.clear();
        std::mem::take(&mut self.by_arrival).into_values().map(|(_, one)| one)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TIME: Duration = Duration::from_secs(1);

    /// Three who come one after the other, each a millisecond later: of 1 s, 100 ms and 1 s.
    fn three() -> (Line<char>, Instant, [Ticket; 3]) {
        let (mut line, now) = (Line::default(), Instant::now());
        let tickets = [('a', TIME), ('b', TIME / 10), ('c', TIME)].map(|(one, time)| {
            let since = now + Duration::from_millis(line.came);
            line.join(since, since + time, one)
        });
        (line, now + Duration::from_millis(2), tickets)
    }

    fn order(mut line: Line<char>, now: Instant) -> String {
        std::iter::from_fn(|| line.next(now)).collect()
    }

    #[test]
    fn the_shortest_deadline_comes_first_and_of_equal_ones_who_came_first() {
        let (mut line, now, _) = three();
        line.join(now, now + TIME, 'd');
        assert_eq!(order(line, now), "bacd");
    }

    #[test]
    fn who_came_last_comes_first_once_the_oldest_has_waited_long() {
        let (line, now, _) = three();
        assert_eq!(order(line, now + TIME), "cba");
        // 20 ms are little of a second, and much of 100 ms.
        let (line, now, _) = three();
        assert_eq!(order(line, now + TIME / 50), "bac");
        let (mut line, now, [a, ..]) = three();
        line.leave(a);
        assert_eq!(order(line, now + TIME / 50), "cb");
    }

    #[test]
    fn it_is_by_deadline_again_when_those_who_waited_long_have_gone() {
        let (mut line, now, tickets) = three();
        let now = now + TIME / 5;
        line.join(now, now + TIME / 2, 'd');
        line.join(now, now + TIME, 'e');
        assert_eq!(tickets.map(|ticket| line.leave(ticket)), [Some('a'), Some('b'), Some('c')]);
        assert_eq!((line.leave(tickets[0]), line.len()), (None, 2));
        assert_eq!(order(line, now), "de");
    }

    #[test]
    fn what_is_over_is_late_and_nothing_panics() {
        let mut line = Line::default();
        let now = Instant::now();
        line.join(now + TIME, now, 'a');
        line.join(now, now, 'b');
        assert_eq!(line.next(now).into_iter().chain(line.take()).count(), 2);
        assert!(line.is_empty() && line.next(now).is_none());
    }
}
