//! What is allowed, but may not be meant. `check` shows it, and the log at start and reload.

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::PermissionsExt;

use super::model::{
    Hedge, HedgeAfter, InboundMtls, KeyPart, Limit, Model, Most, MtlsMode, PathMatch, Retries, RetryOn, Scope,
};
use super::problem::Plain;
use super::units::{EndpointName, Host, HostPort, OneOrMany, Time};

/// Something that works otherwise than one may think.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The key concerned, as `upstreams.orders`; empty where it is the whole configuration.
    pub path: String,
    /// What is so, and what to do where it is not meant.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", Plain(&self.path))?;
        }
        Plain(&self.message).fmt(f)
    }
}

/// Everything that may not be meant in a model that [`parse`](super::parse) has returned.
pub fn warnings(model: &Model) -> Vec<Warning> {
    let mut found = Found(Vec::new());
    encryption(model, &mut found);
    listeners(model, &mut found);
    upstreams(model, &mut found);
    routes(model, &mut found);
    application(model, &mut found);
    limits(model, &mut found);
    redis(model, &mut found);
    found.0
}

struct Found(Vec<Warning>);

impl Found {
    fn push(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Warning { path: path.into(), message: message.into() });
    }
}

fn encryption(model: &Model, found: &mut Found) {
    let Some(_) = model.identity else {
        found.push("", "no `identity` is configured: NOTHING IS ENCRYPTED, and nobody's identity is checked");
        for (name, upstream) in &model.upstreams {
            if upstream.mtls.as_ref().is_some_and(|mtls| mtls.mode == MtlsMode::Prefer) {
                let path = format!("upstreams.{name}.mtls");
                found.push(path, "`prefer` without an `identity` is plaintext");
            }
        }
        if model.inbound.mtls == Some(InboundMtls::Permissive) {
            found.push("inbound.mtls", "`permissive` without an `identity` is plaintext");
        }
        return;
    };
    if model.inbound_mtls() == InboundMtls::Off {
        found.push("inbound.mtls", "an identity is configured, but callers are not asked for theirs");
    }
    match &model.inbound.allow {
        Some(rules) if rules.is_empty() => {
            found.push("inbound.allow", "an empty list lets nobody in; leave it out for everybody");
        }
        Some(_) if model.inbound_mtls() == InboundMtls::Permissive => {
            found.push("inbound.allow", "a plaintext caller proves no id, so that no rule lets it in");
        }
        _ => {}
    }
}

fn listeners(model: &Model, found: &mut Found) {
    for (path, addresses) in [("listen.outbound", &model.listen.outbound), ("listen.dns", &model.listen.dns)]
    {
        for address in addresses.as_slice().iter().filter(|address| !address.ip().is_loopback()) {
            found.push(path, format!("{address} is open to others than this pod"));
        }
    }
}

fn upstreams(model: &Model, found: &mut Found) {
    let routed: HashSet<&str> = model
        .routes
        .iter()
        .map(|route| route.upstream.as_str())
        .chain(model.implicit_routes().map(|(name, _)| name))
        .collect();
    for (name, upstream) in &model.upstreams {
        if !routed.contains(name.as_str()) {
            found.push(format!("upstreams.{name}"), "no route leads here");
        }
        let endpoints = upstream.endpoints.as_ref().map_or(1, |e| e.as_slice().len());
        let needed = endpoints * model.workers.map_or(1, |n| n.get());
        let secure = model.upstream_mtls(upstream) != MtlsMode::Off;
        if let Some(most) = upstream.max_connections.filter(|most| secure && (most.get() as usize) < needed) {
            let message = format!(
                "each worker keeps a connection to each endpoint's sidecar: with {most}, they take turns, and \
                 requests wait; {needed} are needed"
            );
            found.push(format!("upstreams.{name}.max_connections"), message);
        }
        if let Some(timeout) =
            upstream.keep_alive.timeout.filter(|timeout| timeout.0 > upstream.idle_timeout.0)
        {
            let message =
                format!("{timeout} is more than idle_timeout, {}, which bounds it", upstream.idle_timeout);
            found.push(format!("upstreams.{name}.keep_alive.timeout"), message);
        }
        if upstream.subset.is_some_and(|subset| subset.get() < 2) {
            let message = "this sidecar uses one endpoint alone: while that fails, nothing else is tried";
            found.push(format!("upstreams.{name}.subset"), message);
        }
        if upstream.endpoints.is_none() && looks_like_service(&upstream.address) {
            found.push(
                format!("upstreams.{name}"),
                format!(
                    "{} looks like a Kubernetes Service: where that has one virtual address, requests cannot be \
                     spread by saturation; set `endpoints` to a headless Service's name and target port",
                    upstream.address
                ),
            );
        }
    }
}

