//! The slots of a Redis Cluster: of which one a key is, and who serves it.

use redis::{Arg, Cmd, Value};

use super::connection::Address;

/// How many there are.
pub(super) const SLOTS: u16 = 1 << 14;

/// Slots from the first to the last, and who serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) server: Address,
}

/// The slot of a key: of what stands in its first braces, if anything does, else of all of it.
pub(super) fn slot(key: &[u8]) -> u16 {
    let inside = key.iter().position(|b| *b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|b| *b == b'}').filter(|close| *close > 0)?;
        Some(&rest[..close])
    });
    crc16(inside.unwrap_or(key)) % SLOTS
}

/// The slot that a call of a script touches; none where it has no key.
pub(super) fn slot_of(call: &Cmd) -> Option<u16> {
    let mut arguments = call.args_iter().skip(2).map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => &[],
    });
    let keys = arguments.next()?;
    (keys != b"0").then(|| arguments.next().map(slot))?
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte) << 8,
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            },
        )
    })
}

/// Reads the answer of CLUSTER SLOTS, which `asked` gave; none if it is no such answer. Ranges
/// without a server are left out.
pub(super) fn ranges(answer: &Value, asked: &Address) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    let mut read = Vec::with_capacity(ranges.len());
    for range in ranges {
        let Value::Array(range) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = range.as_slice() else {
            return None;
        };
        let [host, Value::Int(port), ..] = primary.as_slice() else { return None };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        if first > last || last >= SLOTS {
            return None;
        }
        let Some(port) = u16::try_from(*port).ok().filter(|port| *port != 0) else { continue };
        let host = host_or_same(text(host).unwrap_or_default(), asked);
        read.push(Range { first, last, server: Address { host, port } });
    }
    Some(read)
}

/// Where MOVED and ASK lead, from the text that follows the slot: `host:port`.
pub(super) fn redirect(to: &str, asked: &Address) -> Option<Address> {
    let (host, port) = to.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some(Address { host: host_or_same(host, asked), port: port.parse().ok().filter(|port| *port != 0)? })
}

/// A server that has no name for itself is where it was asked.
fn host_or_same(host: &str, asked: &Address) -> String {
    match host {
        "" | "?" => asked.host.clone(),
        host => host.into(),
    }
}

/// What an answer says in text.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Address {
        Address { host: "n1".into(), port: 7001 }
    }

    #[test]
    fn slots_of_keys() {
        // By the specification of Redis Cluster.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, of) in [
            ("foo", 12182),
            ("{user1000}.following", slot(b"user1000")),
            ("{user1000}.followers", slot(b"user1000")),
            ("foo{{bar}}zap", slot(b"{bar")),
            ("foo{bar}{zap}", slot(b"bar")),
        ] {
            assert_eq!(slot(key.as_bytes()), of, "{key}");
        }
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"), "nothing in the first braces");
        let call = |keys: &[&str]| slot_of(redis::cmd("EVALSHA").arg("0a").arg(keys.len()).arg(keys).arg(5));
        assert_eq!((call(&["{a}:ids", "{a}:b"]), call(&[])), (Some(slot(b"a")), None));
        assert_eq!(slot_of(&redis::cmd("PING")), None);
    }

    #[test]
    fn who_serves_what() {
        let answer = |text: &str| redis::parse_redis_value(text.as_bytes()).expect("a value");
        let text = "*2\r\n*4\r\n:0\r\n:99\r\n*3\r\n$2\r\nh1\r\n:7001\r\n$1\r\nx\r\n*2\r\n$2\r\nh9\r\n:7009\r\n\
                    *3\r\n:100\r\n:16383\r\n*3\r\n$0\r\n\r\n:7002\r\n$1\r\ny\r\n";
        let at = |host: &str, port| Address { host: host.into(), port };
        assert_eq!(
            ranges(&answer(text), &asked()),
            Some(vec![
                Range { first: 0, last: 99, server: at("h1", 7001) },
                Range { first: 100, last: 16383, server: at("n1", 7002) },
            ])
        );
        assert_eq!(ranges(&answer("*0\r\n"), &asked()), Some(vec![]));
        for bad in [
            ":1\r\n",
            "*1\r\n:1\r\n",
            "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\nh\r\n:1\r\n",
            "*1\r\n*3\r\n:-1\r\n:5\r\n*2\r\n$1\r\nh\r\n:1\r\n",
            "*1\r\n*2\r\n:0\r\n:1\r\n",
        ] {
            assert_eq!(ranges(&answer(bad), &asked()), None, "{bad:?}");
        }
    }

    #[test]
    fn redirects() {
        let at = |host: &str, port| Some(Address { host: host.into(), port });
        assert_eq!(redirect("10.0.0.7:6381", &asked()), at("10.0.0.7", 6381));
        assert_eq!(redirect("fd00::7:6381", &asked()), at("fd00::7", 6381));
        assert_eq!(redirect(":6381", &asked()), at("n1", 6381));
        assert_eq!(redirect("?:6381", &asked()), at("n1", 6381));
        for bad in ["", "h", "h:", "h:0", "h:x"] {
            assert_eq!(redirect(bad, &asked()), None, "{bad}");
        }
    }
}
