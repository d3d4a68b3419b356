use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hickory_resolver::proto::rr::rdata::SRV;

use super::*;
use crate::config::units::EndpointName;
use crate::dns::{EndpointSource, Resolution, State};

fn source(endpoints: &[&str]) -> EndpointSource {
    let endpoints: Vec<EndpointName> = endpoints.iter().map(|text| text.parse().expect("a name")).collect();
    EndpointSource::new(&endpoints)
}

fn endpoints(resolution: &Resolution) -> Vec<String> {
    resolution.endpoints.iter().map(|target| target.address.to_string()).collect()
}

async fn until(
    resolution: &mut watch::Receiver<Resolution>,
    such: impl FnMut(&Resolution) -> bool,
) -> Resolution {
    tokio::time::timeout(PATIENCE, resolution.wait_for(such)).await.expect("in time").expect("open").clone()
}

#[tokio::test]
async fn a_list_is_there_at_once_and_in_order() {
    let source = source(&["10.0.0.2:80", "[fd00::1]:8080", "10.0.0.1:80", "10.0.0.2:80"]);
    assert!(matches!(source, EndpointSource::Static(_)));
    let receiver = source.subscribe(&resolver(&[]));
    tokio::task::yield_now().await;
    assert!(receiver.has_changed().is_ok(), "the channel stays open");
    let resolution = receiver.borrow().clone();
    assert_eq!(endpoints(&resolution), ["10.0.0.2:80", "[fd00::1]:8080", "10.0.0.1:80"]);
    assert_eq!((resolution.state, resolution.expires), (State::Fresh, None));
}

#[tokio::test]
async fn a_name_is_followed_with_its_port() {
    let zone = crate::dns::Zone::new();
    let second = Duration::from_secs(1);
    zone.set("orders.mesh", second, [ip("10.0.0.1")]);
    let server = crate::dns::Responder::start(([127, 0, 0, 1], 0).into(), zone.clone(), &Handle::current())
        .expect("a responder");
    let resolver = resolver(&[server.address()]);
    let mut receiver = source(&["orders.mesh:8080"]).subscribe(&resolver);
    assert_eq!(receiver.borrow().state, State::Pending);
    let first = until(&mut receiver, |resolution| !resolution.endpoints.is_empty()).await;
    assert_eq!(endpoints(&first), ["10.0.0.1:8080"]);
    assert_eq!(first.state, State::Fresh);

    zone.set("orders.mesh", second, [ip("10.0.0.1"), ip("10.0.0.2")]);
    let second = until(&mut receiver, |resolution| resolution.endpoints.len() == 2).await;
    assert_eq!(endpoints(&second), ["10.0.0.1:8080", "10.0.0.2:8080"]);

    drop(receiver);
    let forgotten = async {
        while !resolver.snapshot().names.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("forgotten");
}

#[tokio::test]
async fn renewal_moves_the_expiry_without_a_signal() {
    let server = Scripted::start(|query, _| with(query, 1, &["10.0.0.1"]));
    let resolver = resolver(&[server.address]);
    let mut receiver = source(&["orders.mesh:80"]).subscribe(&resolver);
    let first = until(&mut receiver, |resolution| resolution.state == State::Fresh).await;
    let later = async {
        loop {
            let now = receiver.borrow().clone();
            if now.expires > first.expires {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let later = tokio::time::timeout(PATIENCE, later).await.expect("in time");
    assert!(Arc::ptr_eq(&first.endpoints, &later.endpoints));
    assert!(!receiver.has_changed().expect("open"));
}

#[tokio::test]
async fn a_name_that_fails_takes_nothing_from_its_neighbours() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        "blue.mesh." => with(query, 300, &["10.0.0.1"]),
        _ => code(query, ResponseCode::NXDomain),
    });
    let resolver = resolver(&[server.address]);
    let mut receiver = source(&["green.mesh:80", "blue.mesh:81", "10.0.0.9:82"]).subscribe(&resolver);
    let both = until(&mut receiver, |resolution| resolution.endpoints.len() == 2).await;
    assert_eq!(endpoints(&both), ["10.0.0.1:81", "10.0.0.9:82"]);
    assert_eq!(both.state, State::Fresh);

    let mut receiver = source(&["green.mesh:80", "red.mesh:80"]).subscribe(&resolver);
    let none = until(&mut receiver, |resolution| resolution.state != State::Pending).await;
    assert!(matches!(none.state, State::Failed { .. }), "{none:?}");
}

fn service(query: &Message, ttl: u32, services: &[(u16, u16, u16, &str)], glue: &[(&str, &str)]) -> Step {
    let mut reply = wire::reply_to(query);
    let owner = query.queries[0].name.clone();
    let data = services.iter().map(|(priority, weight, port, target)| {
        RData::SRV(SRV::new(*priority, *weight, *port, Name::from_ascii(target).expect("a name")))
    });
    reply.add_answers(data.map(|data| Record::from_rdata(owner.clone(), ttl, data)));
    for (owner, address) in glue {
        let owner = Name::from_ascii(owner).expect("a name");
        reply.add_additional(Record::from_rdata(owner, ttl, RData::from(ip(address))));
    }
    Step::Reply(Box::new(reply))
}

#[tokio::test]
async fn services_bring_ports_priorities_weights_and_zones() {
    let server = Scripted::start(|query, _| match (name(query).as_str(), kind(query)) {
        ("_http._tcp.orders.", RecordType::SRV) => service(
            query,
            300,
            &[(0, 3, 8080, "one.zone-a.orders."), (0, 0, 8081, "two.orders."), (1, 1, 8082, "three.orders.")],
            &[("one.zone-a.orders.", "10.0.0.1")],
        ),
        ("two.orders.", _) => with(query, 300, &["10.0.0.2"]),
        ("three.orders.", _) => with(query, 300, &["10.0.0.3"]),
        _ => code(query, ResponseCode::NXDomain),
    });
    let resolver = resolver(&[server.address]);
    let mut seen = source(&["_http._tcp.orders"]).subscribe(&resolver);
    let all = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| seen.endpoints.len() == 3));
    let all = all.await.expect("in time").expect("open").clone();
    assert_eq!(endpoints(&all), ["10.0.0.2:8081", "10.0.0.1:8080", "10.0.0.3:8082"]);
    let says: Vec<_> = all.endpoints.iter().map(|t| (t.priority, t.weight, t.zone.as_deref())).collect();
    assert_eq!(says, [(0, 1, None), (0, 3, Some("a")), (1, 1, None)]);
    assert!(!server.asked().iter().any(|asked| asked.name.starts_with("one.")), "its address came along");
    assert_eq!(resolver.snapshot().names[0].services.len(), 3);
}

