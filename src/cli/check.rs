//! `pannier check`: what a configuration means, in short tables, or where it is wrong.

mod limits;
mod table;
mod tokens;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use crate::auth::token::Tokens;
use crate::config::model::{
    Direction, Hedge, InboundMtls, KeyExchange, Model, Most, MtlsMode, PathMatch, RetryRules, Sticky,
    Upstream,
};
use crate::config::{self, Problem, Problems};
use crate::limit;
use limits::limits;
use table::Table;

/// The file cannot be read.
const UNREADABLE: u8 = 2;
/// The file is wrong, or the answer cannot be written.
const WRONG: u8 = 1;

/// Prints what the file means to stdout and succeeds; or everything that is wrong with it to
/// stderr, with exit code 1, or 2 where it cannot be read.
pub fn run(file: &Path) -> ExitCode {
    let (stdout, stderr, code) = outcome(file);
    let written = io::stderr().write_all(stderr.as_bytes()).and(io::stdout().write_all(stdout.as_bytes()));
    ExitCode::from(if written.is_ok() { code } else { WRONG })
}

/// What goes to stdout and to stderr, and the exit code.
fn outcome(file: &Path) -> (String, String, u8) {
    let source = file.display().to_string();
    let text = match config::read_text(file) {
        Ok(text) => text,
        // A place is known where the file was read, but is not text.
        Err(problem @ Problem { line: None, .. }) => {
            return (String::new(), format!("{problem}\n"), UNREADABLE);
        }
        Err(problem) => return (String::new(), format!("{problem}\n"), WRONG),
    };
    match config::parse(&text, &source) {
        Ok(model) => {
            let found = model.redis.as_ref().map_or_else(Vec::new, limit::redis_faults);
            if !found.is_empty() {
                return refused(&config::problems_at(&text, &source, found));
            }
            match Tokens::compile(model.jwt.as_ref(), None) {
                Ok(tokens) => (explain(&model, &tokens), String::new(), 0),
                Err(error) => {
                    let path = format!("jwt.issuers[{}].jwks", error.issuer);
                    refused(&config::problem_at(&text, &source, &path, error.to_string()).into())
                }
            }
        }
        Err(problems) => refused(&problems),
    }
}

fn refused(problems: &Problems) -> (String, String, u8) {
    let count = problems.iter().count();
    let faults = if count == 1 { "fault" } else { "faults" };
    (String::new(), format!("{problems}\n{count} {faults}\n"), WRONG)
}

/// What a model means.
fn explain(model: &Model, keys: &Tokens) -> String {
    let mut out = String::new();
    let tables = [
        mtls(model),
        tokens::table(model, keys),
        listeners(model),
        dns(model),
        http(model),
        routes(model),
        upstreams(model),
        balance(model),
        application(model),
        limits(model),
    ];
    for table in tables {
        table.write(&mut out);
    }
    let warnings = config::warnings(model);
    if !warnings.is_empty() {
        out.push_str("WARNINGS\n");
        for warning in warnings {
            let _ = writeln!(out, "  {warning}");
        }
        out.push('\n');
    }
    out.push_str("The configuration is valid.\n");
    out
}

fn mtls(model: &Model) -> Table {
    let mut table = Table::new("MTLS", &[]);
    match &model.identity {
        None => table.row(["nothing is encrypted: no `identity` is configured"]),
        Some(identity) => {
            table.row(["certificate".into(), identity.certificate.display().to_string()]);
            table.row(["bundle".into(), identity.bundle.display().to_string()]);
            let exchange = match identity.key_exchange {
                KeyExchange::X25519Mlkem768 => "X25519MLKEM768",
                KeyExchange::X25519 => "X25519: not post-quantum",
            };
            table.row(["key exchange", exchange]);
            let inbound = match model.inbound_mtls() {
                InboundMtls::Strict => "strict: mTLS only",
                InboundMtls::Permissive => "permissive: plaintext is let in too",
                InboundMtls::Off => "off: callers are not asked for an identity",
            };
            table.row(["inbound", inbound]);
        }
    }
    match &model.inbound.allow {
        None => {}
        Some(rules) if rules.is_empty() => table.row(["allowed".into(), "nobody".to_owned()]),
        Some(rules) => {
            for rule in rules {
                let methods =
                    rule.method.as_ref().map_or("every method".into(), |methods| list(methods.as_slice()));
                let path = rule.path.as_ref().map_or("every path".into(), path);
                table.row(["allowed".into(), rule.caller.clone(), methods, path]);
            }
        }
    }
    table
}

