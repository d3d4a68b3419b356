//! The defaults of the configuration, in one place: what a careful operator would choose.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::model::*;
use super::units::{ByteRate, OneOrMany, Percent, Rate, Size, Time};

/// Ports of protocols in which the server speaks first, or that are known not to be HTTP: SMTP,
/// submission, MySQL, PostgreSQL, Redis, Elasticsearch transport, memcached.
const OPAQUE_PORTS: [u16; 7] = [25, 587, 3306, 5432, 6379, 9300, 11211];

const DETECT_TIMEOUT: Time = Time(Duration::from_millis(100));

/// One lost SYN is sent again after a second.
const CONNECT_TIMEOUT: Time = seconds(2);

const MAX_CONNECTIONS: NonZeroU32 = NonZeroU32::new(16_384).expect("not zero");

const fn seconds(n: u64) -> Time {
    Time(Duration::from_secs(n))
}

fn both(v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> OneOrMany<SocketAddr> {
    OneOrMany::Many(vec![SocketAddr::new(IpAddr::V4(v4), port), SocketAddr::new(IpAddr::V6(v6), port)])
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            outbound: both(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 15001),
            inbound: both(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED, 15006),
            dns: OneOrMany::One(SocketAddr::from((Ipv4Addr::LOCALHOST, 15053))),
            admin: OneOrMany::One(SocketAddr::from((Ipv4Addr::LOCALHOST, 15000))),
            probes: OneOrMany::One(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15020))),
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            domains: BTreeMap::new(),
            min_ttl: seconds(0),
            max_ttl: seconds(300),
            max_negative_ttl: seconds(30),
            jitter: Percent(5),
            stale: seconds(3600),
            timeout: seconds(2),
            resolution_timeout: seconds(10),
            answer_timeout: Time(Duration::from_millis(1800)),
            recheck: seconds(10),
            mixed_case: false,
        }
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            on_mismatch: OnMismatch::default(),
            opaque_ports: OPAQUE_PORTS.into(),
            detect_timeout: DETECT_TIMEOUT,
            max_connections: MAX_CONNECTIONS,
            connect_timeout: CONNECT_TIMEOUT,
            http: HttpOverrides::default(),
        }
    }
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            mtls: None,
            allow: None,
            capacity: None,
            max_in_flight: None,
            probes: Vec::new(),
            opaque_ports: OPAQUE_PORTS.into(),
            detect_timeout: DETECT_TIMEOUT,
            max_connections: MAX_CONNECTIONS,
            connect_timeout: CONNECT_TIMEOUT,
            http: HttpOverrides::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            max_header_bytes: Size(64 << 10),
            max_headers: NonZeroU32::new(100).expect("not zero"),
            max_streams: NonZeroU32::new(1000).expect("not zero"),
            header_timeout: seconds(10),
            body_timeout: seconds(300),
            min_body_rate: ByteRate(Some(Rate { count: 600, per: Duration::from_secs(60) })),
            idle_timeout: seconds(3600),
            max_connection_age: seconds(3600),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { accept: seconds(5), timeout: seconds(30) }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            errors: NonZeroU32::new(5).expect("not zero"),
            lost: NonZeroU32::new(3).expect("not zero"),
            ratio: Percent(20),
            share: Percent(30),
            pause: seconds(2),
            longest: seconds(120),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { requests: 1024, time: seconds(1) }
    }
}

impl Default for PathMatch {
    fn default() -> Self {
        PathMatch::Prefix("/".into())
    }
}

impl Upstream {
    /// An upstream of which only the address is known.
    pub fn at(address: super::units::HostPort) -> Self {
        Self {
            address,
            endpoints: None,
            slow_start: Self::default_slow_start(),
            mtls: None,
            capacity: None,
            ejection: Ejection::default(),
            queue: Queue::default(),
            subset: None,
            max_in_flight: None,
            max_connections: None,
            retry_budget: RetryBudget::default(),
            connect_timeout: Self::default_connect_timeout(),
            keep_alive: KeepAlive::default(),
            idle_timeout: Self::default_idle_timeout(),
            peer_timeout: Self::default_peer_timeout(),
        }
    }

    pub(super) fn default_slow_start() -> Time {
        seconds(10)
    }

    pub(super) fn default_connect_timeout() -> Time {
        CONNECT_TIMEOUT
    }

    pub(super) fn default_idle_timeout() -> Time {
        seconds(300)
    }

    pub(super) fn default_peer_timeout() -> Time {
        seconds(10)
    }
}

impl Mtls {
    pub(super) fn default_mode() -> MtlsMode {
        MtlsMode::Require
    }
}

impl Route {
    pub(super) fn default_host() -> OneOrMany<String> {
        OneOrMany::One("*".into())
    }
}

impl Default for Retries {
    fn default() -> Self {
        Retries::Most(RetryRules::default().most)
    }
}

impl Default for RetryRules {
    fn default() -> Self {
        Self {
            most: 2,
            on: vec![RetryOn::Connect, RetryOn::Refused, RetryOn::Reset],
            try_timeout: None,
            backoff: Backoff::default(),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Time(Duration::from_millis(20)), most: Time(Duration::from_millis(500)) }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { share: Percent(20), least: Rate { count: 10, per: Duration::from_secs(1) } }
    }
}

impl Jwt {
    pub(super) fn default_leeway() -> Time {
        seconds(60)
    }
}

impl Redis {
    pub(super) fn default_budget() -> Time {
        Time(Duration::from_millis(20))
    }

    pub(super) fn default_prefix() -> String {
        "pannier".into()
    }
}
