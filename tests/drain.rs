//! A sidecar that is told to stop costs no request: not of the callers that are in the mesh, not
//! of those outside, not of its own application.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use support::client::get;
use support::dns::Dns;
use support::eventually;
use support::lab::Pod;
use support::load::Load;
use support::shop::{PATIENCE, PORT, Shop, endpoints};
use support::sidecar::Sidecar;

/// In-flight requests outlast `drain.accept`, and end before `drain.timeout` does.
const DRAIN: &str = "drain: { accept: 2s, timeout: 8s }\n";
const SLOW: &str = "/wait/5000";

/// A connection of a client that knows nothing of meshes and keeps it open.
struct KeepAlive(TcpStream);

impl KeepAlive {
    fn open(from: &Pod, to: SocketAddr) -> Self {
        let stream = from.enter(|| async { TcpStream::connect(to) }).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(stream)
    }

    /// Sends a request; gives the answer's head, in lower case.
    fn get(&mut self) -> String {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: one\r\n\r\n").expect("the connection is open");
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let n = self.0.read(&mut buffer).expect("an answer");
            answer.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                assert!(n > 0, "closed within the head: {text}");
                continue;
            };
            let length: Option<usize> =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() == length.unwrap_or_else(|| panic!("no length: {head}")) {
                return head.to_owned();
            }
        }
    }

    fn ends_closed(mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

/// What stops the endpoint `one`, and when DNS hears of it.
fn drained(stop: impl Fn(&mut Dns, &Shop, &Sidecar)) {
    let (shop, mut dns) = Shop::new(1);
    let (stranger, one) = (shop.lab.pod("stranger"), &shop.one);
    let apps = [&shop.one, &shop.two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    let elsewhere = stranger.app(stranger.addresses(PORT)[0]);
    let mut draining = one.sidecar(&shop.orders(one, DRAIN));
    let _two = shop.two.sidecar(&shop.orders(&shop.two, ""));
    let _caller = shop.caller.sidecar(&shop.calls("", ""));

    let pause = Duration::from_millis(2);
    let gets = Load { pause, ..shop.load() }.start(&shop.caller);
    let posts = Load { method: "POST", body: "order".into(), pause, connections: 4, ..shop.load() };
    let posts = posts.start(&shop.caller);
    let mut plaintext = KeepAlive::open(&stranger, apps[0].address());
    assert!(!plaintext.get().contains("connection: close"));
    gets.more_from(one, 100);
    posts.more_from(one, 100);

    let slow = Load { path: SLOW.into(), connections: 8, requests: Some(8), ..shop.load() };
    let slow = slow.start(&shop.caller);
    eventually(PATIENCE, "slow requests at both", || apps.iter().all(|app| app.waiting() > 0).then_some(()));

    stop(&mut dns, &shop, &draining);
    eventually(PATIENCE, "/ready to say no", || (draining.probe("/ready").status == 503).then_some(()));
    assert!(draining.probe("/ready").text().contains("draining"));
    assert_eq!(draining.probe("/live").status, 200);
    // Endpoints have not heard yet: a new connection is served, and asked to be the last.
    let head = KeepAlive::open(&stranger, apps[0].address()).get();
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    let head = plaintext.get();
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    assert!(plaintext.ends_closed());

    let outbound = || one.enter(|| get(elsewhere.address(), "elsewhere", "/")).map(|answer| answer.status);
    assert_eq!(outbound().expect("its own requests go out"), 200);
    eventually(PATIENCE, "the inbound side to close", || {
        stranger.enter(|| get(apps[0].address(), "one", "/")).is_err().then_some(())
    });
    assert!(draining.process().ended().is_none(), "it left with requests in flight");
    assert_eq!(outbound().expect("its own requests go out to the last"), 200);

    let slow = slow.finish();
    slow.assert_all_ok();
    assert!(slow.pods[one.name()] > 0, "{slow:?}");
    let status = draining.wait(PATIENCE);
    assert!(status.success(), "{status}");
    assert!(draining.log().contains("nothing is in flight"), "it ran out of time");

    gets.more(200);
    let (gets, posts) = (gets.stop(), posts.stop());
    gets.assert_all_ok();
    posts.assert_all_ok();
    println!("{} GETs, {} POSTs, {} slow requests: no failure", gets.sent(), posts.sent(), slow.sent());
}

#[test]
fn sigterm_before_dns_hears() {
    drained(|dns, shop, sidecar| {
        sidecar.terminate();
        endpoints(dns, &[&shop.two]);
    });
}

#[test]
fn the_drain_door_after_dns_has_heard() {
    drained(|dns, shop, sidecar| {
        endpoints(dns, &[&shop.two]);
        assert_eq!(sidecar.post("/drain").status, 202);
    });
}