fn listeners(model: &Model) -> Table {
    let mut table = Table::new("LISTENERS", &["for", "addresses"]);
    let listen = &model.listen;
    for (name, addresses) in [
        ("outbound", &listen.outbound),
        ("inbound", &listen.inbound),
        ("dns", &listen.dns),
        ("admin", &listen.admin),
        ("probes", &listen.probes),
    ] {
        table.row([name.to_owned(), list(addresses.as_slice())]);
    }
    if let Some(application) = model.application {
        table.row(["application".into(), application.to_string()]);
    }
    table
}

/// Who is asked for names, and how long what they say is kept.
fn dns(model: &Model) -> Table {
    let mut table = Table::new("DNS", &[]);
    let dns = &model.dns;
    let servers = if dns.servers.is_empty() { "of /etc/resolv.conf".into() } else { list(&dns.servers) };
    table.row(["servers".into(), servers]);
    for (domain, servers) in &dns.domains {
        table.row([format!("for {domain}"), list(servers)]);
    }
    table.row(["kept".into(), format!("for the TTL, at least {} and at most {}", dns.min_ttl, dns.max_ttl)]);
    table.row(["denials kept".into(), format!("as their SOA says, at most {}", dns.max_negative_ttl)]);
    table.row(["without an answer".into(), format!("what was known serves for {}", dns.stale)]);
    table
}

/// The limits of each direction, as they hold.
fn http(model: &Model) -> Table {
    let mut table = Table::new("HTTP", &["limit", "outbound", "inbound"]);
    let [out, inn] = [Direction::Outbound, Direction::Inbound].map(|direction| model.http(direction));
    let mut row = |name: &str, out: &dyn fmt::Display, inn: &dyn fmt::Display| {
        table.row([name.to_owned(), out.to_string(), inn.to_string()]);
    };
    row("max_connections", &model.outbound.max_connections, &model.inbound.max_connections);
    row("connect_timeout", &model.outbound.connect_timeout, &model.inbound.connect_timeout);
    row("max_streams", &out.max_streams, &inn.max_streams);
    row("max_header_bytes", &out.max_header_bytes, &inn.max_header_bytes);
    row("max_headers", &out.max_headers, &inn.max_headers);
    row("header_timeout", &out.header_timeout, &inn.header_timeout);
    row("body_timeout", &out.body_timeout, &inn.body_timeout);
    row("min_body_rate", &out.min_body_rate, &inn.min_body_rate);
    row("idle_timeout", &out.idle_timeout, &inn.idle_timeout);
    row("max_connection_age", &out.max_connection_age, &inn.max_connection_age);
    table
}

