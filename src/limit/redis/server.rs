//! One server and the one connection to it, which everyone shares. Who needs it while it is being
//! made waits for that same attempt, and has its failure too: nobody tries twice what has failed
//! just now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::super::clock;
use super::access::Access;
use super::connection::{Address, Connection, said};
use super::sentinel::Sentinels;
use super::{Answers, Script};

/// A server, by its address or as the master of sentinels.
pub(super) struct Server {
    route: Route,
    access: Arc<Access>,
    patience: Duration,
    attempt: Mutex<Attempt>,
}

/// How the server is found.
#[derive(Clone)]
pub(super) enum Route {
    /// It is always there.
    At(Address),
    /// Whichever the sentinels name.
    Named(Arc<Sentinels>),
}

/// The newest connection, or the attempt to make it.
#[derive(Default)]
struct Attempt {
    number: u64,
    connecting: Option<Shared<BoxFuture<'static, RedisResult<Connection>>>>,
}

impl Server {
    pub(super) fn new(route: Route, access: Arc<Access>, patience: Duration) -> Self {
        Self { route, access, patience, attempt: Mutex::default() }
    }

    /// Where it is, if that is known.
    pub(super) fn address(&self) -> Option<&Address> {
        match &self.route {
            Route::At(address) => Some(address),
            Route::Named(_) => None,
        }
    }

    /// Is there a connection that has not failed yet?
    pub(super) fn is_connected(&self) -> bool {
        let attempt = self.attempt();
        attempt.connecting.as_ref().is_some_and(|made| matches!(made.peek(), Some(Ok(_))))
    }

    /// Sends the commands as one; `sent` is from before they left. With `asking`, as
    /// [`Connection::ask`].
    pub(super) async fn run(&self, commands: &[&Cmd], asking: bool, script: &Script) -> RedisResult<Answers> {
        let (number, connection) = self.connection().await?;
        let sent = clock::now();
        let values = self.unless_failed(number, connection.ask(commands, asking, script).await)?;
        match values.iter().find_map(|value| value.as_ref().err().filter(|error| is_the_servers(error))) {
            None => Ok(Answers { sent, values }),
            Some(error) => {
                self.forget(number);
                Err(connection.failure(said(error)))
            }
        }
    }

    /// Sends a command that is none of the script's.
    pub(super) async fn query(&self, command: Cmd) -> RedisResult<Value> {
        let (number, connection) = self.connection().await?;
        self.unless_failed(number, connection.query(command).await)
    }

    async fn connection(&self) -> RedisResult<(u64, Connection)> {
        let (number, connecting) = {
            let mut attempt = self.attempt();
            match &attempt.connecting {
                Some(connecting) => (attempt.number, connecting.clone()),
                None => {
                    let connecting = self.connect().shared();
                    attempt.number += 1;
                    attempt.connecting = Some(connecting.clone());
                    (attempt.number, connecting)
                }
            }
        };
        let made = self.unless_failed(number, connecting.await)?;
        Ok((number, made))
    }

    fn connect(&self) -> BoxFuture<'static, RedisResult<Connection>> {
        let (route, access, patience) = (self.route.clone(), self.access.clone(), self.patience);
        match route {
            Route::At(address) => async move { Connection::new(&address, &access, patience).await }.boxed(),
            Route::Named(sentinels) => async move { sentinels.connect(&access, patience).await }.boxed(),
        }
    }

    /// Whatever failed, the next who comes connects anew.
    fn unless_failed<T>(&self, number: u64, result: RedisResult<T>) -> RedisResult<T> {
        if result.is_err() {
            self.forget(number);
        }
        result
    }

    /// Gives up the connection of this number, unless there is a newer one.
    fn forget(&self, number: u64) {
        let mut attempt = self.attempt();
        if attempt.number == number {
            attempt.connecting = None;
        }
    }

    /// The attempt is whole whenever the lock is free.
    fn attempt(&self) -> MutexGuard<'_, Attempt> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does the error say that this server, or this connection, cannot be used now, whatever it is asked?
/// A script's error carries that of the command inside it, in Redis before 7 only in its text.
fn is_the_servers(error: &RedisError) -> bool {
    const CODES: [&str; 5] = ["READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS", "NOAUTH"];
    let by_kind = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        )
    );
    let within = |text: &str| CODES.iter().any(|code| text.contains(&format!("-{code} ")));
    by_kind || error.code().is_some_and(|code| CODES.contains(&code)) || error.detail().is_some_and(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error is a value");
        value.extract_error().expect_err("an error")
    }

    #[test]
    fn which_errors_are_the_servers() {
        for line in [
            "READONLY You can't write against a read only replica. script: f, on @user_script:1.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "LOADING Redis is loading the dataset in memory",
            "NOREPLICAS Not enough good replicas to write.",
            "NOAUTH Authentication required.",
            "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write",
        ] {
            assert!(is_the_servers(&error(line)), "{line}");
        }
        for line in [
            "NOSCRIPT No matching script. Please use EVAL.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MOVED 1 h:1",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
        ] {
            assert!(!is_the_servers(&error(line)), "{line}");
        }
    }
}
