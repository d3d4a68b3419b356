//! The master that sentinels name. It is asked for at every connect, of each sentinel in turn,
//! until one names a master that can be connected to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use redis::{RedisResult, Value};

use super::access::Access;
use super::connection::{Address, Connection, failure};
use super::slots::text;

/// Sentinels, and the name of the master they watch.
pub(super) struct Sentinels {
    master: String,
    addresses: Vec<Address>,
    access: Arc<Access>,
    /// Who is asked first, counted on: not again the one whose master was lost.
    next: AtomicUsize,
}

impl Sentinels {
    /// Of `addresses` there is at least one.
    pub(super) fn new(master: String, addresses: Vec<Address>, access: Arc<Access>) -> Self {
        let next = AtomicUsize::new(fastrand::usize(..1 << 16));
        Self { master, addresses, access, next }
    }

    /// Connects to the master. Each sentinel, and each master that is named, may take `patience`.
    pub(super) async fn connect(&self, access: &Arc<Access>, patience: Duration) -> RedisResult<Connection> {
        let first = self.next.fetch_add(1, Relaxed);
        let mut whys = Vec::new();
        let mut dead = Vec::new();
        for i in 0..self.addresses.len() {
            let sentinel = &self.addresses[first.wrapping_add(i) % self.addresses.len()];
            match self.ask(sentinel, patience).await {
                Err(error) => whys.push(error.to_string()),
                Ok(master) if dead.contains(&master) => {}
                Ok(master) => match Connection::new(&master, access, patience).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => {
                        whys.push(format!("the master is {error}"));
                        dead.push(master);
                    }
                },
            }
        }
        Err(failure(format_args!("no master `{}` by its sentinels: {}", self.master, whys.join("; "))))
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
