//! Names, end to end: what a sidecar does while records change, and while their server is gone.
//! A change is followed within its TTL and a second, and never costs a request.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use support::app::App;
use support::client::get;
use support::dns::Dns;
use support::eventually;
use support::lab::{Lab, Pod};
use support::load::{Load, Sending};
use support::sidecar::Sidecar;

const HOST: &str = "orders.shop.svc.cluster.local";
const ENDPOINTS: &str = "orders-headless.shop.svc.cluster.local";
const PORT: u16 = 8080;
const VIP: &str = "10.96.0.10";

/// What a change may take beyond its TTL.
const GRACE: Duration = Duration::from_secs(1);

/// Where the sidecar answers the pod's queries.
const CAPTURE: &str = "127.0.0.1:15053";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn vip() -> SocketAddr {
    SocketAddr::new(ip(VIP), PORT)
}

/// A caller of orders with its sidecar, two pods of orders, and their names.
struct Shop<'a> {
    dns: &'a mut Dns,
    caller: &'a Pod,
    sidecar: &'a Sidecar<'a>,
    one: &'a App,
    two: &'a App,
}

/// Sets the shop up, with `one` as the only endpoint.
fn shop(ttl: u32, test: impl FnOnce(Shop<'_>)) {
    let lab = Lab::new();
    let (caller, one, two) = (lab.pod("caller"), lab.pod("one"), lab.pod("two"));
    let mut dns = lab.dns(ttl);
    let [one, two] = [&one, &two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    dns.set(HOST, &[vip().ip()]);
    dns.set(ENDPOINTS, &[one.address().ip()]);
    caller.init();
    let sidecar = caller.sidecar(&format!(
        "upstreams: {{ orders: {{ address: \"{HOST}:{PORT}\", endpoints: \"{ENDPOINTS}:{PORT}\" }} }}\n"
    ));
    test(Shop { dns: &mut dns, caller: &caller, sidecar: &sidecar, one: &one, two: &two });
}

impl Shop<'_> {
    /// Requests on and on; the pauses leave room for everybody else.
    fn load(&self) -> Sending {
        let load = Load::new(vip(), &format!("{HOST}:{PORT}"));
        Load { connections: 4, pause: Duration::from_millis(3), ..load }.start(self.caller)
    }

    /// What is known of a name.
    fn known(&self, name: &str) -> serde_json::Value {
        let all = self.sidecar.get("/upstreams").json();
        let names = all["dns"]["names"].as_array().unwrap_or_else(|| panic!("no names: {all}"));
        let found = names.iter().find(|known| known["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}: {all}")).clone()
    }

    /// Waits for `app` to take requests that are sent from now on.
    fn await_requests(&self, app: &App) {
        let before = app.requests().len();
        eventually(Duration::from_secs(15), "requests", || {
            (app.requests().len() > before + 10).then_some(())
        });
    }
}

/// Moves the endpoints from one pod to another, and says when the server knew.
fn moved(shop: &mut Shop<'_>, to: SocketAddr) -> Instant {
    shop.dns.set(ENDPOINTS, &[to.ip()]);
    // A little later than the server's own moment, by as much as it takes to look.
    Instant::now()
}

fn change_is_followed(ttl: u32) {
    shop(ttl, |mut shop| {
        let load = shop.load();
        shop.await_requests(shop.one);
        let to = shop.two.address();
        let changed = moved(&mut shop, to);
        let due = Duration::from_secs(ttl.into()) + GRACE;
        std::thread::sleep(due + Duration::from_secs(1));
        shop.await_requests(shop.two);
        load.stop().assert_all_ok();
        let late = shop.one.requests().iter().filter(|at| **at > changed + due).count();
        assert_eq!(late, 0, "requests reached the old endpoint more than {due:?} after the change");
    });
}

#[test]
fn a_change_is_followed_within_a_ttl_of_1_s() {
    change_is_followed(1);
}

#[test]
fn a_change_is_followed_within_a_ttl_of_2_s() {
    change_is_followed(2);
}

#[test]
fn a_server_that_hangs_costs_no_request() {
    shop(1, |mut shop| {
        let load = shop.load();
        shop.await_requests(shop.one);
        shop.dns.pause();
        eventually(Duration::from_secs(15), "a stale name", || {
            (shop.known(ENDPOINTS)["state"] == "stale").then_some(())
        });
        std::thread::sleep(Duration::from_secs(2));
        shop.await_requests(shop.one);
        shop.dns.resume();
        let to = shop.two.address();
        moved(&mut shop, to);
        shop.await_requests(shop.two);
        load.stop().assert_all_ok();
    });
}

#[test]
fn a_server_that_is_gone_costs_no_request() {
    shop(1, |mut shop| {
        let load = shop.load();
        shop.await_requests(shop.one);
        shop.dns.kill();
        eventually(Duration::from_secs(15), "a stale name", || {
            (shop.known(ENDPOINTS)["state"] == "stale").then_some(())
        });
        std::thread::sleep(Duration::from_secs(2));
        shop.await_requests(shop.one);
        shop.dns.restart(1);
        let to = shop.two.address();
        moved(&mut shop, to);
        shop.await_requests(shop.two);
        load.stop().assert_all_ok();
    });
}

#[test]
fn a_name_that_is_denied_for_a_moment_keeps_its_endpoints() {
    // Shorter than the pause before a denial is asked for a second time.
    let moment = Duration::from_millis(700);
    shop(1, |mut shop| {
        let mut lasted = Duration::MAX;
        for _ in 0..5 {
            let load = shop.load();
            shop.await_requests(shop.one);
            shop.dns.set(ENDPOINTS, &[]);
            let mut undenied = Instant::now();
            eventually(Duration::from_secs(10), "a denial", || {
                let before = Instant::now();
                let known = shop.known(ENDPOINTS);
                assert!(!known["addresses"].as_array().expect("a list").is_empty(), "emptied: {known}");
                let denied = !known["last_error"].is_null();
                if !denied {
                    undenied = before;
                }
                denied.then_some(())
            });
            let back = shop.one.address();
            lasted = moved(&mut shop, back) - undenied;
            shop.await_requests(shop.one);
            let tally = load.stop();
            if lasted < moment {
                tally.assert_all_ok();
                let known = shop.known(ENDPOINTS);
                assert_eq!(known["addresses"][0], back.ip().to_string(), "{known}");
                return;
            }
            // The machine was too busy to make a moment of it.
        }
        panic!("no denial was shorter than {moment:?}; the last took {lasted:?}");
    });
}

#[test]
fn the_address_that_applications_dial_is_followed() {
    let other = "10.96.0.11";
    shop(1, |shop| {
        let load = shop.load();
        shop.await_requests(shop.one);
        let host = format!("{HOST}:{PORT}");
        let ask = || {
            let sent = Instant::now();
            let to = SocketAddr::new(ip(other), PORT);
            let answer = shop.caller.enter(|| get(to, &host, "/")).expect("an answer");
            (sent, answer.status.as_u16())
        };
        // An address like any other: nothing is there.
        assert_eq!(ask().1, 503);
        shop.dns.set(HOST, &[ip(VIP), ip(other)]);
        let changed = Instant::now();
        let mut refused = changed;
        eventually(Duration::from_secs(15), "the new address", || {
            let (sent, status) = ask();
            if status != 200 {
                refused = sent;
            }
            (status == 200).then_some(())
        });
        let due = Duration::from_secs(1) + GRACE;
        assert!(refused <= changed + due, "unknown {:?} after the change", refused - changed);
        load.stop().assert_all_ok();
    });
}

/// A message of the pod's own, asking for addresses of `kind`.
fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query.to_vec().expect("a message")
}