#[tokio::test]
async fn services_that_take_the_place_of_others_empty_nothing_meanwhile() {
    let moved = Arc::new(AtomicBool::new(false));
    let known = Arc::new(AtomicBool::new(false));
    let server = Scripted::start({
        let (moved, known) = (moved.clone(), known.clone());
        move |query, _| match (name(query).as_str(), kind(query)) {
            ("_http._tcp.orders.", RecordType::SRV) if moved.load(Ordering::Relaxed) => {
                service(query, 1, &[(0, 1, 8080, "new.orders.")], &[])
            }
            ("_http._tcp.orders.", RecordType::SRV) => service(query, 1, &[(0, 1, 8080, "old.orders.")], &[]),
            ("old.orders.", _) => with(query, 300, &["10.0.0.1"]),
            ("new.orders.", _) if known.load(Ordering::Relaxed) => with(query, 300, &["10.0.0.2"]),
            _ => code(query, ResponseCode::ServFail),
        }
    });
    let resolver = resolver(&[server.address]);
    let mut seen = source(&["_http._tcp.orders"]).subscribe(&resolver);
    let first = |seen: &Resolution, text: &str| endpoints(seen) == [text];
    let wait = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| first(seen, "10.0.0.1:8080")));
    wait.await.expect("in time").expect("open");
    moved.store(true, Ordering::Relaxed);
    let stale = |seen: &Resolution| matches!(seen.state, State::Stale { .. });
    let wait = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| stale(seen) || seen.endpoints.is_empty()));
    assert_eq!(endpoints(&wait.await.expect("in time").expect("open")), ["10.0.0.1:8080"]);
    known.store(true, Ordering::Relaxed);
    let wait = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| !first(seen, "10.0.0.1:8080")));
    let now = wait.await.expect("in time").expect("open").clone();
    assert_eq!((endpoints(&now), now.state), (vec!["10.0.0.2:8080".to_owned()], State::Fresh));
}

#[tokio::test]
async fn of_both_families_one_is_the_way_around_the_other() {
    let server = Scripted::start(|query, _| with(query, 300, &["127.0.0.1", "::1"]));
    let resolver = resolver(&[server.address]);
    let mut seen = source(&["orders.mesh:80"]).subscribe(&resolver);
    let both = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| seen.endpoints.len() == 2));
    let both = both.await.expect("in time").expect("open").clone();
    let seconds: Vec<_> = both.endpoints.iter().map(|t| (t.address.is_ipv6(), t.second)).collect();
    assert_eq!(seconds, [(false, true), (true, false)]);
}

#[tokio::test]
async fn a_target_that_is_denied_once_empties_nothing() {
    let turn = Arc::new(AtomicUsize::new(0));
    let server = Scripted::start({
        let turn = turn.clone();
        move |query, _| match kind(query) {
            // Its address comes along at first, and then no more.
            RecordType::SRV => {
                let glue: &[_] = if turn.fetch_add(1, Ordering::Relaxed) == 0 {
                    &[("a.orders.", "10.0.0.1")]
                } else {
                    &[]
                };
                service(query, 1, &[(0, 1, 8080, "a.orders.")], glue)
            }
            _ if turn.load(Ordering::Relaxed) < 4 => code(query, ResponseCode::NXDomain),
            _ => with(query, 300, &["10.0.0.1"]),
        }
    });
    let resolver = resolver(&[server.address]);
    let mut seen = source(&["_http._tcp.orders"]).subscribe(&resolver);
    let wait = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| !seen.endpoints.is_empty()));
    wait.await.expect("in time").expect("open");
    while turn.load(Ordering::Relaxed) < 6 {
        assert_eq!(endpoints(&seen.borrow_and_update()), ["10.0.0.1:8080"]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_first_256_targets_without_an_address_are_asked_for() {
    let server = Scripted::start(|query, _| match kind(query) {
        RecordType::SRV => {
            let targets: Vec<String> = (0..300).map(|n| format!("t{n}.orders.")).collect();
            let services: Vec<_> = targets.iter().map(|target| (0, 1, 8080, target.as_str())).collect();
            service(query, 300, &services, &[])
        }
        RecordType::A => {
            let name = name(query);
            let number = name.trim_start_matches('t').split('.').next().and_then(|n| n.parse().ok());
            let number: u16 = number.expect("a number");
            with(query, 300, &[&format!("10.0.{}.{}", number / 256, number % 256)])
        }
        _ => code(query, ResponseCode::NoError),
    });
    let mut seen = source(&["_http._tcp.orders"]).subscribe(&resolver(&[server.address]));
    until(&mut seen, |seen| seen.endpoints.len() >= 256).await;
    assert_eq!(seen.borrow().endpoints.len(), 256);
}
