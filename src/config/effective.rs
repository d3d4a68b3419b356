//! What a configuration means where it says nothing. One answer for `proxy`, which runs it, and
//! `check`, which explains it.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use super::model::{Direction, Http, InboundMtls, KeyRate, Limit, Model, MtlsMode, Upstream};
use super::syntax::HostPattern;
use super::units::{HostPort, Rate};

impl Model {
    /// How this upstream is spoken to: as it says, `prefer` where it says nothing; without an
    /// identity always `off`.
    pub fn upstream_mtls(&self, upstream: &Upstream) -> MtlsMode {
        match (&self.identity, &upstream.mtls) {
            (None, _) => MtlsMode::Off,
            (Some(_), None) => MtlsMode::Prefer,
            (Some(_), Some(mtls)) => mtls.mode,
        }
    }

    /// Which connections are let in: as `inbound.mtls` says, `permissive` where it says nothing;
    /// without an identity always `off`.
    pub fn inbound_mtls(&self) -> InboundMtls {
        match self.identity {
            None => InboundMtls::Off,
            Some(_) => self.inbound.mtls.unwrap_or(InboundMtls::Permissive),
        }
    }

    /// The limits on HTTP messages of one direction.
    pub fn http(&self, direction: Direction) -> Http {
        self.http.with(match direction {
            Direction::Outbound => &self.outbound.http,
            Direction::Inbound => &self.inbound.http,
        })
    }

    /// The routes that nobody wrote: from each upstream's `address` to itself, every path, unless
    /// a written route names that host, with the same port or with none.
    pub fn implicit_routes(&self) -> impl Iterator<Item = (&str, &HostPort)> {
        let named: HashSet<HostPattern> = self
            .routes
            .iter()
            .flat_map(|route| route.host.as_slice())
            .filter_map(|host| host.parse().ok())
            .collect();
        self.upstreams.iter().filter_map(move |(name, upstream)| {
            let address = &upstream.address;
            let any_port = HostPattern::Host { host: address.host.to_string(), port: None };
            let is_named = named.contains(&HostPattern::from(address)) || named.contains(&any_port);
            (!is_named).then_some((name.as_str(), address))
        })
    }
}

/// The largest lifetime of a lease that is used, in nanoseconds, so that a stamp plus a lease never
/// overflows.
const LONGEST_LEASE: f64 = 86_400e9;

/// What a limit's rate and burst mean in tokens and time, for one of its rates.
///
/// A mesh limit of rate R and burst B is granted by GCRA with the smaller burst B' = B - R·tau, because a
/// token may be spent up to tau after it was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitTerms {
    /// R.
    pub rate: Rate,
    /// B, in tokens.
    pub burst: u32,
    /// Nanoseconds from one token to the next.
    pub interval: f64,
    /// tau, in nanoseconds from before the tokens were asked for.
    pub lease: f64,
    /// B', in tokens; never under 1.
    pub capacity: f64,
}

impl LimitTerms {
    /// The most that one request may cost, where tokens come from Redis.
    pub fn dearest(&self) -> u32 {
        (self.capacity as u32).max(1)
    }
}

impl KeyRate {
    /// `burst`, or one second's worth, at least 2.
    pub fn effective_burst(&self) -> NonZeroU32 {
        burst(self.rate, self.burst)
    }
}

impl Limit {
    /// `burst`, or one second's worth, at least 2.
    pub fn effective_burst(&self) -> NonZeroU32 {
        burst(self.rate, self.burst)
    }

    /// The terms of every key, and then those of `keys`, in their order. `budget` is how long a request may
    /// wait for Redis, which is as long as a grant lives where each request asks.
    pub fn terms(&self, budget: Duration) -> impl Iterator<Item = LimitTerms> {
        let own = self.keys.iter().map(|own| (own.rate, own.burst));
        std::iter::once((self.rate, self.burst)).chain(own).map(move |(rate, written)| {
            let burst = burst(rate, written).get();
            let interval = 1e9 / rate.per_second();
            let lease = match self.lease {
                _ if self.exact => budget.as_nanos() as f64,
                Some(lease) => lease.0.as_nanos() as f64,
                None => f64::from(burst) / 2.0 * interval,
            };
            // Without a burst there is nothing that could be in flight; each request may ask all the same.
            let longest = match burst {
                1 if self.exact => f64::MAX,
                _ => f64::from(burst.saturating_sub(1)) * interval,
            };
            let lease = lease.min(longest).min(LONGEST_LEASE).floor();
            let capacity = (f64::from(burst) - lease / interval).max(1.0);
            LimitTerms { rate, burst, interval, lease, capacity }
        })
    }
}

fn burst(rate: Rate, written: Option<NonZeroU32>) -> NonZeroU32 {
    let one_second = rate.per_second().ceil() as u32;
    written.or(NonZeroU32::new(one_second.max(2))).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn implicit_routes_give_way_to_written_ones() {
        let model = parse(
            "upstreams:
  a: { address: A.shop:80 }
  b: { address: b.shop:80 }
  c: { address: c.shop:80 }
  d: { address: \"[fd00::7]:80\" }
routes:
  - { host: [a.shop, \"b.shop:80\"], upstream: a }
  - { host: \"c.shop:81\", upstream: c }
  - { upstream: b }
",
            "t",
        )
        .unwrap();
        let implicit: Vec<_> = model.implicit_routes().map(|(name, to)| format!("{name} {to}")).collect();
        assert_eq!(implicit, ["c c.shop:80", "d [fd00::7]:80"]);
    }

    #[test]
    fn a_direction_has_what_it_says_and_the_rest_of_all() {
        let model = parse(
            "http: { body_timeout: 1m, max_streams: 5 }
inbound: { http: { body_timeout: 2m, min_body_rate: off } }
",
            "t",
        )
        .unwrap();
        let (out, inn) = (model.http(Direction::Outbound), model.http(Direction::Inbound));
        assert_eq!(out, model.http);
        assert_eq!((out.body_timeout.to_string(), inn.body_timeout.to_string()), ("1m".into(), "2m".into()));
        assert_eq!(
            (out.min_body_rate.to_string(), inn.min_body_rate.to_string()),
            ("600/m".into(), "off".into())
        );
        assert_eq!((inn.max_streams.get(), inn.max_headers.get()), (5, 100));
    }

    #[test]
    fn bursts() {
        let burst = |rate: &str| {
            let text = format!("limits: [{{ name: x, rate: {rate} }}]");
            parse(&text, "t").unwrap().limits[0].effective_burst().get()
        };
        assert_eq!(burst("500/s"), 500);
        assert_eq!(burst("90/m"), 2);
        assert_eq!(burst("200/m"), 4);
        assert_eq!(burst("1/d"), 2);
        assert_eq!(burst("4294967295/s"), u32::MAX);
    }
}
