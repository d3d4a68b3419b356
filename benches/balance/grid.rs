//! Every case that is asked for, on every core. One seed of all comes before the next of any, so that a run
//! that is ended early has something of everything.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::options::Options;
use crate::plan::{Case, Plan};
use crate::policy::POLICIES;
use crate::results::{Results, key};

/// Simulates what the results do not have, until there is nothing left or the time is over.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let unwritten = |error| format!("{}: {error}", options.out.display());
    let results = Results::open(&options.out, &options.again).map_err(unwritten)?;
    let cases: Vec<_> = cases(options).filter(|(case, policy)| !results.has(&key(case, policy))).collect();
    let (results, next) = (Mutex::new(results), AtomicUsize::new(0));
    let begin = Instant::now();
    let done = thread::scope(|scope| {
        let work = || {
            let mut done = 0;
            while options.time.is_none_or(|time| begin.elapsed() < time)
                && let Some((case, policy)) = cases.get(next.fetch_add(1, Ordering::Relaxed))
            {
                simulate(case, policy, &results).map_err(unwritten)?;
                done += 1;
            }
            Ok(done)
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        // A thread that panics has said why.
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or(Err("A case panicked".into())));
        ended.sum::<Result<usize, String>>()
    })?;
    eprintln!(
        "{done} of {} cases in {:.0} s: {}",
        cases.len(),
        begin.elapsed().as_secs_f64(),
        options.out.display()
    );
    Ok(())
}

/// All cases, the seeds outermost.
fn cases(options: &Options) -> impl Iterator<Item = (Case, &'static str)> {
    let worlds = (1..=options.seeds).flat_map(move |seed| {
        options.scenarios.iter().flat_map(move |&scenario| {
            options.sizes.iter().flat_map(move |&(clients, servers)| {
                let case = move |&load| Case { scenario, clients, servers, load, work: options.work, seed };
                options.loads(scenario).iter().map(case)
            })
        })
    });
    worlds.flat_map(|case| options.policies.iter().map(move |policy| (case, *policy)))
}

fn simulate(case: &Case, policy: &'static str, results: &Mutex<Results>) -> std::io::Result<()> {
    let begin = Instant::now();
    let Some((_, run)) = POLICIES.iter().find(|known| known.0 == policy) else { return Ok(()) };
    let mut measured = run(&Plan::new(case));
    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
    results.add(&key(case, policy), &mut measured, begin.elapsed())
}
