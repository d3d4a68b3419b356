//! What an answer means: records, that there are none, or nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record};

use super::Service;
use super::kept::Denial;
use super::record::{Datum, Kind};

/// What an answer means.
#[derive(Debug)]
pub(super) enum Meaning {
    Found { records: Vec<Datum>, ttl: Duration },
    Denied { what: Denial, ttl: Option<Duration> },
    Failed { trouble: Trouble, error: NetError },
}

/// Why there was no answer that means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Timeout,
    Unreachable,
    ServFail,
    Refused,
    Malformed,
}

impl Trouble {
    pub(super) const ALL: [Trouble; 5] =
        [Trouble::Timeout, Trouble::Unreachable, Trouble::ServFail, Trouble::Refused, Trouble::Malformed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Trouble::Timeout => "timeout",
            Trouble::Unreachable => "unreachable",
            Trouble::ServFail => "servfail",
            Trouble::Refused => "refused",
            Trouble::Malformed => "malformed",
        }
    }

    /// Whether the server said nothing at all.
    pub(super) fn is_silence(self) -> bool {
        matches!(self, Trouble::Timeout | Trouble::Unreachable)
    }

    /// Of a query that was sent by others than hickory.
    pub(super) fn of_io(error: &io::Error) -> Trouble {
        match error.kind() {
            io::ErrorKind::TimedOut => Trouble::Timeout,
            io::ErrorKind::InvalidData => Trouble::Malformed,
            _ => Trouble::Unreachable,
        }
    }

    /// Of a server that says that it cannot say.
    pub(super) fn of_code(code: ResponseCode) -> Trouble {
        match code {
            ResponseCode::ServFail => Trouble::ServFail,
            ResponseCode::Refused => Trouble::Refused,
            _ => Trouble::Malformed,
        }
    }

    fn of(error: &NetError) -> Trouble {
        match error {
            NetError::Timeout => Trouble::Timeout,
            NetError::Io(_) | NetError::NoConnections => Trouble::Unreachable,
            NetError::Dns(DnsError::ResponseCode(code)) => Trouble::of_code(*code),
            _ => Trouble::Malformed,
        }
    }
}

/// What a server's answer to a question means.
pub(super) fn of(answer: Result<Lookup, NetError>, name: &Name, kind: Kind) -> Meaning {
    let error = match answer {
        Ok(lookup) => match chain(lookup.answers(), lookup.additionals(), name, kind) {
            Some((records, ttl)) if records.is_empty() => {
                return Meaning::Denied { what: Denial::Data, ttl: Some(ttl) };
            }
            Some((records, ttl)) => return Meaning::Found { records, ttl },
            None => NetError::Message("its answer has no such record of that name"),
        },
        Err(error) => error,
    };
    match denied(&error) {
        Some((what, ttl)) => Meaning::Denied { what, ttl },
        None => Meaning::Failed { trouble: Trouble::of(&error), error },
    }
}

/// What an answer says of whether its server could read the query, EDNS in it (RFC 6891 section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edns {
    Read,
    Unread,
    /// There was no answer.
    Unsaid,
}

/// See [`Edns`].
pub(super) fn edns(answer: &Result<Lookup, NetError>) -> Edns {
    use ResponseCode::{FormErr, NotImp};
    match answer {
        Err(NetError::Dns(DnsError::ResponseCode(FormErr | NotImp))) => Edns::Unread,
        Err(error) if Trouble::of(error).is_silence() => Edns::Unsaid,
        _ => Edns::Read,
    }
}

/// A denial in words.
pub(super) fn denial(server: SocketAddr, name: &Name, kind: Kind, what: Denial) -> String {
    let kind = kind.record_type();
    match what {
        Denial::Name => format!("{server} says that {name} does not exist ({kind})"),
        Denial::Data => format!("{server} says that {name} has no such record ({kind})"),
    }
}

/// A failure in words.
pub(super) fn complaint(
    server: SocketAddr,
    name: &Name,
    kind: Kind,
    trouble: Trouble,
    error: &NetError,
    limit: Duration,
) -> String {
    let kind = kind.record_type();
    match (trouble, error) {
        (Trouble::Timeout, _) => format!("{server} did not answer within {limit:?} ({name} {kind})"),
        (_, NetError::Dns(DnsError::ResponseCode(code))) => {
            format!("{server} answered {} ({name} {kind})", code.to_str())
        }
        (_, error) => format!("{server}: {error} ({name} {kind})"),
    }
}

/// The records at the end of the chain of aliases that begins at `name`, with the least TTL of
/// the whole chain. Of services, with the addresses that the server added for their targets.
fn chain(answers: &[Record], added: &[Record], name: &Name, kind: Kind) -> Option<(Vec<Datum>, Duration)> {
    let mut at = name;
    let mut ttl = u32::MAX;
    // As many steps as there are records: a loop of aliases ends.
    for _ in 0..=answers.len() {
        let of_kind = |record: &&Record| record.name == *at && record.record_type() == kind.record_type();
        let mut some = false;
        let mut records = Vec::new();
        for record in answers.iter().filter(of_kind) {
            some = true;
            ttl = ttl.min(sane(record.ttl));
            match &record.data {
                // "The service is decidedly not available at this domain" (RFC 2782).
                RData::SRV(service) if service.target.is_root() => {}
                RData::SRV(service) => {
                    let (addresses, least) = glue(added, &service.target);
                    ttl = ttl.min(least);
                    records.push(Datum::Service(Service {
                        priority: service.priority,
                        weight: service.weight,
                        port: service.port,
                        target: text(&service.target).into(),
                        addresses: addresses.into(),
                    }));
                }
                data => records.extend(data.ip_addr().map(Datum::Address)),
            }
        }
        if some {
            return Some((records, Duration::from_secs(ttl.into())));
        }
        let (target, alias_ttl) = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *at => Some((&target.0, sane(record.ttl))),
            _ => None,
        })?;
        ttl = ttl.min(alias_ttl);
        at = target;
    }
    None
}