/// What the application is given.
fn application(model: &Model, found: &mut Found) {
    let inbound = &model.inbound;
    if let (Some(capacity), Some(Most::Number(most))) = (inbound.capacity, inbound.max_in_flight)
        && most < capacity
    {
        let message =
            format!("callers are told of a capacity of {capacity}, and {most} are the most it is given");
        found.push("inbound.capacity", message);
    }
    if !inbound.probes.is_empty() && inbound.max_in_flight.is_none() {
        let message = "without `max_in_flight` no request is one too many, so that this changes nothing";
        found.push("inbound.probes", message);
    } else if inbound.probes.iter().any(|path| matches!(path, PathMatch::Prefix(path) if path == "/")) {
        found.push("inbound.probes", "`/` is every request: none is ever refused for being too many");
    }
}

/// `name.namespace.svc`, with or without a cluster's domain.
fn looks_like_service(address: &HostPort) -> bool {
    match &address.host {
        Host::Name(name) => name.split('.').nth(2) == Some("svc"),
        Host::Address(_) => false,
    }
}

fn routes(model: &Model, found: &mut Found) {
    for (i, route) in model.routes.iter().enumerate() {
        if let (Some(Hedge { after: HedgeAfter::Time(after) }), Some(timeout)) = (route.hedge, route.timeout)
            && after >= timeout
        {
            let message = format!(
                "{after} is no less than the route's `timeout`, {timeout}: no second request is sent"
            );
            found.push(format!("routes[{i}].hedge.after"), message);
        }
        let endpoints = model.upstreams.get(&route.upstream).and_then(|upstream| upstream.endpoints.as_ref());
        if let (Some(_), Some([EndpointName::At(one)])) = (route.hedge, endpoints.map(OneOrMany::as_slice))
            && matches!(one.host, Host::Address(_))
        {
            let message =
                format!("{one} is the only endpoint: there is no other to send a second request to");
            found.push(format!("routes[{i}].hedge"), message);
        }
        let Retries::Rules(rules) = &route.retries else { continue };
        let path = format!("routes[{i}].retries");
        if rules.most == 0 {
            found.push(&path, "`most: 0` sends nothing again, whatever else stands here");
        }
        let later = |try_timeout: &&Time| route.timeout.is_some_and(|timeout| **try_timeout >= timeout);
        if let (Some(try_timeout), Some(timeout)) = (rules.try_timeout.as_ref().filter(later), route.timeout)
        {
            let message = format!(
                "{try_timeout} is no less than the route's `timeout`, {timeout}, which ends all tries"
            );
            found.push(format!("{path}.try_timeout"), message);
        }
        if rules.try_timeout.is_some() && !rules.on.contains(&RetryOn::Timeout) {
            let message = "`on` does not list `timeout`, so that no try is given up for another";
            found.push(format!("{path}.try_timeout"), message);
        }
        if rules.try_timeout.is_none() && rules.on.contains(&RetryOn::Timeout) {
            let message = "`timeout` is that of `try_timeout`, which is not set";
            found.push(format!("{path}.on"), message);
        }
    }
}

/// A lease that is shorter, in nanoseconds, is spent on the way.
const SHORT_LEASE: f64 = 20e6;