fn routes(model: &Model) -> Table {
    let columns = [
        "host",
        "path",
        "upstream",
        "timeout",
        "body_timeout",
        "min_body_rate",
        "retries",
        "kept together by",
    ];
    let mut table = Table::new("ROUTES", &columns);
    let http = model.http(Direction::Outbound);
    for route in &model.routes {
        for host in route.host.as_slice() {
            table.row([
                host.to_lowercase(),
                path(&route.path),
                route.upstream.clone(),
                route.timeout.map_or("none".into(), |timeout| timeout.to_string()),
                route.body_timeout.unwrap_or(http.body_timeout).to_string(),
                route.min_body_rate.unwrap_or(http.min_body_rate).to_string(),
                retries(&route.retries.rules(), route.hedge),
                route.sticky.as_ref().map_or("nothing".into(), sticky),
            ]);
        }
    }
    for (upstream, address) in model.implicit_routes() {
        let (timeout, retries) = ("none".into(), retries(&RetryRules::default(), None));
        let (body, rate) = (http.body_timeout.to_string(), http.min_body_rate.to_string());
        let (sticky, note) = ("nothing".into(), "by its address".into());
        table.row([
            address.to_string(),
            "/".into(),
            upstream.into(),
            timeout,
            body,
            rate,
            retries,
            sticky,
            note,
        ]);
    }
    let rest = if model.upstreams.is_empty() { "everything" } else { "everything else" };
    table.row([rest, "", "its original destination"]);
    table
}

/// How often, what differs from the default, and when before that.
fn retries(rules: &RetryRules, hedge: Option<Hedge>) -> String {
    let (mut out, usual) = (rules.most.to_string(), RetryRules::default());
    if rules.on != usual.on {
        let _ = write!(out, " on {}", list(&rules.on));
    }
    if let Some(time) = rules.try_timeout {
        let _ = write!(out, ", {time} each");
    }
    if let Some(hedge) = hedge {
        let _ = write!(out, ", hedged after {}", hedge.after);
    }
    out
}

fn sticky(sticky: &Sticky) -> String {
    match sticky {
        Sticky::Header(name) => format!("field {}", name.to_ascii_lowercase()),
        Sticky::Cookie(name) => format!("cookie {name}"),
    }
}

fn upstreams(model: &Model) -> Table {
    let columns = ["upstream", "address", "endpoints", "mtls", "capacity", "in flight", "connections"];
    let mut table = Table::new("UPSTREAMS", &columns);
    for (name, upstream) in &model.upstreams {
        let endpoints = match &upstream.endpoints {
            None => "of its address".into(),
            Some(endpoints) => list(endpoints.as_slice()),
        };
        let bound =
            |bound: Option<std::num::NonZeroU32>| bound.map_or("no bound".into(), |bound| bound.to_string());
        table.row([
            name.clone(),
            upstream.address.to_string(),
            endpoints,
            upstream_mtls(model, upstream),
            upstream.capacity.map_or("announced or learned".into(), |capacity| capacity.to_string()),
            bound(upstream.max_in_flight),
            bound(upstream.max_connections),
        ]);
    }
    table
}

/// How requests are spread over endpoints.
fn balance(model: &Model) -> Table {
    let columns = ["upstream", "endpoints used", "waiting", "passed over after", "for", "at most"];
    let mut table = Table::new("BALANCE", &columns);
    for (name, upstream) in &model.upstreams {
        let (queue, ejection) = (&upstream.queue, &upstream.ejection);
        table.row([
            name.clone(),
            upstream.subset.map_or("all".into(), |subset| subset.to_string()),
            match queue.requests {
                0 => "none".into(),
                most => format!("{most}, for {}", queue.time),
            },
            format!("{} errors, {} lost, or {}", ejection.errors, ejection.lost, ejection.ratio),
            format!("{} to {}", ejection.pause, ejection.longest),
            format!("{} of them", ejection.share),
        ]);
    }
    if let Some(zone) = &model.zone {
        table.row([format!("those in zone {zone} come first")]);
    }
    table
}

/// What the application is given at once.
fn application(model: &Model) -> Table {
    let mut table = Table::new("APPLICATION", &[]);
    let inbound = &model.inbound;
    table
        .row(["capacity".into(), inbound.capacity.map_or("learned".into(), |capacity| capacity.to_string())]);
    let most = match inbound.max_in_flight {
        None => "no bound".into(),
        Some(Most::Number(most)) => most.to_string(),
        Some(Most::Learned) => "twice the capacity that is learned".into(),
    };
    table.row(["in flight".into(), most]);
    if inbound.max_in_flight.is_some() {
        let paths = inbound.probes.iter().map(path);
        let probes: Vec<_> = paths.chain(["the kubelet's own".into()]).collect();
        table.row(["always given".into(), list(&probes)]);
    }
    table
}

