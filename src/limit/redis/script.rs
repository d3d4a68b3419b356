//! The script that grants tokens: its calls as they are sent, and its answers as they are read.

use redis::{ErrorKind, Pipeline, RedisError, RedisResult};

use super::super::bucket::Grant;
use super::super::plan::Plan;

/// How long a sidecar is counted after it asked, at least and at most, in microseconds.
const REMEMBERED: (f64, f64) = (10e6, 600e6);

/// What grants tokens.
pub(in crate::limit) const SCRIPT: &str = include_str!("script.lua");

/// The buckets of one limit and shard that want tokens: one call of the script.
pub(in crate::limit) struct Call<'a> {
    pub(in crate::limit) plan: &'a Plan,
    /// The first key, and what the others begin with.
    pub(in crate::limit) prefix: String,
    /// Each bucket's name, and the tokens that it wants.
    pub(in crate::limit) wants: Vec<(&'a str, u32)>,
}

/// The grants of one call, in the order of its wants.
pub(in crate::limit) type Grants = Vec<Grant>;

/// The calls as they are sent.
pub(in crate::limit) fn pipeline(script: &str, sidecar: &str, calls: &[Call<'_>]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(calls.len().max(1));
    if calls.is_empty() {
        pipeline.cmd("EVALSHA").arg(script).arg(0);
    }
    for call in calls {
        pipeline.cmd("EVALSHA").arg(script).arg(call.wants.len() + 1);
        pipeline.arg(format!("{}ids", call.prefix));
        for (name, _) in &call.wants {
            pipeline.arg(format!("{}{name}", call.prefix));
        }
        let plan = call.plan;
        let remembered = (4.0 * plan.tau as f64 / 1e3).clamp(REMEMBERED.0, REMEMBERED.1).round();
        pipeline.arg(plan.interval_micros).arg(plan.capacity).arg(sidecar).arg(remembered);
        for (_, wanted) in &call.wants {
            pipeline.arg(*wanted);
        }
    }
    pipeline.ignore_errors();
    pipeline
}

/// Reads the answer of one call.
pub(in crate::limit) fn read(sent: u64, call: &Call<'_>, answer: &[u64]) -> RedisResult<Grants> {
    let Some((sidecars, grants)) =
        answer.split_first().filter(|(_, grants)| grants.len() == 2 * call.wants.len())
    else {
        return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "not an answer of the limit script")));
    };
    let grant = |((_, wanted), answer): (&(&str, u32), &[u64])| Grant {
        sent,
        wanted: *wanted,
        granted: u32::try_from(answer[0]).unwrap_or(u32::MAX).min(*wanted),
        wait: answer[1].saturating_mul(1_000),
        sidecars: u32::try_from(*sidecars).unwrap_or(u32::MAX),
    };
    Ok(call.wants.iter().zip(grants.chunks_exact(2)).map(grant).collect())
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::tests::limit;
    use super::*;

    #[test]
    fn what_is_no_answer_of_the_script_is_an_error() {
        let plan = Plan::new(&limit("a", "10/s", 10), true, 1);
        let call = Call { plan: &plan, prefix: "p:".into(), wants: vec![("a", 3), ("b", 1)] };
        for answer in [&[][..], &[1], &[1, 2, 0], &[1, 2, 0, 1], &[1, 2, 0, 1, 0, 7]] {
            assert!(read(1, &call, answer).is_err(), "{answer:?}");
        }
        let grants = read(7, &call, &[2, 9, 0, 0, u64::MAX]).expect("an answer");
        assert_eq!((grants[0].granted, grants[0].sidecars, grants[0].sent), (3, 2, 7), "no more than wanted");
        assert_eq!((grants[1].granted, grants[1].wait), (0, u64::MAX));
    }
}