fn limits(model: &Model, found: &mut Found) {
    let mut mesh_limits = 0;
    for (i, limit) in model.limits.iter().enumerate() {
        let path = format!("limits[{i}]");
        if limit.scope == Scope::Mesh {
            mesh_limits += 1;
            if model.redis.is_none() {
                let message = format!(
                    "no `redis` is configured, so that `{}` holds for each pod apart; `scope: pod` says so",
                    limit.name
                );
                found.push(&path, message);
            }
        }
        let budget = model.redis.as_ref().filter(|_| limit.scope == Scope::Mesh).map(|redis| redis.budget.0);
        let (short, then) = match limit.exact {
            true => (
                SHORT_LEASE.min(budget.unwrap_or_default().as_nanos() as f64),
                "what Redis answers later is worth nothing, and its request is refused",
            ),
            false => (
                SHORT_LEASE,
                "of which the way to Redis takes a part: requests may wait for it, and not all of the rate be used",
            ),
        };
        for terms in limit.terms(budget.unwrap_or_default()).filter(|_| budget.is_some()) {
            if terms.lease < short {
                let message = format!(
                    "at {} and a burst of {} tokens live for {:.1} ms, {then}; a larger burst helps",
                    terms.rate,
                    terms.burst,
                    terms.lease / 1e6
                );
                found.push(&path, message);
            }
        }
        if limit.key.contains(&KeyPart::Caller) && model.identity.is_none() {
            let message =
                format!("without an `identity` `{}` counts every caller as the same one", limit.name);
            found.push(&path, message);
        }
    }
    let claims = |limit: &Limit| {
        !limit.claim.is_empty() || limit.key.iter().any(|part| matches!(part, KeyPart::Claim(_)))
    };
    if model.jwt.is_some() && !model.limits.iter().any(claims) {
        found.push("jwt", "no limit looks at a claim, so that nothing uses it");
    }
    if model.redis.is_some() && mesh_limits == 0 {
        found.push("redis", "no limit has `scope: mesh`, so that nothing uses it");
    }
}

