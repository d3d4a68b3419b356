//! What limits mean: which requests each holds for, what it counts apart, and how much it admits.

use std::time::Duration;

use super::table::Table;
use super::{list, path};
use crate::config::model::{Cost, Limit, Model, Scope, WithoutRedis};
use crate::config::units::{OneOrMany, Time};

/// A row for each limit, and below it one for each rate of some keys' own.
pub(super) fn limits(model: &Model) -> Table {
    let columns =
        ["limit", "direction", "host", "path", "method", "whose", "key", "rate", "burst", "scope", "also"];
    let mut table = Table::new("LIMITS", &columns);
    for limit in &model.limits {
        let any = |texts: &Option<OneOrMany<String>>| match texts {
            Some(texts) => list(texts.as_slice()),
            None => "*".into(),
        };
        table.row([
            limit.name.clone(),
            limit.direction.name().into(),
            any(&limit.host),
            limit.path.as_ref().map_or("*".into(), path),
            any(&limit.method),
            whose(limit),
            if limit.key.is_empty() { "one count".into() } else { list(&limit.key) },
            limit.rate.to_string(),
            limit.effective_burst().to_string(),
            scope(model, limit),
            also(model, limit),
        ]);
        for own in &limit.keys {
            let mut row = [const { String::new() }; 9];
            row[6] = format!("= {}", list(own.is.as_slice()));
            row[7] = own.rate.to_string();
            row[8] = own.effective_burst().to_string();
            table.row(row);
        }
    }
    table
}

/// By caller, field and claim.
fn whose(limit: &Limit) -> String {
    let caller = limit.caller.iter().map(|callers| list(callers.as_slice()));
    let fields = limit.header.iter().map(|(name, values)| format!("{name}: {}", list(values.as_slice())));
    let claims =
        limit.claim.iter().map(|(name, values)| format!("claim {name}: {}", list(values.as_slice())));
    let all: Vec<_> = caller.chain(fields).chain(claims).collect();
    if all.is_empty() { "*".into() } else { all.join("; ") }
}

fn scope(model: &Model, limit: &Limit) -> String {
    let without = match limit.without_redis {
        WithoutRedis::Open => "open",
        WithoutRedis::Closed => "closed",
        WithoutRedis::Share => "share",
    };
    match (limit.scope, &model.redis) {
        (Scope::Pod, _) => "pod".into(),
        (Scope::Mesh, None) => "mesh, but no redis: per pod".into(),
        (Scope::Mesh, Some(_)) => format!("mesh, {without} without redis"),
    }
}

/// How long tokens live, and what is not as it is by default.
fn also(model: &Model, limit: &Limit) -> String {
    let redis = model.redis.as_ref().filter(|_| limit.scope == Scope::Mesh);
    let tokens = redis.and_then(|redis| {
        let lease = limit.terms(redis.budget.0).next()?.lease;
        let lease = Time(match lease >= 10e6 {
            true => Duration::from_millis((lease / 1e6) as u64),
            false => Duration::from_micros((lease / 1e3) as u64),
        });
        Some(if limit.exact { "asks Redis each time".into() } else { format!("tokens live {lease}") })
    });
    let cost = match &limit.cost {
        Cost::Fixed(one) if one.get() == 1 => None,
        Cost::Fixed(cost) => Some(format!("costs {cost}")),
        Cost::Field(field) => Some(format!("costs what {} says, or {}", field.header, field.default)),
    };
    let retries = limit.count_retries.then(|| "counts retries".into());
    let status = limit.status.map(|status| format!("answers {status}"));
    let observe = limit.observe.then(|| "observes, refuses nothing".into());
    let all: Vec<String> = [tokens, cost, retries, status, observe].into_iter().flatten().collect();
    all.join("; ")
}
