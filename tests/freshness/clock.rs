//! The time of day is nobody's: records live by a clock that no one sets.

use std::fs;
use std::path::PathBuf;

use hickory_resolver::proto::rr::RecordType;
use tempfile::TempDir;

use super::*;
use crate::support::loopback::binary;

/// The wall clock of a sidecar, to be set while it runs, by libfaketime.
struct Clock {
    dir: TempDir,
}

impl Clock {
    fn new() -> Self {
        let clock = Self { dir: TempDir::with_prefix("pannier-clock-").expect("a temporary directory") };
        clock.set("+0");
        clock
    }

    /// How far it is ahead, or behind.
    fn set(&self, offset: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, offset).and_then(|()| fs::rename(&new, self.file())).expect("our own directory");
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }

    async fn sidecar(&self, server: &Server, apps: &Apps) -> Loopback {
        let mut proxy = binary(&["proxy"]);
        // The loader knows where this system keeps its libraries.
        proxy.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1");
        proxy.env("FAKETIME_TIMESTAMP_FILE", self.file()).env("FAKETIME_NO_CACHE", "1");
        proxy.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Loopback::asking_by(proxy, &server.yaml(), "caller", &orders(apps, "")).await
    }
}

/// The day that the sidecar believes it is, by its log's last line.
fn day(sidecar: &Loopback) -> String {
    let log = sidecar.log();
    let last = log.lines().rfind(|line| line.starts_with("{\"timestamp\":")).expect("a line");
    last.chars().skip("{\"timestamp\":\"".len()).take("2026-11-27".len()).collect()
}

async fn ttl_left(sidecar: &Loopback) -> f64 {
    let all = upstreams(sidecar).await;
    let names = all["dns"]["names"].as_array().expect("a list").clone();
    assert_eq!((names.len(), &names[0]["state"]), (1, &Value::from("fresh")), "{names:?}");
    names[0]["ttl_left"].as_f64().expect("a number")
}

#[tokio::test]
async fn a_clock_set_ahead_ends_no_record() {
    let server = Server::start(3600).await;
    let apps = Apps::start(&["127.0.0.2"]).await;
    server.addresses(NAME, &["127.0.0.2"]);
    let clock = Clock::new();
    let sidecar = clock.sidecar(&server, &apps).await;
    let load = Load::start(&sidecar, &apps);
    load.more(50).await;
    let (before, today) = (ttl_left(&sidecar).await, day(&sidecar));
    clock.set("+2d");
    sidecar.configure(&orders(&apps, ", slow_start: 1m"));
    eventually("the other day", async || day(&sidecar) != today).await;
    load.more(50).await;
    let left = ttl_left(&sidecar).await;
    assert!(left <= before && left > before - 600.0, "{before} s, then {left} s");
    assert_eq!(server.asked(RecordType::A), 1);
    load.end().await;
}

#[tokio::test]
async fn a_clock_set_back_lets_no_record_live_longer() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3"]).await;
    server.addresses(NAME, &["127.0.0.2"]);
    let clock = Clock::new();
    let sidecar = clock.sidecar(&server, &apps).await;
    let load = Load::start(&sidecar, &apps);
    load.more(50).await;
    let today = day(&sidecar);
    clock.set("-2d");
    eventually("the other day", async || day(&sidecar) != today).await;
    server.addresses(NAME, &["127.0.0.3"]);
    eventually("the new address", async || apps.requests("127.0.0.3") > 0).await;
    load.end().await;
}
