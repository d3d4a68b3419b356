//! Limits: names, conditions and keys that can hold, and numbers that agree.

use std::collections::{BTreeMap, HashMap};

use super::{Checker, Place, syntax};
use crate::config::model::{Cost, KeyPart, Limit, Model, Patterns, Redis, Scope};

/// Keys of one limit that have a rate of their own.
const MOST_OWN_RATES: usize = 65_534;

impl<'a> Checker<'a, '_> {
    /// Every limit.
    pub(super) fn limits(&mut self, model: &Model) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (limit, place) in model.limits.iter().zip(self.root.key("limits").items()) {
            let name = place.key("name");
            self.require(&name, syntax::name(&limit.name));
            if let Some(line) = seen.insert(&limit.name, name.at.line) {
                self.fault(&name, format!("`{}` is the name of another limit, on line {line}", limit.name));
            }
            self.conditions(limit, &place);
            for (i, part) in limit.key.iter().enumerate() {
                if limit.key[..i].contains(part) {
                    self.fault(&place.key("key").item(i), format!("`{part}` is in the key already"));
                }
            }
            self.own_rates(limit, &place);
            self.claims(limit, model, &place);
            self.ways(limit, &place);
            self.tokens(limit, model, &place);
        }
    }

    fn conditions(&mut self, limit: &Limit, place: &Place<'a>) {
        if let Some(hosts) = &limit.host {
            self.hosts(&place.key("host"), hosts);
        }
        if let Some(path) = &limit.path {
            self.require(&place.key("path"), syntax::path(path));
        }
        self.methods(&place.key("method"), limit.method.as_ref());
        for name in limit.header.keys() {
            self.require(&place.key("header").key(name), syntax::field(name));
        }
        self.values(&place.key("header"), &limit.header);
        self.values(&place.key("claim"), &limit.claim);
        if let Some(callers) = &limit.caller {
            let place = place.key("caller");
            if callers.as_slice().is_empty() {
                self.fault(&place, "an empty list names no caller; leave it out for everyone's requests");
            }
            if !self.has_identity() {
                let message = "without an `identity` nobody is known who calls, so that it never holds";
                self.fault(&place, message);
            }
            for (caller, place) in callers.as_slice().iter().zip(place.items_of(callers)) {
                self.require(&place, syntax::spiffe_pattern(caller));
            }
        }
    }

    fn values(&mut self, place: &Place<'_>, all: &BTreeMap<String, Patterns>) {
        for (name, patterns) in all {
            let place = place.key(name);
            if patterns.as_slice().is_empty() {
                self.fault(&place, "an empty list fits no value; write `*` for any");
            }
            for (pattern, place) in patterns.as_slice().iter().zip(place.items_of(patterns)) {
                self.require(&place, syntax::pattern(pattern));
            }
        }
    }

    /// Claims are of tokens that somebody signs.
    fn claims(&mut self, limit: &Limit, model: &Model, place: &Place<'_>) {
        if model.jwt.is_some() {
            return;
        }
        let message = "without `jwt` no token is verified, so that no request has claims";
        if !limit.claim.is_empty() {
            self.fault(&place.key("claim"), message);
        }
        for (i, part) in limit.key.iter().enumerate() {
            if matches!(part, KeyPart::Claim(_)) {
                self.fault(&place.key("key").item(i), message);
            }
        }
    }

    /// Keys that have a rate of their own.
    fn own_rates(&mut self, limit: &Limit, place: &Place<'_>) {
        if !limit.keys.is_empty() && limit.key.is_empty() {
            let message =
                "there is one count for all, as the limit has no `key` that could have a rate of its own";
            self.fault(&place.key("keys"), message);
        }
        if limit.keys.len() > MOST_OWN_RATES {
            let message = format!("{} are more than {MOST_OWN_RATES}", limit.keys.len());
            self.fault(&place.key("keys"), message);
        }
        for (own, place) in limit.keys.iter().zip(place.key("keys").items()) {
            let (is, parts) = (own.is.as_slice(), limit.key.len());
            if is.len() != parts && parts > 0 {
                let message =
                    format!("expected {parts} values, one for each part of `key`; found {}", is.len());
                self.fault(&place.key("is"), message);
            }
            for (pattern, place) in is.iter().zip(place.key("is").items_of(&own.is)) {
                self.require(&place, syntax::pattern(pattern));
            }
        }
    }

    /// Ways of asking and refusing that go together.
    fn ways(&mut self, limit: &Limit, place: &Place<'_>) {
        if let Some(status) = limit.status
            && !(400..600).contains(&status)
        {
            let message = format!("{status} is no refusal; expected a status from 400 to 599");
            self.fault(&place.key("status"), message);
        }
        let exact = place.key("exact");
        if limit.exact && limit.scope == Scope::Pod {
            self.fault(&exact, "a limit of `scope: pod` asks nobody, and is exact");
        }
        if limit.exact && limit.lease.is_some() {
            self.fault(&exact, "it keeps no token, so there is no `lease`");
        }
        if limit.exact && limit.observe {
            self.fault(&exact, "to ask for each request delays it, and a limit with `observe` delays nobody");
        }
        if limit.exact && limit.count_retries {
            self.fault(&exact, "a retry takes a token that is at hand (`count_retries`), and none is kept");
        }
        if limit.lease.is_some() && limit.scope == Scope::Pod {
            self.fault(&place.key("lease"), "a limit of `scope: pod` hands no tokens out");
        }
    }

    /// Bursts, leases and costs that leave a request its tokens.
    fn tokens(&mut self, limit: &Limit, model: &Model, place: &Place<'_>) {
        let budget = model.redis.as_ref().map_or(Redis::default_budget(), |redis| redis.budget);
        let leased = limit.scope == Scope::Mesh;
        let own = place.key("keys").items().into_iter().map(Some);
        for (terms, own) in limit.terms(budget.0).zip([None].into_iter().chain(own)) {
            let at = own.as_ref().unwrap_or(place);
            if leased && !limit.exact && terms.burst < 2 {
                let message = "expected at least 2: a mesh limit hands out tokens ahead, one of which is in \
                               flight (`scope: pod` takes 1, and so does `exact: true`, which asks Redis for \
                               each request)";
                self.fault(&at.key("burst"), message);
                continue;
            }
            if let Some(lease) = limit.lease.filter(|_| leased && !limit.exact) {
                let longest = (f64::from(terms.burst) - 1.0) * terms.interval;
                if lease.0.is_zero() {
                    self.fault(&place.key("lease"), "expected more than nothing");
                } else if lease.0.as_nanos() as f64 > longest {
                    let message = format!(
                        "{lease} is too long for {} and a burst of {}: at most (burst - 1)/rate, {:.3} ms",
                        terms.rate,
                        terms.burst,
                        longest / 1e6
                    );
                    self.fault(&place.key("lease"), message);
                }
            }
            let dearest = if leased { terms.dearest() } else { terms.burst };
            let (cost, key) = match &limit.cost {
                Cost::Fixed(cost) => (cost, None),
                Cost::Field(field) => (&field.default, Some("default")),
            };
            if cost.get() > dearest {
                let place = place.key("cost");
                let place = key.map_or(place.clone(), |key| place.key(key));
                let why = if leased { ", as the rest of the burst is for what is in flight" } else { "" };
                let message = format!(
                    "a bucket of {} and a burst of {} never holds more than {dearest}{why}; a request of {cost} \
                     would never pass",
                    terms.rate, terms.burst
                );
                self.fault(&place, message);
            }
        }
        if let Cost::Field(field) = &limit.cost {
            self.require(&place.key("cost").key("header"), syntax::field(&field.header));
        }
    }
}
