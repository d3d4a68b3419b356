//! What a request is counted under. Inside the process a key is 128 bits of a keyed hash with
//! secret seeds, so that no client can make two keys meet; in Redis, where every sidecar must
//! find the same name and none may read a header's value, it is a SHA-256 digest.

use std::fmt::Write;
use std::hash::{BuildHasher, Hasher, RandomState};

use aws_lc_rs::digest::{Context, SHA256};

use crate::config::model::{Direction, KeyPart};

use super::Facts;

/// Shards of all keys in Redis. A shard is a slot of Redis Cluster, and one call of the script.
pub(super) const SHARDS: u8 = 16;

/// Hashes keys with this process's seeds.
#[derive(Debug, Default)]
pub(super) struct Seeds(RandomState, RandomState);

impl Seeds {
    /// The key of a request under the limit `limit`.
    pub(super) fn hash(&self, limit: u64, parts: &[KeyPart], facts: &Facts<'_>) -> u128 {
        let (mut high, mut low) = (self.0.build_hasher(), self.1.build_hasher());
        high.write_u64(limit);
        low.write_u64(limit);
        for part in parts {
            each(part, facts, |bytes| {
                high.write(bytes);
                low.write(bytes);
            });
        }
        u128::from(high.finish()) << 64 | u128::from(low.finish())
    }
}

/// The shard and the name in Redis of a request's bucket under the limit that is called `limit` there.
pub(super) fn redis_name(limit: &str, parts: &[KeyPart], facts: &Facts<'_>) -> (u8, Box<str>) {
    let mut digest = Context::new(&SHA256);
    digest.update(limit.as_bytes());
    for part in parts {
        each(part, facts, |bytes| digest.update(bytes));
    }
    let digest = digest.finish();
    (digest.as_ref()[31] % SHARDS, hex(&digest.as_ref()[..12]).into())
}

/// The name in Redis of a limit, which is what makes it the same limit in every sidecar, and the shard of its
/// common bucket.
pub(super) fn limit_name(name: &str, direction: Direction, parts: &[KeyPart]) -> (u8, Box<str>) {
    let mut digest = Context::new(&SHA256);
    digest.update(direction.name().as_bytes());
    for text in std::iter::once(name.to_owned()).chain(parts.iter().map(KeyPart::to_string)) {
        digest.update(&(text.len() as u64).to_le_bytes());
        digest.update(text.as_bytes());
    }
    let digest = digest.finish();
    (digest.as_ref()[31] % SHARDS, hex(&digest.as_ref()[..6]).into())
}

/// Tells texts from others, in every sidecar alike; never 0.
pub(super) fn fingerprint(texts: &[String]) -> u32 {
    let mut digest = Context::new(&SHA256);
    for text in texts {
        digest.update(&(text.len() as u64).to_le_bytes());
        digest.update(text.as_bytes());
    }
    let digest = digest.finish();
    digest.as_ref().iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte)).max(1)
}

/// The value of one part of a key; none is not the same as an empty one.
pub(super) fn value<'a>(part: &KeyPart, facts: &Facts<'a>) -> Option<&'a [u8]> {
    match part {
        KeyPart::Caller => Some(facts.caller.as_bytes()).filter(|id| !id.is_empty()),
        KeyPart::Host => Some(facts.host.as_bytes()),
        KeyPart::Path => Some(facts.path.as_bytes()),
        KeyPart::Method => Some(facts.method.as_bytes()),
        KeyPart::Header(name) => facts.said.field(name),
        KeyPart::Claim(name) => facts.said.claim(name).map(str::as_bytes),
    }
}

/// Feeds one part of a key: its length first, so that no two keys read alike.
fn each(part: &KeyPart, facts: &Facts<'_>, mut feed: impl FnMut(&[u8])) {
    let value = value(part, facts);
    feed(&value.map_or(u64::MAX, |value| value.len() as u64).to_le_bytes());
    feed(value.unwrap_or_default());
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request with a tenant, or with none.
    struct Of(Option<&'static [u8]>);

    impl crate::limit::Said for Of {
        fn field(&self, _: &str) -> Option<&[u8]> {
            self.0
        }
    }

    fn facts<'a>(caller: &'a str, host: &'a str, said: &'a Of) -> Facts<'a> {
        Facts { host, port: None, path: "/", method: "GET", caller, said }
    }

    #[test]
    fn different_requests_have_different_keys() {
        let seeds = Seeds::default();
        let parts = [KeyPart::Caller, KeyPart::Host, KeyPart::Header("x-tenant".into())];
        let all = [
            facts("ab", "c", &Of(None)),
            facts("a", "bc", &Of(None)),
            facts("ab", "c", &Of(Some(b""))),
            facts("ab", "c", &Of(Some(b"t"))),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(seeds.hash(1, &parts, a) == seeds.hash(1, &parts, b), i == j);
                assert_eq!(redis_name("l", &parts, a) == redis_name("l", &parts, b), i == j);
            }
            assert_ne!(seeds.hash(1, &parts, a), seeds.hash(2, &parts, a), "another limit");
            assert_ne!(redis_name("l", &parts, a), redis_name("m", &parts, a), "another limit");
            assert_eq!(redis_name("l", &parts, a).1.len(), 24);
        }
    }

    #[test]
    fn a_limit_is_the_same_in_every_sidecar() {
        let parts = [KeyPart::Caller, KeyPart::Header("x-tenant".into())];
        let name = limit_name("orders", Direction::Outbound, &parts);
        assert_eq!(name, limit_name("orders", Direction::Outbound, &parts));
        assert_ne!(name, limit_name("orders", Direction::Inbound, &parts));
        assert_ne!(name, limit_name("orders", Direction::Outbound, &parts[..1]));
        assert_eq!(name.1.len(), 12);
    }
}
