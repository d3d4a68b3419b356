//! The script that grants tokens: its calls as they are sent, and its answers as they are read.

use std::fmt::Write;
use std::sync::Arc;

use redis::{Cmd, ErrorKind, RedisError, RedisResult, Value};

use super::super::bucket::{Back, Bucket, Grant, Want};
use super::super::limit::Limit;
use super::super::plan::Plan;

/// How long a sidecar is counted after it asked, at least and at most, in microseconds.
const REMEMBERED: (f64, f64) = (10e6, 172_800e6);

/// No mesh has more sidecars.
const MOST_SIDECARS: u64 = 1 << 20;

/// What grants tokens.
pub(in crate::limit) const SCRIPT: &str = include_str!("script.lua");

/// How this sidecar calls the script.
pub(in crate::limit) struct Caller {
    hash: String,
    /// Tells this sidecar from others.
    sidecar: String,
    /// What every key begins with.
    prefix: String,
    /// Whether buckets are full after a loss of state; else they are empty.
    full: bool,
}

/// One call of the script: buckets of one shard that want tokens.
pub(in crate::limit) struct Call<'a> {
    pub(in crate::limit) shard: u8,
    pub(in crate::limit) groups: Vec<Group<'a>>,
}

impl Call<'_> {
    /// How many buckets it is for.
    pub(in crate::limit) fn buckets(&self) -> usize {
        self.groups.iter().map(|group| group.wants.len()).sum()
    }
}

/// The buckets of one limit that have the same terms.
pub(in crate::limit) struct Group<'a> {
    pub(in crate::limit) limit: &'a Limit,
    pub(in crate::limit) plan: &'a Arc<Plan>,
    /// Which of the plan's terms.
    pub(in crate::limit) terms: usize,
    pub(in crate::limit) wants: Vec<(&'a Bucket, Want)>,
}

/// What a server says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::limit) struct Greeting {
    /// When its state began, in microseconds of its own clock.
    pub(in crate::limit) since: u64,
    /// Why the bound may not hold there, in the operator's words.
    pub(in crate::limit) warnings: Vec<String>,
}

impl Caller {
    /// A caller of the script that Redis calls `hash`, of this name, whose keys begin with `prefix`.
    pub(in crate::limit) fn new(hash: &str, sidecar: &str, prefix: &str, full: bool) -> Self {
        Self { hash: hash.into(), sidecar: sidecar.into(), prefix: prefix.into(), full }
    }

    /// The call as it is sent.
    pub(in crate::limit) fn command(&self, call: &Call<'_>) -> Cmd {
        let keys = 1 + call.groups.iter().map(|group| 2 + group.wants.len()).sum::<usize>();
        let mut command = self.begin(call.shard, keys);
        let mut key = String::new();
        let prefix = self.keys(call.shard);
        let mut add = |arguments: std::fmt::Arguments<'_>| {
            key.clear();
            key.push_str(&prefix);
            key.write_fmt(arguments).expect("a string takes all");
            command.arg(&*key);
        };
        for Group { limit, plan, terms, wants } in &call.groups {
            let name = &limit.redis_name;
            add(format_args!("i:{name}"));
            add(format_args!("t:{name}:{:x}", plan.terms[*terms].id));
            for (bucket, _) in wants {
                match plan.terms[*terms].id {
                    0 => add(format_args!("b:{name}{}", bucket.name)),
                    // While sidecars disagree about which keys have a rate of their own, neither touches
                    // what the other counts.
                    own => add(format_args!("b:{name}{}.{own:x}", bucket.name)),
                }
            }
        }
        self.say_who(&mut command);
        for Group { plan, terms, wants, .. } in &call.groups {
            let terms = &plan.terms[*terms];
            command.arg(wants.len()).arg(terms.of.interval / 1e3).arg(terms.of.capacity);
            command.arg(terms.tau as f64 / 1e3).arg(plan.written).arg(remembered(plan));
            for (_, want) in wants {
                command.arg(want.wanted).arg(want.least);
                match want.back {
                    _ if want.wanted < 2 && want.back.count == 0 => command.arg(0),
                    Back { count, granted_at, since } => command.arg(format!("{count} {granted_at} {since}")),
                };
            }
        }
        command
    }

    /// Asks the server of a shard what it is, and keeps its marker.
    pub(in crate::limit) fn greeting(&self, shard: u8) -> Cmd {
        let mut command = self.begin(shard, 1);
        self.say_who(&mut command);
        command
    }

    fn begin(&self, shard: u8, keys: usize) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(keys).arg(format!("{}m", self.keys(shard)));
        command
    }

    fn say_who(&self, command: &mut Cmd) {
        command.arg(&self.sidecar).arg(if self.full { "full" } else { "empty" });
    }

    /// What the keys of a shard begin with. The braces make a shard one slot of Redis Cluster.
    fn keys(&self, shard: u8) -> String {
        format!("{}:{{{shard}}}:", self.prefix)
    }
}

