//! The lab of every end-to-end test: a mesh in network namespaces.
//!
//! [`Lab`] is a node that routes between its [`Pod`]s, as a Kubernetes node does: every pod has
//! a veth link, an IPv4 and an IPv6 address, and a resolver configuration; Services are DNAT on
//! the node. Around it stand a real dnsmasq, a real Redis, applications and a load client in
//! Rust, and captures by tcpdump. Everything lives in namespaces whose names begin with this
//! process's id, goes away with the value that owns it, and is swept by the next lab where a
//! test process was killed.
//!
//! What is missing on the machine fails the test with a message that names it.

// Every test file compiles this module for itself and uses its part of it.
#![allow(dead_code)]

pub(crate) mod app;
pub(crate) mod authority;
pub(crate) mod capture;
pub(crate) mod client;
pub(crate) mod dns;
pub(crate) mod lab;
pub(crate) mod load;
pub(crate) mod loopback;
pub(crate) mod namespace;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod service;
pub(crate) mod sidecar;

use std::time::{Duration, Instant};

/// Waits until `done` gives a value; fails after `limit`, saying what was awaited.
pub(crate) fn eventually<T>(limit: Duration, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(begin.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