fn upstream_mtls(model: &Model, upstream: &Upstream) -> String {
    let mode = match model.upstream_mtls(upstream) {
        MtlsMode::Off => return "off".into(),
        MtlsMode::Require => "require",
        MtlsMode::Prefer => "prefer",
    };
    match upstream.mtls.as_ref().and_then(|mtls| mtls.peer.as_ref()) {
        Some(peer) => format!("{mode} {peer}"),
        None => format!("{mode}, any id of our trust domain"),
    }
}

fn path(matched: &PathMatch) -> String {
    match matched {
        PathMatch::Prefix(prefix) => prefix.clone(),
        PathMatch::Exact(exact) => format!("= {}", exact.exact),
    }
}

fn list<T: fmt::Display>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (String, String, u8) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pannier.yaml");
        std::fs::write(&file, text).unwrap();
        outcome(&file)
    }

    #[test]
    fn an_empty_file_is_explained() {
        let (stdout, stderr, code) = check("");
        assert_eq!((stderr.as_str(), code), ("", 0));
        assert!(stdout.contains("NOTHING IS ENCRYPTED"), "{stdout}");
        assert!(stdout.contains("everything"), "{stdout}");
        assert!(stdout.ends_with("The configuration is valid.\n"), "{stdout}");
    }

    #[test]
    fn a_whole_configuration_is_explained() {
        let (stdout, stderr, code) = check(
            "identity: { certificate: /i/tls.crt, key: /i/tls.key, bundle: /i/ca.crt }
upstreams:
  orders: { address: orders.shop:8080, endpoints: orders-all:8080, capacity: 200,
            mtls: { peer: spiffe://td/ns/shop/sa/orders } }
  mail: { address: mail:25, endpoints: [10.0.0.1:25, 10.0.0.2:25], mtls: { mode: off }, subset: 2,
          queue: { requests: 0 }, ejection: { errors: 9, pause: 5s } }
routes:
  - { host: [Orders.Shop, orders], path: { exact: /v1 }, upstream: orders, timeout: 1500ms,
      body_timeout: 10m, sticky: { header: X-User } }
  - { host: fast, upstream: orders, retries: { on: [timeout, 5xx, 429], try_timeout: 300ms }, hedge: { after: p95 } }
limits:
  - { name: writes, host: orders, method: [POST, PUT], key: [caller, 'header:X-Tenant'], rate: 90/m,
      keys: [ { is: ['*', acme], rate: 5/s } ] }
  - { name: cron, direction: inbound, rate: 1/h, burst: 1, exact: true, status: 503, caller: spiffe://td/cron }
  - { name: trial, rate: 9/s, scope: pod, observe: true, count_retries: true, cost: { header: X-Cost },
      header: { x-plan: [gold, 'silver*'], x-trace: '*' } }
redis: { url: 'redis://r:hush@h' }
zone: eu-1
inbound: { mtls: strict, capacity: 8, max_in_flight: learned, probes: [/health], http: { body_timeout: 1m, min_body_rate: off }, allow: [ { caller: spiffe://td/*, path: /v1 } ] }
",
        );
        assert_eq!((stderr.as_str(), code), ("", 0));
        let squeezed: Vec<_> =
            stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "key exchange X25519MLKEM768",
            "inbound strict: mTLS only",
            "allowed spiffe://td/* every method /v1",
            "inbound 0.0.0.0:15006, [::]:15006",
            "max_connections 16384 16384",
            "body_timeout 5m 1m",
            "min_body_rate 600/m off",
            "orders.shop = /v1 orders 1500ms 10m 600/m 2 field x-user",
            "orders = /v1 orders 1500ms 10m 600/m 2 field x-user",
            "fast / orders none 5m 600/m 2 on timeout, 5xx, 429, 300ms each, hedged after p95 nothing",
            "mail:25 / mail none 5m 600/m 2 nothing by its address",
            "everything else its original destination",
            "orders orders.shop:8080 orders-all:8080 require spiffe://td/ns/shop/sa/orders 200 no bound no bound",
            "mail mail:25 10.0.0.1:25, 10.0.0.2:25 off announced or learned no bound no bound",
            "orders all 1024, for 1s 5 errors, 3 lost, or 20% 2s to 2m 30% of them",
            "mail 2 none 9 errors, 3 lost, or 20% 5s to 2m 30% of them",
            "those in zone eu-1 come first",
            "capacity 8",
            "in flight twice the capacity that is learned",
            "always given /health, the kubelet's own",
            "writes outbound orders * POST, PUT * caller, header:x-tenant 90/m 2 mesh, share without redis tokens live 666ms",
            "= *, acme 5/s 5",
            "cron inbound * * * spiffe://td/cron one count 1/h 1 mesh, share without redis asks Redis each time; answers 503",
            "trial outbound * * * x-plan: gold, silver*; x-trace: * one count 9/s 9 pod costs what X-Cost says, or 1; \
             counts retries; observes, refuses nothing",
        ] {
            assert!(squeezed.iter().any(|have| have == line), "no `{line}` in\n{stdout}");
        }
        assert!(!stdout.contains("WARNINGS") && !stdout.contains("hush"), "{stdout}");
    }

    #[test]
    fn the_files_for_redis_are_read() {
        let (stdout, stderr, code) =
            check("redis:\n  url: rediss://h\n  password_file: /none/p\n  tls: { ca: /none/ca }\n");
        assert_eq!((stdout.as_str(), code), ("", 1));
        assert!(stderr.contains("3:18: redis.password_file: cannot read /none/p: "), "{stderr}");
        assert!(stderr.contains("4:14: redis.tls.ca: cannot read /none/ca: "), "{stderr}");
    }

    #[test]
    fn faults_go_to_stderr_all_of_them() {
        let (stdout, stderr, code) = check("routes: [ { upstream: a } ]\nworkers: 0\n");
        assert_eq!((stdout.as_str(), code), ("", 1));
        assert!(
            stderr.contains("pannier.yaml:1:23: routes[0].upstream: no upstream is named `a`"),
            "{stderr}"
        );
        assert!(stderr.contains("pannier.yaml:2:10: workers: expected a whole number from 1"), "{stderr}");
        assert!(stderr.ends_with("2 faults\n"), "{stderr}");
    }

    #[test]
    fn a_configuration_does_not_write_on_the_terminal() {
        let clear = "\\e[2J";
        for text in [
            format!("upstreams: {{ \"a{clear}\": {{ address: a:80 }} }}"),
            format!("workers: \"{clear}\""),
            format!("\"{clear}\": 1"),
            format!("identity: {{ certificate: \"{clear}\", key: k, bundle: b }}"),
            format!("inbound: {{ allow: [ {{ caller: \"{clear}\" }} ] }}"),
        ] {
            let (stdout, stderr, _) = check(&text);
            let shown = stdout + &stderr;
            assert!(shown.contains(r"\u{1b}[2J") && !shown.contains('\u{1b}'), "{text}: {shown:?}");
        }
    }

    #[test]
    fn what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (_, stderr, code) = outcome(dir.path());
        assert!(code == 2 && stderr.contains("this is a directory"), "{stderr}");
        let (_, stderr, code) = outcome(&dir.path().join("none.yaml"));
        assert!(code == 2 && stderr.contains("none.yaml: cannot read the file: "), "{stderr}");
    }
}
