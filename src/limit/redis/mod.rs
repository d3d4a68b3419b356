//! The one conversation with Redis: a connection, the script, and a pipeline of its calls.
//!
//! Promise: every call of [`Redis::ask`] ends, in an answer or in an error, within the connection
//! and response timeouts; after an error the connection is made anew.

mod script;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, Pipeline, RedisResult, Script, ServerErrorKind};

use super::clock;

pub(super) use self::script::{Call, Grants, SCRIPT, pipeline, read};

/// The least time that a connection or an answer is waited for, whatever the budget of requests:
/// a late answer shows that Redis lives, and saves a new connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// A connection to one Redis.
pub(super) struct Redis {
    client: Client,
    config: AsyncConnectionConfig,
    connection: Option<MultiplexedConnection>,
    script: Script,
    /// Tells this sidecar from others.
    sidecar: String,
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let redis = Redis::new("redis://me:secret@mesh:6380/2", Duration::from_millis(20)).expect("a URL");
        assert_eq!(redis.address(), "mesh:6380");
        assert!(Redis::new("http://mesh", Duration::ZERO).is_err());
    }
}
