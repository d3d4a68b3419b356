//! Limits counted in this process.

use super::*;

fn pod(name: &str, rate: &str, burst: u32) -> model::Limit {
    model::Limit { scope: Scope::Pod, ..limit(name, rate, burst) }
}

fn tenant() -> Vec<KeyPart> {
    vec![KeyPart::Header("x-tenant".into())]
}

/// Limits without a Redis, at a time of the test's own.
struct Local {
    limits: Limits,
    _control: tokio::runtime::Runtime,
}

impl Local {
    fn new(limits: &[model::Limit]) -> Self {
        let control = control();
        let state = State::new(None, control.handle()).expect("no Redis");
        Self { limits: Limits::compile(limits, Direction::Outbound, &state), _control: control }
    }

    fn reload(&mut self, limits: &[model::Limit]) {
        self.limits = Limits::compile(limits, Direction::Outbound, &self.limits.state);
    }

    fn admitted(&self, tenant: &str, at: u64, requests: usize) -> usize {
        let admit = || request(tenant, |facts| self.limits.admit_at(facts, at));
        (0..requests).filter(|_| matches!(admit(), Decision::Admitted(_))).count()
    }
}

const S: u64 = 1_000_000_000;

#[test]
fn without_limits_everything_passes() {
    let local = Local::new(&[]);
    assert!(local.limits.is_empty());
    assert!(matches!(request("t", |facts| local.limits.admit(facts)), Decision::Admitted(_)));
}

#[test]
fn a_limit_of_another_direction_or_path_does_not_hold() {
    let mut inbound = pod("in", "1/h", 1);
    inbound.direction = Direction::Inbound;
    let mut elsewhere = pod("elsewhere", "1/h", 1);
    elsewhere.path = Some(model::PathMatch::Prefix("/admin".into()));
    let local = Local::new(&[inbound, elsewhere]);
    assert_eq!(local.admitted("t", S, 10), 10);
}

#[test]
fn a_refusal_says_who_and_for_how_long() {
    let local = Local::new(&[pod("orders", "10/s", 1)]);
    assert_eq!(local.admitted("t", S, 1), 1);
    let decision = request("t", |facts| local.limits.admit_at(facts, S + S / 40));
    let Decision::Refused(refusal) = decision else { panic!("{decision:?}") };
    assert_eq!((&*refusal.limit.name, refusal.reason), ("orders", crate::error::Reason::LimitExhausted));
    assert_eq!(refusal.retry_after, Duration::from_millis(75));
    let error = crate::error::Error::from(refusal);
    assert_eq!(error.to_string(), "limit.exhausted: limit `orders`");
}

#[test]
fn keys_are_counted_apart_and_on_every_thread_together() {
    let local = Local::new(&[model::Limit { key: tenant(), ..pod("orders", "1/h", 5) }]);
    let total: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| local.admitted("a", S, 4))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(total, 5);
    assert_eq!(local.admitted("b", S, 10), 5);
    assert_eq!(local.limits.snapshot()[0].keys, 2);
}

#[test]
fn a_token_is_returned_when_a_later_limit_refuses() {
    let local = Local::new(&[pod("wide", "1/h", 10), pod("narrow", "1/s", 1)]);
    assert_eq!(local.admitted("t", S, 5), 1);
    assert_eq!(local.admitted("t", 2 * S, 5), 1);
    let report = local.limits.snapshot();
    assert_eq!((report[0].admitted, report[0].refused), (2, 0));
    assert_eq!((report[1].admitted, report[1].refused), (2, 8));
    // Nine would be left of the wide one, if no refusal had cost it any.
    let admitted = (3..20).map(|second| local.admitted("t", second * S, 1)).sum::<usize>();
    assert_eq!(admitted, 8);
}

#[test]
fn what_observes_counts_only_what_it_alone_would_have_refused() {
    let observes = model::Limit { observe: true, ..pod("new", "1/h", 1) };
    let local = Local::new(&[observes, pod("old", "1/h", 3)]);
    assert_eq!(local.admitted("t", S, 10), 3);
    let report = local.limits.snapshot();
    assert_eq!((report[0].admitted, report[0].refused, report[0].would_refuse), (3, 0, 2));
    assert_eq!((report[1].admitted, report[1].refused), (3, 7));
}

#[test]
fn a_reload_keeps_the_count_and_changes_the_rate_at_once() {
    let mut local = Local::new(&[pod("orders", "1/h", 10)]);
    assert_eq!(local.admitted("t", S, 4), 4);
    local.reload(&[pod("orders", "1/h", 10)]);
    assert_eq!(local.admitted("t", S, 10), 6, "the same limit, the same count");
    local.reload(&[pod("orders", "10/s", 10)]);
    assert_eq!(local.admitted("t", 2 * S, 10), 0, "as empty as it was");
    assert_eq!(local.admitted("t", 3 * S, 100), 10);
    assert_eq!(local.limits.snapshot()[0].admitted, 20, "counters go on");
    local.reload(&[pod("other", "1/h", 3)]);
    assert_eq!(local.admitted("t", 3 * S, 10), 3, "another name, another limit");
}

#[test]
fn a_mesh_limit_without_redis_holds_for_the_pod() {
    let local = Local::new(&[limit("orders", "1/h", 3)]);
    assert_eq!(local.admitted("t", S, 10), 3);
    assert!(!local.limits.snapshot()[0].mesh);
}

#[test]
fn a_flood_of_keys_takes_bounded_memory_and_gives_nothing_away() {
    let local = Local::new(&[model::Limit { key: tenant(), ..pod("orders", "1/h", 1) }]);
    let keys = 3 << 16;
    let admitted: usize = (0..keys).map(|key| local.admitted(&key.to_string(), S + key, 1)).sum();
    let report = &local.limits.snapshot()[0];
    assert!(report.keys <= 1 << 16, "{}", report.keys);
    // Every key that found room before any found none, and one for all that found none.
    assert!((1 << 15..=report.keys as usize + 1).contains(&admitted), "{admitted}");
    // Keys that are full again make room; one that may have been counted elsewhere starts empty.
    let later = S + 2 * 3600 * S;
    let new: usize = (0..9).map(|new| local.admitted(&format!("new{new}"), later, 5)).sum();
    assert_eq!(new, 9, "each has one of its own");
    local.limits.state.table.sweep(later);
    local.limits.state.table.sweep(later);
    assert!(local.limits.snapshot()[0].keys <= 9, "only the last are not full");
}
