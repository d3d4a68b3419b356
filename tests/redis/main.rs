//! Every way to Redis, through the real binary: TLS, the ACL user of the documentation, sentinels, a
//! cluster; what is lost on the way, and what is wrong with it.

mod access;
mod cluster;
mod sentinel;
#[path = "../support/mod.rs"]
mod support;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use support::client::{Answer, request, send};
use support::eventually;
use support::lab::{Pod, SIDECAR_UID};
use support::sidecar::Sidecar;

const PORT: u16 = 8080;
const HOST: &str = "orders";
/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The password of the ACL user.
const PASSWORD: &str = "hush-1";

/// The commands by which the documentation makes the ACL user, as arguments for redis-cli: of every
/// Redis, and of a cluster's nodes besides.
fn documented_acl() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string("docs/redis.md").expect("the documentation");
    let lines = text.lines().filter(|line| line.starts_with("ACL SETUSER pannier "));
    let words = |line: &str| line.replace("PASSWORD", PASSWORD).split(' ').map(str::to_owned).collect();
    let acl: Vec<Vec<String>> = lines.map(words).collect();
    assert_eq!(acl.len(), 2, "the documentation has one line for every Redis, and one for a cluster's");
    acl
}

/// Makes the ACL user at a server.
fn make_user(pod: &Pod, port: u16, login: &[&str], lines: &[Vec<String>]) {
    for line in lines {
        let arguments: Vec<&str> = login.iter().copied().chain(line.iter().map(String::as_str)).collect();
        assert_eq!(pod.redis_cli(port, &arguments).trim(), "OK", "{line:?}");
    }
}

/// Writes a file that the sidecar's user alone may read.
fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the pod's directory");
    std::fs::set_permissions(path, Permissions::from_mode(0o400)).expect("the pod's directory");
    chown(path, Some(SIDECAR_UID), None).expect("we are root");
}

/// A pod whose requests pass a sidecar.
fn caller<'a>(pod: &'a Pod, yaml: &str) -> Sidecar<'a> {
    pod.init();
    pod.sidecar(yaml)
}

fn get(from: &Pod, to: SocketAddr, path: &str, tenant: &str) -> Answer {
    let mut request = request("GET", HOST, path, "");
    request.headers_mut().insert("x-tenant", tenant.parse().expect("a field"));
    from.enter(|| send(to, request)).unwrap_or_else(|e| panic!("{}: {e}", from.name()))
}

fn is_up(sidecar: &Sidecar<'_>) -> bool {
    let limits = sidecar.get("/limits").json();
    limits["redis"]["up"].as_bool().unwrap_or_else(|| panic!("no redis: {limits}"))
}

/// A number of `/limits`, of the limit of this name.
fn of_limit(sidecar: &Sidecar<'_>, name: &str, field: &str) -> u64 {
    let limits = sidecar.get("/limits").json();
    let all = limits["limits"].as_array().expect("a list");
    let limit = all.iter().find(|limit| limit["name"] == name);
    limit.and_then(|limit| limit[field].as_u64()).unwrap_or_else(|| panic!("no {field} of {name}: {limits}"))
}

/// Waits until requests to `path` are admitted by what Redis has granted since.
fn is_granted(sidecar: &Sidecar<'_>, from: &Pod, to: SocketAddr, path: &str, limit: &str) {
    eventually(PATIENCE, "Redis to answer", || is_up(sidecar).then_some(()));
    let granted = of_limit(sidecar, limit, "tokens_granted");
    eventually(PATIENCE, "a request that Redis granted", || {
        let without = of_limit(sidecar, limit, "decided_without_redis");
        let answer = get(from, to, path, "a");
        let by_redis = of_limit(sidecar, limit, "decided_without_redis") == without;
        (answer.status == 200 && by_redis && of_limit(sidecar, limit, "tokens_granted") > granted)
            .then_some(())
    });
}

/// How often a server has run the script of limits.
fn scripts(pod: &Pod, port: u16, login: &[&str]) -> u64 {
    let stats = pod.redis_cli(port, &[login, &["INFO", "commandstats"]].concat());
    let calls = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    calls.filter_map(|numbers| numbers.split(',').next()?.parse::<u64>().ok()).sum()
}