/// A TTL with its highest bit set is none (RFC 2181 section 8).
fn sane(ttl: u32) -> u32 {
    if i32::try_from(ttl).is_ok() { ttl } else { 0 }
}

/// The addresses of a target that came along, and the least of their TTLs.
fn glue(added: &[Record], target: &Name) -> (Vec<IpAddr>, u32) {
    let of_target = || added.iter().filter(|record| record.name == *target);
    let mut addresses: Vec<IpAddr> = of_target().filter_map(|record| record.data.ip_addr()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ttl = of_target().filter(|record| record.data.ip_addr().is_some()).map(|record| record.ttl).min();
    (addresses, ttl.unwrap_or(u32::MAX))
}

/// In lower case, without the final dot.
fn text(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    text.strip_suffix('.').map_or(text.clone(), str::to_owned)
}

/// Whether an error is a server's word that there is nothing, with its negative TTL (RFC 2308
/// section 5). A referral is not: that server does not know.
fn denied(error: &NetError) -> Option<(Denial, Option<Duration>)> {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else { return None };
    let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()));
    match none.response_code {
        ResponseCode::NXDomain => Some((Denial::Name, ttl)),
        ResponseCode::NoError if none.ns.is_some() && none.soa.is_none() => None,
        ResponseCode::NoError => Some((Denial::Data, ttl)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_resolver::net::NoRecords;
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::rdata::{CNAME, SRV};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn address(owner: &str, ttl: u32, ip: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::from(ip.parse::<IpAddr>().unwrap()))
    }

    fn alias(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn service(owner: &str, ttl: u32, port: u16, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::SRV(SRV::new(1, 2, port, name(target))))
    }

    #[test]
    fn the_chain_is_followed_in_any_order_and_its_least_ttl_counts() {
        let answers = [
            address("c.", 60, "10.0.0.1"),
            alias("b.", 7, "c."),
            address("evil.", 1, "10.0.0.66"),
            alias("a.", 90, "b."),
            address("c.", 50, "10.0.0.2"),
        ];
        let (addresses, ttl) = chain(&answers, &[], &name("A."), Kind::V4).unwrap();
        let ip = |text: &str| Datum::Address(text.parse().unwrap());
        assert_eq!(addresses, [ip("10.0.0.1"), ip("10.0.0.2")]);
        assert_eq!(ttl, Duration::from_secs(7));
        assert_eq!(chain(&answers, &[], &name("c."), Kind::V4).unwrap().1, Duration::from_secs(50));
        assert_eq!(chain(&answers, &[], &name("a."), Kind::V6), None);
        let turning = [alias("a.", 1, "b."), alias("b.", 1, "a.")];
        assert_eq!(chain(&turning, &[], &name("a."), Kind::V4), None);
    }

    #[test]
    fn services_bring_the_addresses_that_were_added_and_their_ttl() {
        let answers =
            [service("_http._tcp.a.", 30, 8080, "One.a."), service("_http._tcp.a.", 30, 8081, "two.b.")];
        let added =
            [address("one.a.", 9, "10.0.0.1"), address("one.a.", 20, "fd00::1"), address("x.", 1, "::2")];
        let (records, ttl) = chain(&answers, &added, &name("_HTTP._tcp.a."), Kind::Services).unwrap();
        assert_eq!(ttl, Duration::from_secs(9));
        let Datum::Service(one) = &records[0] else { panic!("{records:?}") };
        assert_eq!((one.priority, one.weight, one.port, &*one.target), (1, 2, 8080, "one.a"));
        assert_eq!(*one.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        let Datum::Service(two) = &records[1] else { panic!("{records:?}") };
        assert!(two.addresses.is_empty(), "to be asked for");
    }

    #[test]
    fn a_service_that_is_decidedly_not_there_is_none() {
        let answers = [service("_http._tcp.a.", 30, 0, ".")];
        assert_eq!(
            chain(&answers, &[], &name("_http._tcp.a."), Kind::Services),
            Some((Vec::new(), Duration::from_secs(30)))
        );
    }

    #[test]
    fn only_a_servers_word_is_a_denial() {
        let none = |code| NoRecords::new(Query::default(), code);
        let what = |none: NoRecords| denied(&none.into()).map(|(what, _)| what);
        assert_eq!(what(none(ResponseCode::NXDomain)), Some(Denial::Name));
        assert_eq!(what(none(ResponseCode::NoError)), Some(Denial::Data));
        assert_eq!(what(none(ResponseCode::Unknown(42))), None);
        assert!(denied(&NetError::Timeout).is_none());
        let mut referral = none(ResponseCode::NoError);
        referral.ns = Some(Arc::new([]));
        assert_eq!(what(referral), None);
    }
}
