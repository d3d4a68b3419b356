use super::*;

const SECOND: Duration = Duration::from_secs(1);
const BOUNDS: Bounds = Bounds {
    min_ttl: Duration::ZERO,
    max_ttl: Duration::from_secs(300),
    max_negative_ttl: Duration::from_secs(30),
    jitter: 0.05,
    stale: Duration::from_secs(3600),
    recheck: Duration::from_secs(10),
};

struct Name {
    now: Instant,
    record: Record,
}

impl Name {
    fn new() -> Self {
        Self::with(BOUNDS)
    }

    fn with(bounds: Bounds) -> Self {
        let now = Instant::now();
        Self { now, record: Record::new(now, Sought::Addresses, bounds.into()) }
    }

    fn after(&mut self, span: Duration) -> &mut Self {
        self.now += span;
        self.record.lapse(self.now);
        self
    }

    /// Moves on to when the kind is next asked, and says how long that was.
    fn until_due(&mut self, kind: Kind) -> Duration {
        let due = self.record.set(kind).due;
        let span = due.saturating_duration_since(self.now);
        assert!(span.is_zero() || !self.record.is_due(kind, due - Duration::from_nanos(1)));
        self.after(span);
        assert!(self.record.is_due(kind, self.now));
        span
    }

    fn found(&mut self, kind: Kind, addresses: &[&str], ttl: u64) -> &mut Self {
        self.found_at(kind, addresses, ttl, 0, true)
    }

    fn found_at(
        &mut self,
        kind: Kind,
        addresses: &[&str],
        ttl: u64,
        candidate: usize,
        certain: bool,
    ) -> &mut Self {
        let records = addresses.iter().map(|text| Datum::Address(text.parse().unwrap())).collect();
        let outcome = Outcome::Found { records, ttl: Duration::from_secs(ttl) };
        self.record.note(self.now, kind, Found { outcome, candidate, certain });
        self
    }

    fn denied(&mut self, kind: Kind, ttl: Option<u64>) -> &mut Self {
        let ttl = ttl.map(Duration::from_secs);
        let outcome = Outcome::Denied { what: Denial::Name, ttl, why: "denied".into(), sure: true };
        self.record.note(self.now, kind, Found { outcome, candidate: 0, certain: false });
        self
    }

    fn failed(&mut self, kind: Kind) -> &mut Self {
        let outcome = Outcome::Failed { why: "failed".into() };
        self.record.note(self.now, kind, Found { outcome, candidate: 0, certain: false });
        self
    }

    fn addresses(&self) -> Vec<String> {
        self.record.answer(self.now).addresses.iter().map(|ip| ip.to_string()).collect()
    }

    fn state(&self) -> State {
        self.record.answer(self.now).state
    }