/// Secrets that others in the pod can read.
fn redis(model: &Model, found: &mut Found) {
    let Some(redis) = &model.redis else { return };
    let sentinel = redis.sentinel.as_ref();
    for (path, file) in [
        ("redis.password_file", redis.password_file.as_ref()),
        ("redis.sentinel.password_file", sentinel.and_then(|sentinel| sentinel.password_file.as_ref())),
        ("redis.tls.key", redis.tls.as_ref().and_then(|tls| tls.key.as_ref())),
    ] {
        // A file that cannot be read is a fault, and found where it is used.
        let everyone = |file: &std::path::PathBuf| {
            std::fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
        };
        if file.is_some_and(everyone) {
            found.push(path, "every user of this machine may read the file; expected a mode as 0440");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn of(text: &str) -> Vec<String> {
        warnings(&parse(text, "t").unwrap()).iter().map(Warning::to_string).collect()
    }

    const IDENTITY: &str = "identity: { certificate: a, key: b, bundle: c }\n";

    #[track_caller]
    fn one(text: &str, expected: &str) {
        let found = of(text);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:#?}");
    }

    #[test]
    fn each_once() {
        one("", "no `identity` is configured: NOTHING IS ENCRYPTED");
        assert_eq!(of(IDENTITY), [""; 0]);
        let with = |text: &str| format!("{IDENTITY}{text}");
        one(&with("inbound: { mtls: off }"), "inbound.mtls: an identity is configured, but");
        one(&with("inbound: { allow: [] }"), "inbound.allow: an empty list lets nobody in");
        one(&with("inbound: { allow: [ { caller: \"*\" } ] }"), "inbound.allow: a plaintext caller");
        one(&with("listen: { outbound: 0.0.0.0:15001 }"), "listen.outbound: 0.0.0.0:15001 is open");
        one(&with("upstreams: { a: { address: a.b.svc:80 } }"), "upstreams.a: a.b.svc:80 looks like");
        one(
            &with(
                "upstreams: { a: { address: a:80 }, b: { address: b:80 } }\nroutes: [ { host: a, upstream: b } ]",
            ),
            "upstreams.a: no route leads here",
        );
        one(
            &with("workers: 2\nupstreams: { a: { address: a:80, max_connections: 1 } }"),
            "upstreams.a.max_connections: each worker keeps a connection",
        );
        assert_eq!(of(&with("workers: 2\nupstreams: { a: { address: a:80, max_connections: 2 } }")), [""; 0]);
        one(
            &with("upstreams: { a: { address: a:80, keep_alive: { timeout: 1h } } }"),
            "upstreams.a.keep_alive.timeout: 1h is more than idle_timeout, 5m",
        );
        let route = |retries: &str| {
            with(&format!(
                "upstreams: {{ a: {{ address: a:80 }} }}\nroutes: [ {{ upstream: a, timeout: 1s, retries: {{ {retries} }} }} ]"
            ))
        };
        one(&route("most: 0"), "routes[0].retries: `most: 0` sends nothing again");
        one(&route("on: [timeout], try_timeout: 1s"), "routes[0].retries.try_timeout: 1s is no less than");
        one(&route("try_timeout: 100ms"), "routes[0].retries.try_timeout: `on` does not list `timeout`");
        one(&route("on: [timeout]"), "routes[0].retries.on: `timeout` is that of `try_timeout`");
        let hedged = |endpoints: &str, after: &str| {
            with(&format!(
                "upstreams: {{ a: {{ address: a:80, endpoints: {endpoints} }} }}
routes: [ {{ upstream: a, timeout: 1s, hedge: {{ after: {after} }} }} ]"
            ))
        };
        one(&hedged("a-all:80", "1s"), "routes[0].hedge.after: 1s is no less than the route's `timeout`, 1s");
        one(&hedged("[10.0.0.1:80]", "p95"), "routes[0].hedge: 10.0.0.1:80 is the only endpoint");
        assert_eq!(of(&hedged("[10.0.0.1:80, 10.0.0.2:80]", "50ms")), [""; 0]);
        assert_eq!(of(&route("on: [timeout, 503], try_timeout: 100ms")), [""; 0]);
        one(
            &with("upstreams: { a: { address: a:80, subset: 1 } }"),
            "upstreams.a.subset: this sidecar uses one",
        );
        one(
            &with("inbound: { capacity: 8, max_in_flight: 4 }"),
            "inbound.capacity: callers are told of a capacity of 8, and 4",
        );
        assert_eq!(of(&with("inbound: { capacity: 8, max_in_flight: learned, probes: [/health] }")), [""; 0]);
        one(&with("inbound: { probes: [/health] }"), "inbound.probes: without `max_in_flight`");
        one(&with("inbound: { max_in_flight: 4, probes: [/] }"), "inbound.probes: `/` is every request");
        one(&with("limits: [ { name: x, rate: 1/s } ]"), "limits[0]: no `redis` is configured");
        one(
            &with("redis: { url: \"redis://h\" }\nlimits: [ { name: x, rate: 1/s, scope: pod } ]"),
            "redis: no limit has `scope: mesh`",
        );
    }

    #[test]
    fn secrets_that_everyone_can_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "{IDENTITY}redis: {{ url: 'redis://h', password_file: {} }}\nlimits: [ {{ name: x, rate: 1/s }} ]",
            file.path().display()
        );
        assert_eq!(of(&text), [""; 0]);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        one(&text, "redis.password_file: every user of this machine may read the file");
    }

    #[test]
    fn without_identity() {
        let text = "upstreams: { a: { address: a:80, mtls: { mode: prefer } } }
inbound: { mtls: permissive }
limits: [ { name: x, rate: 1/s, scope: pod, key: [caller] } ]
";
        let found = of(text);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[1].starts_with("upstreams.a.mtls: `prefer` without"));
        assert!(found[2].starts_with("inbound.mtls: `permissive` without"));
        assert!(found[3].starts_with("limits[0]: without an `identity`"));
    }
}
