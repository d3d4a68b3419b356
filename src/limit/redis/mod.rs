//! The conversation with Redis: one server, the master of sentinels, or a cluster; the script, and
//! calls of it.
//!
//! Promise: every [`Redis::run`] ends, in answers or in an error, within the times that
//! connections and answers may take; after an error the connection is made anew, by whoever comes
//! next. Any number may ask at the same time.

mod access;
mod cluster;
mod connection;
mod script;
mod sentinel;
mod server;
mod slots;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, RedisResult, Value};

use crate::config::model;
use crate::config::units::RedisUrl;

pub(crate) use self::access::faults;
#[cfg(test)]
pub(super) use self::script::SCRIPT;
pub(super) use self::script::{Call, Caller, Group, read, read_greeting};

use self::access::Access;
use self::cluster::Cluster;
use self::connection::Address;
use self::sentinel::Sentinels;
use self::server::{Route, Server};
use super::key::SHARDS;

/// The least time that a connection or an answer is waited for, whatever the budget of requests:
/// a late answer shows that Redis lives, and saves a new connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// A Redis. Its clones share its connections.
#[derive(Clone)]
pub(super) struct Redis {
    way: Way,
    address: Arc<str>,
    script: Arc<Script>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

#[derive(Clone)]
enum Way {
    One(Arc<Server>),
    Cluster(Arc<Cluster>),
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Answers {
    /// [`clock::now`](super::clock::now) from before the first of the commands was sent for the
    /// first time: what is granted counts from there.
    pub(super) sent: u64,
    /// The answer to each command, in their order.
    pub(super) values: Vec<RedisResult<Value>>,
}

/// The script, and the name that Redis calls it by.
struct Script {
    code: &'static str,
    hash: String,
}

impl Redis {
    /// Prepares connections; nothing is sent yet. The configuration says in exactly one way where
    /// Redis is, or the error says that it does not.
    pub(super) fn new(redis: &model::Redis) -> Result<Self, String> {
        let patience = PATIENCE.max(redis.budget.0);
        let access = Arc::new(Access::to_redis(redis));
        let (way, address) = match (&redis.url, &redis.sentinel, &redis.cluster) {
            (Some(url), None, None) => {
                let address = at(url, 6379);
                (Route::At(address.clone()).to(access, patience), address.to_string())
            }
            (None, Some(sentinel), None) => {
                let addresses = all(sentinel.urls.as_slice(), 26379)?;
                let shown = format!("{} by sentinels {}", sentinel.master, shown(&addresses));
                let of_sentinels = Arc::new(Access::to_sentinels(redis, sentinel));
                let sentinels = Sentinels::new(sentinel.master.clone(), addresses, of_sentinels);
                (Route::Named(Arc::new(sentinels)).to(access, patience), shown)
            }
            (None, None, Some(nodes)) => {
                let seeds = all(nodes.as_slice(), 6379)?;
                let shown = format!("cluster {}", shown(&seeds));
                (Way::Cluster(Arc::new(Cluster::new(seeds, access, patience))), shown)
            }
            _ => return Err("redis: expected one of `url`, `sentinel` and `cluster`".into()),
        };
        let hash = redis::Script::new(script::SCRIPT).get_hash().to_owned();
        Ok(Self { way, address: address.into(), script: Arc::new(Script { code: script::SCRIPT, hash }) })
    }

    /// Where it is, for the log.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The script's name for EVALSHA.
    pub(super) fn script(&self) -> &str {
        &self.script.hash
    }

    /// How many may ask apart from each other, so that what is slow for one is not for the others.
    pub(super) fn lanes(&self) -> usize {
        match self.way {
            Way::One(_) => 1,
            // A shard of keys is one slot, and moves by itself.
            Way::Cluster(_) => usize::from(SHARDS),
        }
    }

    /// Runs calls of the script, each of one slot or without a key, in one round trip to each server
    /// concerned. An error if no call could be made; what became of each is in the answers.
    ///
    /// A server that lacks the script is given it, and the calls that missed it are repeated. Calls
    /// whose slot moves are sent on. A call that was made is never repeated.
    pub(super) async fn run(&self, commands: &[Cmd]) -> RedisResult<Answers> {
        match &self.way {
            Way::One(server) => {
                let commands: Vec<&Cmd> = commands.iter().collect();
                server.run(&commands, false, &self.script).await
            }
            Way::Cluster(cluster) => cluster.run(commands, &self.script).await,
        }
    }
}

impl Route {
    fn to(self, access: Arc<Access>, patience: Duration) -> Way {
        Way::One(Arc::new(Server::new(self, access, patience)))
    }
}

fn at(url: &RedisUrl, port: u16) -> Address {
    Address { host: url.host.clone(), port: url.port.unwrap_or(port) }
}

fn all(urls: &[RedisUrl], port: u16) -> Result<Vec<Address>, String> {
    match urls {
        [] => Err("redis: expected at least one URL".into()),
        urls => Ok(urls.iter().map(|url| at(url, port)).collect()),
    }
}

fn shown(addresses: &[Address]) -> String {
    addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let redis = |text: &str| {
            let model = crate::config::parse(&format!("redis: {{ {text} }}"), "t").expect("sound");
            Redis::new(&model.redis.expect("a Redis")).expect("one way")
        };
        let one = redis("url: 'redis://me:secret@mesh:6380/2'");
        assert_eq!((one.address(), one.lanes()), ("mesh:6380", 1));
        let named =
            redis("sentinel: { master: limits, urls: ['redis://:secret@s1', 'redis://:secret@[::1]:1'] }");
        assert_eq!((named.address(), named.lanes()), ("limits by sentinels s1:26379, [::1]:1", 1));
        let cluster = redis("cluster: ['rediss://n1', 'rediss://n2:7']");
        assert_eq!((cluster.address(), cluster.lanes()), ("cluster n1:6379, n2:7", 16));
        let mut none = model::Redis::at("redis://h".parse().expect("a URL"));
        none.url = None;
        assert!(Redis::new(&none).is_err());
    }
}
