//! Threads that send requests to all sidecars, and log what becomes of them. The clock is read before a limit
//! is asked and once more when it has answered: the decision lies in between.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pannier::error::Reason;
use pannier::limit::{Decision, Facts, Said};
use tokio::task::LocalSet;

use crate::log::{Admitted, Log};
use crate::offer::{Offer, Request};
use crate::{Plan, SECOND, Sidecar};

/// Sends all requests of the plan, of a limit that admits `rate` a second.
pub(crate) fn all(plan: &Plan, rate: f64, sidecars: &[Sidecar]) -> Log {
    let rate = rate * plan.demand * plan.keys as f64 / plan.threads as f64;
    let start = Instant::now();
    let thread = |number: usize| {
        let offer = Offer::new(plan.shape, rate, plan.sidecars, plan.keys, plan.seed, number as u64);
        let end = (plan.seconds * SECOND as f64) as u64;
        let thread =
            Thread { start, sidecars, keys: names(plan.keys), log: Rc::new(RefCell::new(Log::default())) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let tasks = LocalSet::new();
        tasks.block_on(&runtime, thread.send(offer.take_while(|request| request.at < end)));
        // Those that still wait for Redis.
        runtime.block_on(tasks);
        Rc::into_inner(thread.log).expect("no task is left").into_inner()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads).map(|number| scope.spawn(move || thread(number))).collect();
        let mut log = Log::default();
        for thread in threads {
            log.add(thread.join().expect("no thread panics"));
        }
        log
    })
}

/// What keys are written as.
fn names(keys: usize) -> Vec<String> {
    (0..keys).map(|key| format!("tenant-{key}")).collect()
}

struct Thread<'a> {
    start: Instant,
    sidecars: &'a [Sidecar],
    keys: Vec<String>,
    log: Rc<RefCell<Log>>,
}

impl Thread<'_> {
    /// Sends each when its time has come. A timer has a grain of a millisecond: what comes within one is sent
    /// together.
    async fn send(&self, offer: impl Iterator<Item = Request>) {
        for request in offer {
            if request.at > now(self.start) {
                tokio::time::sleep_until((self.start + Duration::from_nanos(request.at)).into()).await;
            }
            self.one(&request);
        }
    }

    fn one(&self, request: &Request) {
        let Self { start, sidecars, keys, log } = self;
        let said = Tenant(keys[request.key as usize].as_bytes());
        let facts = Facts { host: "orders", port: None, path: "/", method: "GET", caller: "me", said: &said };
        let from = now(*start);
        let decision = sidecars[request.sidecar].limits.admit(&facts);
        let to = now(*start);
        let mut log = log.borrow_mut();
        log.offered.push((from, request.key));
        log.late.push(from.saturating_sub(request.at));
        let admitted = Admitted { from, to, key: request.key, sidecar: request.sidecar as u32 };
        match decision {
            Decision::Admitted(_) => log.admitted.push(admitted),
            Decision::Refused(refusal) => log.refused(refusal.reason),
            Decision::Wait(wait) => {
                let (start, log) = (*start, self.log.clone());
                tokio::task::spawn_local(async move {
                    let outcome = wait.resolve().await;
                    let to = now(start);
                    let mut log = log.borrow_mut();
                    log.waits.push(to - from);
                    match outcome {
                        Ok(_) => log.admitted.push(Admitted { to, ..admitted }),
                        Err(error) => log.refused(error.reason),
                    }
                });
            }
        }
    }
}

/// What a request says: whose it is.
struct Tenant<'a>(&'a [u8]);

impl Said for Tenant<'_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        (name == "x-tenant").then_some(self.0)
    }
}

impl Log {
    fn refused(&mut self, reason: Reason) {
        match reason {
            Reason::LimitUnavailable => self.unavailable += 1,
            _ => self.exhausted += 1,
        }
    }
}

/// Nanoseconds from the start.
fn now(start: Instant) -> u64 {
    start.elapsed().as_nanos() as u64
}
