//! What stands around a sidecar dies, hangs and comes back while requests pass. The sidecar lives
//! through all of it, requests that may be repeated do not fail, and no other is made twice.

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use support::app::App;
use support::client::talk;
use support::eventually;
use support::lab::Pod;
use support::load::{Load, Tally};
use support::shop::{NAME, PATIENCE, PORT, Shop, endpoints};
use support::sidecar::Sidecar;

/// A port carried as bytes.
const DATABASE: u16 = 3306;

/// Connections that send POSTs.
const POSTERS: usize = 4;

const PAUSE: Duration = Duration::from_millis(2);

fn assert_alive(sidecars: &mut [&mut Sidecar]) {
    for sidecar in sidecars {
        let ended = sidecar.process().ended();
        assert!(ended.is_none(), "a sidecar died ({ended:?}):\n{}", sidecar.log());
    }
}

/// POSTs failed only where it cannot be known whether they were processed: at most those that
/// were in flight when something died. None was processed twice.
fn assert_at_most_once(posts: &Tally, deaths: usize, taken: &[String]) {
    let failed = posts.sent() - posts.ok();
    assert!(failed as usize <= POSTERS * deaths, "more failed than were in flight: {posts:#?}");
    assert!(posts.failures.is_empty(), "a connection of the application was lost: {posts:#?}");
    assert!(posts.refused.keys().all(|why| why == "upstream.reset"), "{posts:#?}");
    let mut seen = HashSet::new();
    let twice: Vec<_> = taken.iter().filter(|id| !seen.insert(*id)).collect();
    assert!(twice.is_empty(), "made twice: {twice:?}");
}