/// How long, in microseconds, a sidecar is counted after it asked for any key of the limit.
fn remembered(plan: &Plan) -> f64 {
    let longest = plan.terms.iter().map(|terms| terms.tau).max().unwrap_or(0);
    (2.0 * longest as f64 / 1e3).clamp(REMEMBERED.0, REMEMBERED.1).round()
}

/// Reads the answer of one call that was sent at `sent`: the grants, in the order of its wants.
pub(in crate::limit) fn read(sent: u64, call: &Call<'_>, answer: &Value) -> RedisResult<Vec<Grant>> {
    let wrong = || RedisError::from((ErrorKind::UnexpectedReturnType, "not an answer of the limit script"));
    let Value::Array(values) = answer else { return Err(wrong()) };
    let mut numbers = values.iter().map(|value| match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| wrong()),
        _ => Err(wrong()),
    });
    let mut next = || numbers.next().unwrap_or_else(|| Err(wrong()));
    let (since, now) = (next()?, next()?);
    let mut grants = Vec::new();
    for group in &call.groups {
        let (sidecars, tau) = (next()?, next()?);
        for (_, want) in &group.wants {
            let (granted, wait) = (next()?, next()?);
            grants.push(Grant {
                sent,
                want: *want,
                granted: u32::try_from(granted).unwrap_or(u32::MAX).min(want.wanted),
                wait: wait.saturating_mul(1_000),
                sidecars: sidecars.min(MOST_SIDECARS) as u32,
                tau: tau.saturating_mul(1_000),
                at: now,
                since,
                young: now.saturating_sub(since) < tau,
            });
        }
    }
    if numbers.next().is_some() { Err(wrong()) } else { Ok(grants) }
}

/// Reads the answer to a greeting.
pub(in crate::limit) fn read_greeting(answer: &Value) -> RedisResult<Greeting> {
    type Told = (u64, String, String, String, String, String);
    let (since, memory, policy, replicas, fenced, _version): Told = redis::from_redis_value_ref(answer)?;
    let mut warnings = Vec::new();
    if policy != "noeviction" && memory != "0" {
        warnings.push(format!(
            "its maxmemory-policy is `{policy}`: a bucket that it evicts is full again; set it to `noeviction`"
        ));
    }
    if replicas != "0" && fenced != "1" {
        warnings.push(
            "it has replicas, and no `min-replicas-to-write`: while a failover goes on two primaries may grant \
             at once"
                .into(),
        );
    }
    Ok(Greeting { since, warnings })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{bucket_of, limit_of};
    use super::*;

    #[test]
    fn what_is_no_answer_of_the_script_is_an_error() {
        let (limit, plan) = limit_of("10/s", 10);
        let (a, b) = (bucket_of(&plan, "a"), bucket_of(&plan, "b"));
        let want = |wanted| Want { wanted, least: 1, back: Back::default() };
        let wants = vec![(&a, want(3)), (&b, want(1))];
        let call = Call { shard: 0, groups: vec![Group { limit: &limit, plan: &plan, terms: 0, wants }] };
        let array = |numbers: &[i64]| Value::Array(numbers.iter().map(|n| Value::Int(*n)).collect());
        let wrong: [&[i64]; 6] =
            [&[], &[1], &[1, 9, 2, 5, 0, 7], &[1, 9, 2, 5, 0, 7, 0], &[1, 9, 2, 5, 0, 7, 0, 0, 0], &[-1]];
        for numbers in wrong {
            assert!(read(1, &call, &array(numbers)).is_err(), "{numbers:?}");
        }
        assert!(read(1, &call, &Value::Okay).is_err());
        let grants = read(7, &call, &array(&[5, 9, 2, 9, 9, 0, 0, i64::MAX])).expect("an answer");
        assert_eq!((grants[0].granted, grants[0].sidecars, grants[0].sent), (3, 2, 7), "no more than wanted");
        assert_eq!((grants[1].granted, grants[1].since, grants[1].tau), (0, 5, 9_000));
    }

    #[test]
    fn a_server_that_may_break_the_bound_is_told_of() {
        let text = |text: &str| Value::BulkString(text.into());
        let answer = |memory, policy, replicas, fenced| {
            let told = [memory, policy, replicas, fenced, "7.0.15"].map(text);
            Value::Array([Value::Int(7)].into_iter().chain(told).collect())
        };
        let warnings = |answer: &Value| read_greeting(answer).expect("a greeting").warnings;
        assert!(
            warnings(&answer("0", "allkeys-lru", "0", "0")).is_empty(),
            "without a bound it evicts nothing"
        );
        assert!(warnings(&answer("1000", "noeviction", "1", "1")).is_empty());
        assert!(warnings(&answer("1000", "allkeys-lru", "0", "0"))[0].contains("noeviction"));
        assert!(warnings(&answer("0", "noeviction", "1", "0"))[0].contains("min-replicas-to-write"));
        assert!(read_greeting(&Value::Int(7)).is_err());
    }
}