    fn reason(&self) -> Option<Reason> {
        match self.state() {
            State::Failed { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

#[test]
fn the_first_family_answers_without_waiting_for_the_other() {
    let mut name = Name::new();
    assert_eq!(name.state(), State::Pending);
    name.found(Kind::V6, &["fd00::2", "fd00::1", "fd00::2"], 30);
    assert_eq!(name.state(), State::Fresh);
    assert_eq!(name.addresses(), ["fd00::1", "fd00::2"]);
    name.found(Kind::V4, &["10.0.0.1"], 30);
    assert_eq!(name.addresses(), ["10.0.0.1", "fd00::1", "fd00::2"]);
}

#[test]
fn an_answer_is_asked_for_again_before_it_expires() {
    for (ttl, least, most) in [(0, 1.0, 1.0), (1, 1.0, 1.0), (5, 4.5, 4.75), (30, 27.0, 28.5)] {
        let mut name = Name::new();
        name.found(Kind::V4, &["10.0.0.1"], ttl);
        let kept = name.record.expires().unwrap() - name.now;
        assert_eq!(kept, Duration::from_secs(ttl.max(1)));
        let again = name.until_due(Kind::V4).as_secs_f64();
        assert!((least..=most).contains(&again), "TTL {ttl}: asked again after {again} s");
    }
}

#[test]
fn names_learned_together_do_not_come_back_together() {
    let mut again: Vec<Duration> = Vec::new();
    for _ in 0..20 {
        let mut name = Name::new();
        again.push(name.found(Kind::V4, &["10.0.0.1"], 300).until_due(Kind::V4));
    }
    assert!(again.iter().max().unwrap().abs_diff(*again.iter().min().unwrap()) > SECOND);
}

#[test]
fn the_ttl_keeps_to_its_bounds() {
    let bounds = Bounds { min_ttl: 10 * SECOND, max_ttl: 60 * SECOND, ..BOUNDS };
    for (ttl, kept) in [(0, 10), (30, 30), (3600, 60)] {
        let mut name = Name::with(bounds);
        name.found(Kind::V4, &["10.0.0.1"], ttl);
        assert_eq!(name.record.expires(), Some(name.now + kept * SECOND));
    }
}

#[test]
fn a_failure_serves_stale_until_its_bound() {
    let mut name = Name::with(Bounds { stale: 100 * SECOND, ..BOUNDS });
    name.found(Kind::V4, &["10.0.0.1"], 10).denied(Kind::V6, None);
    name.after(9 * SECOND).failed(Kind::V4);
    assert_eq!(name.state(), State::Fresh, "within its TTL");
    assert_eq!(name.record.trouble().map(|why| &**why), Some("failed"));
    name.after(SECOND);
    assert!(matches!(name.state(), State::Stale { .. }));
    assert!(name.record.is_stale(name.now));
    name.after(99 * SECOND).failed(Kind::V4);
    assert_eq!(name.addresses(), ["10.0.0.1"]);
    name.after(SECOND);
    assert!(name.addresses().is_empty());
    assert_eq!(name.reason(), Some(Reason::DnsNoAnswer));
    name.found(Kind::V4, &["10.0.0.2"], 10);
    assert_eq!((name.state(), name.record.trouble()), (State::Fresh, None));
}

#[test]
fn the_end_of_ttl_and_of_staleness_are_woken_for() {
    let mut name = Name::with(Bounds { stale: 100 * SECOND, ..BOUNDS });
    name.found(Kind::V4, &["10.0.0.1"], 10).denied(Kind::V6, Some(30));
    let expires = name.record.expires().unwrap();
    name.after(9 * SECOND).failed(Kind::V4);
    // While both queries are in flight, only the ends are left to wait for.
    assert_eq!(name.record.wakes(name.now, [true, true]), Some(expires));
    name.after(SECOND);
    assert_eq!(name.record.wakes(name.now, [true, true]), Some(expires + 100 * SECOND));
    assert!(name.record.wakes(name.now, [false, true]).unwrap() < expires + SECOND);
}

#[test]
fn failures_back_off_and_success_forgets_them() {
    let mut name = Name::new();
    for longest in [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0] {
        let pause = name.failed(Kind::V4).until_due(Kind::V4).as_secs_f64();
        assert!((longest * 0.8..=longest).contains(&pause), "{pause} s");
    }
    name.found(Kind::V4, &["10.0.0.1"], 10);
    assert!(name.failed(Kind::V4).until_due(Kind::V4) <= SECOND / 2);
}

#[test]
fn one_denial_empties_nothing_and_the_next_does() {
    let mut name = Name::new();
    name.denied(Kind::V6, None).found(Kind::V4, &["10.0.0.1"], 1);
    name.until_due(Kind::V4);
    name.denied(Kind::V4, Some(30));
    assert_eq!(name.addresses(), ["10.0.0.1"]);
    let spacing = name.until_due(Kind::V4);
    assert!(spacing >= SECOND / 2 && spacing < SECOND);
    assert_eq!(name.addresses(), ["10.0.0.1"]);
    name.denied(Kind::V4, Some(30));
    assert!(name.addresses().is_empty(), "TTL + 1 s after the change at the latest");
    assert_eq!(name.reason(), Some(Reason::DnsNoSuchName));
}

#[test]
fn denials_apart_are_not_denials_in_a_row() {
    let mut name = Name::new();
    for _ in 0..5 {
        name.found(Kind::V4, &["10.0.0.1"], 1).denied(Kind::V4, None);
        assert_eq!(name.addresses(), ["10.0.0.1"]);
    }
    // A failure between two denials says nothing for the name.
    name.failed(Kind::V4).denied(Kind::V4, None);
    assert!(name.addresses().is_empty());
}

#[test]
fn a_denial_holds_for_its_negative_ttl_within_bounds() {
    for (ttl, longest) in [(None, 5.0), (Some(0), 1.0), (Some(10), 10.0), (Some(3600), 30.0)] {
        let mut name = Name::new();
        let again = name.denied(Kind::V4, ttl).until_due(Kind::V4).as_secs_f64();
        assert!((longest * 0.9..=longest).contains(&again), "{ttl:?}: {again} s");
    }
}

#[test]
fn without_addresses_the_worst_kind_of_not_knowing_is_said() {
    let mut name = Name::new();
    name.denied(Kind::V4, None);
    assert_eq!(name.state(), State::Pending, "the other kind may have one");
    name.failed(Kind::V6);
    assert_eq!(name.reason(), Some(Reason::DnsNoAnswer));
    name.denied(Kind::V6, None);
    assert_eq!(name.reason(), Some(Reason::DnsNoSuchName));
}

#[test]
fn one_family_failing_leaves_the_other_fresh() {
    let mut name = Name::new();
    name.found(Kind::V4, &["10.0.0.1"], 30);
    for _ in 0..10 {
        name.failed(Kind::V6);
    }
    assert_eq!((name.state(), name.addresses()), (State::Fresh, vec!["10.0.0.1".to_owned()]));
    assert!(name.record.trouble().is_some());
}

#[test]
fn the_search_lists_earlier_name_is_the_one_meant() {
    let mut name = Name::new();
    name.found_at(Kind::V4, &["10.0.0.2"], 30, 2, true);
    assert_eq!(name.record.anchor(), Some(2));
    name.found_at(Kind::V6, &["fd00::1"], 30, 1, true);
    assert_eq!((name.record.anchor(), name.addresses()), (Some(1), vec!["fd00::1".to_owned()]));
    assert!(name.record.is_due(Kind::V4, name.now), "the other asks the one meant at once");
    name.found_at(Kind::V4, &["10.0.0.3"], 30, 3, true);
    assert_eq!((name.record.anchor(), name.addresses()), (Some(1), vec!["fd00::1".to_owned()]));
}

#[test]
fn a_name_found_past_a_failure_is_used_and_not_settled_on() {
    let mut name = Name::new();
    name.found_at(Kind::V4, &["10.0.0.2"], 30, 2, false);
    assert_eq!((name.record.anchor(), name.addresses()), (None, vec!["10.0.0.2".to_owned()]));
}

#[test]
fn the_search_begins_again_once_the_name_is_gone() {
    let mut name = Name::new();
    name.found_at(Kind::V4, &["10.0.0.2"], 30, 1, true).denied(Kind::V6, None);
    name.denied(Kind::V4, None);
    assert_eq!(name.record.anchor(), Some(1));
    name.denied(Kind::V4, None);
    assert_eq!(name.record.anchor(), None);
}

#[test]
fn another_configuration_asks_again_and_keeps_what_is_known() {
    let mut name = Name::new();
    name.found(Kind::V4, &["10.0.0.1"], 300).denied(Kind::V6, Some(30));
    name.record.reconfigure(name.now, BOUNDS.into());
    assert!(name.record.kinds().iter().all(|kind| name.record.is_due(*kind, name.now)));
    assert_eq!((name.state(), name.record.anchor()), (State::Fresh, None));
}

#[test]
fn a_denial_while_another_server_is_silent_takes_nothing_from_a_set_that_works() {
    let mut name = Name::new();
    let unsure = || Found {
        outcome: Outcome::Denied { what: Denial::Name, ttl: None, why: "denied".into(), sure: false },
        candidate: 0,
        certain: false,
    };
    name.found(Kind::V4, &["10.0.0.1"], 1).denied(Kind::V6, None);
    for _ in 0..5 {
        name.until_due(Kind::V4);
        name.record.note(name.now, Kind::V4, unsure());
        assert_eq!(name.addresses(), ["10.0.0.1"]);
    }
    let mut cold = Name::new();
    cold.denied(Kind::V6, None);
    cold.record.note(cold.now, Kind::V4, unsure());
    assert_eq!(cold.reason(), Some(Reason::DnsNoSuchName), "who has nothing believes it");
}