fn redis_fails(without_redis: &str) {
    let (shop, _dns) = Shop::new(5);
    let mut redis = shop.lab.redis();
    let _apps = [&shop.one, &shop.two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    let mut one = shop.one.sidecar(&shop.orders(&shop.one, ""));
    let mut two = shop.two.sidecar(&shop.orders(&shop.two, ""));
    let limit = format!(
        "redis: {{ url: \"redis://{}\" }}
limits: [{{ name: all, rate: 100000/s, without_redis: {without_redis} }}]
",
        redis.address()
    );
    let mut caller = shop.caller.sidecar(&shop.calls("", &limit));
    let limits = |sidecar: &Sidecar| sidecar.get("/limits").json();
    let up = |sidecar: &Sidecar, up: bool| {
        let what = format!("redis to be {}", if up { "up" } else { "down" });
        eventually(PATIENCE, &what, || (limits(sidecar)["redis"]["up"] == up).then_some(()));
    };
    let count =
        |sidecar: &Sidecar, what: &str| limits(sidecar)["limits"][0][what].as_u64().expect("a number");
    let grows = |sidecar: &Sidecar, what: &str| {
        let before = count(sidecar, what);
        eventually(PATIENCE, what, || (count(sidecar, what) > before).then_some(()));
    };

    let gets = Load { pause: PAUSE, ..shop.load() }.start(&shop.caller);
    gets.more(200);
    up(&caller, true);
    assert!(count(&caller, "tokens_granted") > 0);

    redis.kill();
    up(&caller, false);
    grows(&caller, "decided_without_redis");
    gets.more(200);
    redis.restart();
    up(&caller, true);
    grows(&caller, "tokens_granted");
    gets.more(200);

    redis.pause();
    up(&caller, false);
    grows(&caller, "decided_without_redis");
    gets.more(200);
    redis.resume();
    up(&caller, true);
    grows(&caller, "tokens_granted");
    gets.more(200);

    let gets = gets.stop();
    gets.assert_all_ok();
    assert_alive(&mut [&mut caller, &mut one, &mut two]);
    println!(
        "{}: {} requests, {} decided without Redis",
        without_redis,
        gets.sent(),
        count(&caller, "decided_without_redis")
    );
}

#[test]
fn redis_dies_and_hangs_and_limits_share() {
    redis_fails("share");
}

#[test]
fn redis_dies_and_hangs_and_limits_are_open() {
    redis_fails("open");
}

#[test]
fn dns_dies_and_hangs_and_what_was_known_serves_on() {
    let (shop, mut dns) = Shop::new(1);
    let _apps = [&shop.one, &shop.two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    let mut one = shop.one.sidecar(&shop.orders(&shop.one, ""));
    let mut two = shop.two.sidecar(&shop.orders(&shop.two, ""));
    let mut caller = shop.caller.sidecar(&shop.calls("", "dns: { timeout: 500ms }\n"));
    let state = |sidecar: &Sidecar, wanted: &str| {
        eventually(PATIENCE, &format!("an answer that is {wanted}"), || {
            (sidecar.orders()["dns"]["state"] == wanted).then_some(())
        });
    };
    let gets = Load { pause: PAUSE, ..shop.load() }.start(&shop.caller);
    gets.more(200);
    state(&caller, "fresh");

    dns.kill();
    state(&caller, "stale");
    gets.more_from(&shop.one, 100);
    gets.more_from(&shop.two, 100);
    dns.restart(1);
    state(&caller, "fresh");

    dns.pause();
    state(&caller, "stale");
    gets.more_from(&shop.one, 100);
    gets.more_from(&shop.two, 100);
    dns.resume();
    state(&caller, "fresh");

    // It is asked again: what it says anew is followed.
    endpoints(&mut dns, &[&shop.two]);
    let only = shop.two.addresses(PORT)[0].to_string();
    eventually(PATIENCE, "the new set", || {
        let orders = caller.orders();
        let endpoints = orders["endpoints"].as_array().expect("a list");
        (endpoints.len() == 1 && endpoints[0]["address"] == only.as_str()).then_some(())
    });
    gets.more_from(&shop.two, 100);

    let gets = gets.stop();
    gets.assert_all_ok();
    assert_alive(&mut [&mut caller, &mut one, &mut two]);
    println!("{} requests: no failure", gets.sent());
}

#[test]
fn dns_is_late_and_what_comes_first_waits_for_it() {
    let (shop, dns) = Shop::new(1);
    let _apps = [&shop.one, &shop.two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    let _database = shop.one.greeting_app(shop.one.addresses(DATABASE)[0], b"\x0a8.0.36-greeting");
    let _orders =
        [&shop.one, &shop.two].map(|pod| pod.sidecar(&shop.orders(pod, "inbound: { mtls: strict }\n")));
    let endpoint = shop.one.addresses(DATABASE)[0];
    let database = format!("  database: {{ address: {NAME}:{DATABASE}, endpoints: {endpoint} }}\n");
    dns.pause();
    let caller = shop.caller.sidecar(&shop.calls("", &database));

    // Nobody is at the virtual address, and no endpoint takes plaintext: there is one way to succeed.
    let gets = Load { requests: Some(100), ..shop.load() }.start(&shop.caller);
    let to = SocketAddr::new(Shop::vip().ip(), DATABASE);
    std::thread::scope(|scope| {
        let heard = || shop.caller.enter(|| talk(to, "", |got| got.ends_with(b"greeting")));
        let heard = scope.spawn(heard);
        eventually(PATIENCE, "connections", || {
            let open = caller.metric("pannier_downstream_connections", &["direction=\"outbound\""]);
            (open >= 9.0).then_some(())
        });
        dns.resume();
        let heard = heard.join().expect("a thread").expect("a greeting");
        assert_eq!(heard, b"\x0a8.0.36-greeting");
    });
    gets.finish().assert_all_ok();
}

#[test]
fn an_endpoints_sidecar_is_killed_and_comes_back() {
    let (shop, _dns) = Shop::new(1);
    let apps = [&shop.one, &shop.two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    // Something is in flight at every moment.
    apps.iter().for_each(|app| app.delay(Duration::from_millis(5)));
    let config = shop.orders(&shop.one, "");
    let mut one = shop.one.sidecar(&config);
    let mut two = shop.two.sidecar(&shop.orders(&shop.two, ""));
    let mut caller = shop.caller.sidecar(&shop.calls("", ""));
    let gets = shop.load().start(&shop.caller);
    let posts = Load { method: "POST", body: "order".into(), connections: POSTERS, ..shop.load() };
    let posts = posts.start(&shop.caller);

    for _ in 0..2 {
        gets.more_from(&shop.one, 50);
        posts.more_from(&shop.one, 20);
        one.kill();
        gets.more_from(&shop.two, 100);
        posts.more_from(&shop.two, 50);
        // Long enough to be tried in vain a second time.
        std::thread::sleep(Duration::from_millis(1200));
        one = shop.one.sidecar(&config);
    }
    gets.more_from(&shop.one, 100);
    posts.more_from(&shop.one, 50);

    let (gets, posts) = (gets.stop(), posts.stop());
    assert_alive(&mut [&mut caller, &mut one, &mut two]);
    let taken: Vec<_> = apps.into_iter().flat_map(App::kill).collect();
    gets.assert_all_ok();
    assert_at_most_once(&posts, 2, &taken);
    println!(
        "{} GETs: no failure; {} POSTs, of which {} failed",
        gets.sent(),
        posts.sent(),
        posts.sent() - posts.ok()
    );
}

#[test]
fn an_endpoints_application_is_killed_and_comes_back() {
    let (shop, _dns) = Shop::new(1);
    let start = |pod: &Pod| {
        let app = pod.app(pod.addresses(PORT)[0]);
        app.delay(Duration::from_millis(5));
        app
    };
    let (mut app, other) = (start(&shop.one), start(&shop.two));
    let mut one = shop.one.sidecar(&shop.orders(&shop.one, ""));
    let mut two = shop.two.sidecar(&shop.orders(&shop.two, ""));
    let mut caller = shop.caller.sidecar(&shop.calls("", ""));
    let gets = shop.load().start(&shop.caller);
    let posts = Load { method: "POST", body: "order".into(), connections: POSTERS, ..shop.load() };
    let posts = posts.start(&shop.caller);

    let mut taken = Vec::new();
    for _ in 0..2 {
        gets.more_from(&shop.one, 50);
        posts.more_from(&shop.one, 20);
        let unreached = one.metric("pannier_refused_total", &["reason=\"pool.connect\""]);
        taken.extend(app.kill());
        gets.more_from(&shop.two, 100);
        posts.more_from(&shop.two, 50);
        // It was tried all the same: what it did not take went to the other.
        assert!(one.metric("pannier_refused_total", &["reason=\"pool.connect\""]) > unreached);
        app = start(&shop.one);
    }
    gets.more_from(&shop.one, 100);
    posts.more_from(&shop.one, 50);

    let (gets, posts) = (gets.stop(), posts.stop());
    assert_alive(&mut [&mut caller, &mut one, &mut two]);
    taken.extend(app.kill());
    taken.extend(other.kill());
    gets.assert_all_ok();
    assert_at_most_once(&posts, 2, &taken);
    println!(
        "{} GETs: no failure; {} POSTs, of which {} failed",
        gets.sent(),
        posts.sent(),
        posts.sent() - posts.ok()
    );
}
