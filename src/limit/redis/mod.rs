//! The one conversation with Redis: a connection, the script, and a pipeline of its calls.
//!
//! Promise: every call of [`Redis::ask`] ends, in an answer or in an error, within the connection
//! and response timeouts; after an error the connection is made anew.

mod script;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisResult, Script, ServerErrorKind, Value,
};

use crate::config::model;

use super::clock;

pub(super) use self::script::{Call, Caller, Group, SCRIPT, read, read_greeting};

/// The least time that a connection or an answer is waited for, whatever the budget of requests:
/// a late answer shows that Redis lives, and saves a new connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// A connection to one Redis.
#[derive(Clone)]
pub(super) struct Redis {
    client: Client,
    config: AsyncConnectionConfig,
    connection: Option<MultiplexedConnection>,
    script: std::sync::Arc<Script>,
}

pub(super) struct Answers {
    pub(super) sent: u64,
    pub(super) values: Vec<RedisResult<Value>>,
}

impl Redis {
    pub(super) fn new(written: &model::Redis) -> Result<Self, String> {
        let patience = PATIENCE.max(written.budget.0);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(patience));
        Ok(Self {
            client: Client::open(&*written.url)
                .map_err(|error| format!("redis.url is not the address of a Redis: {error}"))?,
            config,
            connection: None,
            script: Script::new(SCRIPT).into(),
        })
    }

    pub(super) fn lanes(&self) -> usize {
        1
    }

    /// Where it is, without the password that the URL may hold.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    pub(super) async fn run(&mut self, commands: &[Cmd]) -> RedisResult<Answers> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.client.get_multiplexed_async_connection_with_config(&self.config).await?,
        };
        let mut pipeline = Pipeline::with_capacity(commands.len());
        commands.iter().for_each(|command| {
            pipeline.add_command(command.clone());
        });
        pipeline.ignore_errors();
        let sent = clock::now();
        let mut values: Vec<RedisResult<Value>> = pipeline.query_async(&mut connection).await?;
        let missing = |value: &RedisResult<Value>| matches!(value, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript));
        if values.iter().any(missing) {
            self.script.prepare_invoke().load_async(&mut connection).await?;
            values = pipeline.query_async(&mut connection).await?;
        }
        self.connection = Some(connection);
        Ok(Answers { sent, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let redis = Redis::new(&model::Redis::at("redis://me:secret@mesh:6380/2")).expect("a URL");
        assert_eq!(redis.address(), "mesh:6380");
        assert!(Redis::new(&model::Redis::at("http://mesh")).is_err());
    }
}