async fn over_udp(query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.send_to(query, CAPTURE).await?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn over_tcp(query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(CAPTURE).await?;
    stream.write_u16(query.len() as u16).await?;
    stream.write_all(query).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

impl Shop<'_> {
    /// Asks the sidecar over UDP and TCP, which have to say the same.
    fn ask(&self, name: &str, kind: RecordType) -> (ResponseCode, Vec<IpAddr>) {
        let query = query(name, kind);
        let both = self.caller.enter(|| async {
            let both = async { [over_udp(&query).await, over_tcp(&query).await] };
            tokio::time::timeout(Duration::from_secs(12), both).await.expect("an answer in time")
        });
        let [udp, tcp] = both.map(|answer| {
            let answer = Message::from_vec(&answer.expect("an answer")).expect("a message");
            assert_eq!(answer.metadata.id, 4711);
            let address = |data: &RData| data.ip_addr();
            let mut addresses: Vec<_> = answer.answers.iter().filter_map(|r| address(&r.data)).collect();
            addresses.sort_unstable();
            assert!(answer.answers.iter().all(|record| record.ttl <= 5), "a TTL beyond the record's");
            (answer.metadata.response_code, addresses)
        });
        assert_eq!(udp, tcp);
        udp
    }
}

#[test]
fn the_pods_queries_are_answered_or_passed_on() {
    shop(1, |shop| {
        let elsewhere = "elsewhere.shop.svc.cluster.local";
        shop.dns.set(elsewhere, &[ip("10.1.2.3"), ip("fd00::3")]);
        let ok = ResponseCode::NoError;
        assert_eq!(shop.ask(HOST, RecordType::A), (ok, vec![ip(VIP)]));
        assert_eq!(shop.ask("ORDERS.Shop.svc.cluster.local.", RecordType::A), (ok, vec![ip(VIP)]));
        assert_eq!(shop.ask(HOST, RecordType::AAAA), (ok, vec![]));
        assert_eq!(shop.ask(elsewhere, RecordType::A), (ok, vec![ip("10.1.2.3")]));
        assert_eq!(shop.ask(elsewhere, RecordType::AAAA), (ok, vec![ip("fd00::3")]));
        assert_eq!(shop.ask("nobody.shop.svc.cluster.local", RecordType::A).0, ResponseCode::NXDomain);
        // What the mesh needs is answered without a server, and what was known; the rest cannot be.
        shop.dns.kill();
        assert_eq!(shop.ask(elsewhere, RecordType::A), (ok, vec![ip("10.1.2.3")]));
        assert_eq!(shop.ask("never.shop.svc.cluster.local", RecordType::A).0, ResponseCode::ServFail);
        assert_eq!(shop.ask(HOST, RecordType::A), (ok, vec![ip(VIP)]));
    });
}
