//! The one conversation with Redis: a connection, the script, and a pipeline of its calls.
//!
//! Promise: every call of [`Redis::ask`] ends, in an answer or in an error, within the connection
//! and response timeouts; after an error the connection is made anew.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, Pipeline, RedisError, RedisResult, Script, ServerErrorKind,
};

use super::bucket::Grant;
use super::clock;
use super::plan::Plan;

/// The least time that a connection or an answer is waited for, whatever the budget of requests:
/// a late answer shows that Redis lives, and saves a new connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a sidecar is counted after it asked, at least and at most, in microseconds.
const REMEMBERED: (f64, f64) = (10e6, 600e6);

/// What grants tokens.
pub(super) const SCRIPT: &str = include_str!("script.lua");

/// A connection to one Redis.
pub(super) struct Redis {
    client: Client,
    config: AsyncConnectionConfig,
    connection: Option<MultiplexedConnection>,
    script: Script,
    /// Tells this sidecar from others.
    sidecar: String,
}

/// The buckets of one limit and shard that want tokens: one call of the script.
pub(super) struct Call<'a> {
    pub(super) plan: &'a Plan,
    /// The first key, and what the others begin with.
    pub(super) prefix: String,
    /// Each bucket's name, and the tokens that it wants.
    pub(super) wants: Vec<(&'a str, u32)>,
}

/// The grants of one call, in the order of its wants.
pub(super) type Grants = Vec<Grant>;

impl Redis {
    /// Prepares a connection; nothing is sent yet. Fails if the URL is not one of Redis.
    pub(super) fn new(url: &str, budget: Duration) -> RedisResult<Self> {
        let patience = PATIENCE.max(budget);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(patience));
        Ok(Self {
            client: Client::open(url)?,
            config,
            connection: None,
            script: Script::new(SCRIPT),
            sidecar: format!("{:016x}", fastrand::u64(..)),
        })
    }

    /// Where it is, without the password that the URL may hold.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// Makes all calls in one round trip. Without a call, only finds out whether the script can
    /// be run.
    pub(super) async fn ask(&mut self, calls: &[Call<'_>]) -> RedisResult<Vec<Grants>> {
        let result = match self.connection.take() {
            Some(mut connection) => self.run(&mut connection, calls).await.map(|grants| (connection, grants)),
            None => {
                let mut connection =
                    self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
                self.run(&mut connection, calls).await.map(|grants| (connection, grants))
            }
        };
        result.map(|(connection, grants)| {
            self.connection = Some(connection);
            grants
        })
    }

    async fn run(
        &self,
        connection: &mut MultiplexedConnection,
        calls: &[Call<'_>],
    ) -> RedisResult<Vec<Grants>> {
        let pipeline = pipeline(self.script.get_hash(), &self.sidecar, calls);
        match send(connection, &pipeline, calls).await {
            // A server that was restarted or flushed. Calls of the same pipeline that did find
            // the script are repeated too: what they were granted is lost, never doubled.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.script.prepare_invoke().load_async(connection).await?;
                send(connection, &pipeline, calls).await
            }
            result => result,
        }
    }
}

async fn send(
    connection: &mut MultiplexedConnection,
    pipeline: &Pipeline,
    calls: &[Call<'_>],
) -> RedisResult<Vec<Grants>> {
    let sent = clock::now();
    let answers: Vec<RedisResult<Vec<u64>>> = pipeline.query_async(connection).await?;
    if calls.is_empty() {
        answers.into_iter().collect::<RedisResult<Vec<_>>>()?;
        return Ok(Vec::new());
    }
    calls.iter().zip(answers).map(|(call, answer)| read(sent, call, &answer?)).collect()
}

/// The calls as they are sent.
pub(super) fn pipeline(script: &str, sidecar: &str, calls: &[Call<'_>]) -> Pipeline {
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
pub(super) fn read(sent: u64, call: &Call<'_>, answer: &[u64]) -> RedisResult<Grants> {
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
    use super::super::plan::tests::limit;
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

    #[test]
    fn an_address_is_shown_without_its_password() {
        let redis = Redis::new("redis://me:secret@mesh:6380/2", Duration::from_millis(20)).expect("a URL");
        assert_eq!(redis.address(), "mesh:6380");
        assert!(Redis::new("http://mesh", Duration::ZERO).is_err());
    }
}
