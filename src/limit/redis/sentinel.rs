//! The master that sentinels name. They are asked at every connect, all at once, and most of them must name
//! the same: one that is cut off from the others may still take the old master for it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{RedisResult, Value};

use super::access::Access;
use super::connection::{Address, Connection, failure};
use super::slots::text;

/// Sentinels, and the name of the master they watch.
pub(super) struct Sentinels {
    master: String,
    addresses: Vec<Address>,
    access: Arc<Access>,
}

impl Sentinels {
    /// Of `addresses` there is at least one.
    pub(super) fn new(master: String, addresses: Vec<Address>, access: Arc<Access>) -> Self {
        Self { master, addresses, access }
    }

    /// Connects to the master. The sentinels may take `patience`, and so may the master.
    pub(super) async fn connect(&self, access: &Arc<Access>, patience: Duration) -> RedisResult<Connection> {
        let master = self.named(patience).await?;
        Connection::new(&master, access, patience)
            .await
            .map_err(|error| failure(format_args!("the master `{}` is {error}", self.master)))
    }

    /// The master by most of the sentinels.
    async fn named(&self, patience: Duration) -> RedisResult<Address> {
        let mut answers: FuturesUnordered<_> =
            self.addresses.iter().map(|sentinel| self.ask(sentinel, patience)).collect();
        let (mut named, mut whys): (Vec<Address>, Vec<String>) = Default::default();
        while let Some(answer) = answers.next().await {
            match answer {
                Err(error) => whys.push(error.to_string()),
                Ok(master) => {
                    named.push(master.clone());
                    if 2 * named.iter().filter(|other| **other == master).count() > self.addresses.len() {
                        return Ok(master);
                    }
                }
            }
        }
        let named = named.iter().map(|master| format!("one names {master}"));
        let mut said: Vec<String> = named.chain(whys).collect();
        // Whoever answered first: the same words are no news to the log.
        said.sort();
        let (master, all) = (&self.master, self.addresses.len());
        Err(failure(format_args!("no master `{master}` by most of {all} sentinels: {}", said.join("; "))))
    }

    async fn ask(&self, sentinel: &Address, patience: Duration) -> RedisResult<Address> {
        let connection = Connection::new(sentinel, &self.access, patience).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        match connection.query(command).await? {
            Value::Nil => Err(connection.failure(format_args!("it knows no master `{}`", self.master))),
            answer => address(&answer).ok_or_else(|| connection.failure("its answer is no address")),
        }
    }
}

/// A host and a port.
fn address(answer: &Value) -> Option<Address> {
    let Value::Array(parts) = answer else { return None };
    let [host, port] = parts.as_slice() else { return None };
    let host = text(host).filter(|host| !host.is_empty())?;
    Some(Address { host: host.into(), port: text(port)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_none() {
        let answer = |text: &str| redis::parse_redis_value(text.as_bytes()).expect("a value");
        let good = address(&answer("*2\r\n$8\r\n10.0.0.7\r\n$4\r\n6379\r\n"));
        assert_eq!(good, Some(Address { host: "10.0.0.7".into(), port: 6379 }));
        for bad in [
            "*0\r\n",
            "*1\r\n$1\r\na\r\n",
            "*2\r\n$1\r\na\r\n$1\r\nb\r\n",
            "*2\r\n$0\r\n\r\n$1\r\n1\r\n",
            ":1\r\n",
        ] {
            assert_eq!(address(&answer(bad)), None, "{bad:?}");
        }
    }
}
