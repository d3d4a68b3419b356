use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use tokio::runtime::Handle;

use super::*;
use crate::dns::{Responder, State, Zone};
use crate::error::Reason;

const SECOND: Duration = Duration::from_secs(1);
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

fn responder(zone: &Arc<Zone>, port: u16) -> Responder {
    Responder::start((LOOPBACK, port).into(), zone.clone(), &Handle::current()).expect("a responder")
}

#[tokio::test]
async fn changes_are_followed_and_both_families_count() {
    let zone = Zone::new();
    zone.set("orders.mesh", SECOND, [ip("10.0.0.2"), ip("fd00::1"), ip("10.0.0.1")]);
    let server = responder(&zone, 0);
    let resolver = resolver(&[server.address()]);
    let mut answer = resolver.watch("Orders.Mesh");
    assert_eq!(answer.borrow().state, State::Pending);
    let first = addresses(&mut answer, &["10.0.0.1", "10.0.0.2", "fd00::1"]).await;
    assert_eq!(first.state, State::Fresh);

    zone.set("orders.mesh", SECOND, [ip("10.0.0.3")]);
    let second = addresses(&mut answer, &["10.0.0.3"]).await;
    assert_eq!(second.state, State::Fresh);
}

#[tokio::test]
async fn the_set_is_the_same_allocation_while_it_is_the_same() {
    let zone = Zone::new();
    zone.set("orders.mesh", SECOND, [ip("10.0.0.1")]);
    let server = responder(&zone, 0);
    let resolver = resolver(&[server.address()]);
    let mut answer = resolver.watch("orders.mesh");
    let first = addresses(&mut answer, &["10.0.0.1"]).await;
    let renewed = until(&mut answer, |answer| answer.expires > first.expires).await;
    assert!(Arc::ptr_eq(&first.addresses, &renewed.addresses));
}

#[tokio::test]
async fn a_dead_server_leaves_stale_addresses_and_recovery_is_followed() {
    let zone = Zone::new();
    zone.set("orders.mesh", SECOND, [ip("10.0.0.1")]);
    let server = responder(&zone, 0);
    let address = server.address();
    let resolver = resolver(&[address]);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;

    drop(server);
    let stale = until(&mut answer, |answer| matches!(answer.state, State::Stale { .. })).await;
    assert_eq!(*stale.addresses, [ip("10.0.0.1")]);
    let snapshot = resolver.snapshot();
    assert!(snapshot.stale > 0 && snapshot.failures > 0 && snapshot.queries > snapshot.failures);
    assert_eq!(snapshot.names[0].state, "stale");
    assert!(snapshot.names[0].ttl_left.expect("it expired") <= 0.0);
    let error = snapshot.names[0].last_error.clone().expect("an error");
    assert!(error.contains(&address.to_string()), "{error}");

    zone.set("orders.mesh", SECOND, [ip("10.0.0.2")]);
    let _server = responder(&zone, address.port());
    let fresh = addresses(&mut answer, &["10.0.0.2"]).await;
    assert_eq!(fresh.state, State::Fresh);
}

#[tokio::test]
async fn a_stale_answer_ends_with_its_bound() {
    let zone = Zone::new();
    zone.set("orders.mesh", SECOND, [ip("10.0.0.1")]);
    let server = responder(&zone, 0);
    let settings = model::Dns { stale: Time(SECOND), ..settings(&[server.address()]) };
    let resolver = resolver_with(&settings, NONE, NONE);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    drop(server);
    let gone = until(&mut answer, |answer| answer.addresses.is_empty()).await;
    assert!(matches!(gone.state, State::Failed { reason: Reason::DnsNoAnswer, .. }), "{gone:?}");
}

#[tokio::test]
async fn servfail_and_refused_never_empty_a_set() {
    for refusal in [ResponseCode::ServFail, ResponseCode::Refused] {
        let failing = Arc::new(AtomicBool::new(false));
        let server = Scripted::start({
            let failing = failing.clone();
            move |query, _| match failing.load(Ordering::Relaxed) {
                true => code(query, refusal),
                false => with(query, 1, &["10.0.0.1"]),
            }
        });
        let resolver = resolver(&[server.address]);
        let mut answer = resolver.watch("orders.mesh");
        addresses(&mut answer, &["10.0.0.1"]).await;
        failing.store(true, Ordering::Relaxed);
        let stale = until(&mut answer, |answer| answer.state != State::Fresh).await;
        assert_eq!(*stale.addresses, [ip("10.0.0.1")]);
        let State::Stale { why } = stale.state else { panic!("{stale:?}") };
        assert!(why.contains(refusal.to_str()), "{why}");
        failing.store(false, Ordering::Relaxed);
        until(&mut answer, |answer| answer.state == State::Fresh).await;
    }
}

#[tokio::test]
async fn one_nxdomain_never_empties_and_a_lasting_one_does() {
    let gone = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let server = Scripted::start({
        let (gone, asked) = (gone.clone(), asked.clone());
        move |query, _| {
            let turn = asked.fetch_add(usize::from(kind(query) == RecordType::A), Ordering::Relaxed);
            match gone.load(Ordering::Relaxed) || turn == 1 {
                true => code(query, ResponseCode::NXDomain),
                false => with(query, 1, &["10.0.0.1"]),
            }
        }
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    // Every answer that is published past the one NXDOMAIN has its address.
    while server.asked_for(RecordType::A) < 4 {
        tokio::time::timeout(PATIENCE, answer.changed()).await.expect("in time").expect("open");
        assert_eq!(*answer.borrow_and_update().addresses, [ip("10.0.0.1")]);
    }
    gone.store(true, Ordering::Relaxed);
    let before = server.asked_for(RecordType::A);
    let empty = until(&mut answer, |answer| answer.addresses.is_empty()).await;
    assert!(server.asked_for(RecordType::A) >= before + 2);
    assert!(matches!(empty.state, State::Failed { reason: Reason::DnsNoSuchName, .. }), "{empty:?}");
}

#[tokio::test]
async fn silence_in_one_family_holds_up_nothing() {
    let server = Scripted::start(|query, _| match kind(query) {
        RecordType::A => with(query, 1, &["10.0.0.1"]),
        _ => Step::Silence,
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    let first = addresses(&mut answer, &["10.0.0.1"]).await;
    assert_eq!(first.state, State::Fresh);
    // Past several failures of the other family, it is still fresh.
    while resolver.snapshot().failures < 2 {
        tokio::time::timeout(PATIENCE, answer.changed()).await.expect("in time").expect("open");
        let now = answer.borrow_and_update();
        assert_eq!((now.addresses.len(), &now.state), (1, &State::Fresh));
    }
}

#[tokio::test]
async fn an_answer_with_another_id_is_no_answer() {
    let server = Scripted::start(|query, _| {
        let Step::Reply(mut wrong) = with(query, 300, &["10.6.6.6"]) else { unreachable!() };
        wrong.metadata.id = query.metadata.id.wrapping_add(1);
        Step::Raw(wrong.to_vec().expect("encoded"))
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    let failed = until(&mut answer, |answer| answer.state != State::Pending).await;
    assert!(matches!(failed.state, State::Failed { reason: Reason::DnsNoAnswer, .. }), "{failed:?}");
}

#[tokio::test]
async fn garbage_is_a_failure() {
    let server = Scripted::start(|query, _| {
        let [high, low] = query.metadata.id.to_be_bytes();
        Step::Raw(vec![high, low, 0x80, 0, 0, 1, 0, 9, 0, 0, 0, 0, 0xff, 0xff, 0xff])
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    let failed = until(&mut answer, |answer| answer.state != State::Pending).await;
    assert!(matches!(failed.state, State::Failed { reason: Reason::DnsNoAnswer, .. }), "{failed:?}");
}

#[tokio::test]
async fn many_watchers_are_one_flight_and_the_last_one_ends_it() {
    let server = Scripted::start(|query, _| with(query, 1, &["10.0.0.1"]));
    let resolver = resolver(&[server.address]);
    let mut watchers: Vec<_> = (0..50).map(|_| resolver.watch("orders.mesh")).collect();
    for watcher in &mut watchers {
        addresses(watcher, &["10.0.0.1"]).await;
    }
    assert_eq!(server.asked_for(RecordType::A), 1);
    assert_eq!(resolver.snapshot().names.len(), 1);

    watchers.truncate(1);
    let renewed = server.asked_for(RecordType::A) + 2;
    while server.asked_for(RecordType::A) < renewed {
        tokio::time::timeout(PATIENCE, watchers[0].changed()).await.expect("in time").expect("open");
    }
    drop(watchers);
    let forgotten = async {
        while !resolver.snapshot().names.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("forgotten");
    let asked = server.asked().len();
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(server.asked().len(), asked);
}

#[tokio::test]
async fn a_name_watched_again_before_it_expires_answers_at_once() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    drop(answer);
    tokio::task::yield_now().await;
    assert_eq!(resolver.watch("orders.mesh").borrow().state, State::Fresh);
    assert_eq!(server.asked_for(RecordType::A), 1);
}

#[tokio::test]
async fn an_address_is_its_own_answer() {
    let server = Scripted::start(|_, _| Step::Silence);
    let resolver = resolver(&[server.address]);
    for text in ["10.0.0.7", "fd00::7"] {
        let answer = resolver.watch(text).borrow().clone();
        assert_eq!((&*answer.addresses, answer.state), (&[ip(text)][..], State::Fresh));
        assert_eq!(answer.expires, None);
    }
    let kept = resolver.watch("10.0.0.7");
    tokio::task::yield_now().await;
    assert!(kept.has_changed().is_ok(), "the channel stays open");
    assert!(server.asked().is_empty());
    assert!(resolver.snapshot().names.is_empty());
}

#[tokio::test]
async fn a_cold_failure_names_each_server_and_its_words() {
    let broken = Scripted::start(|query, _| code(query, ResponseCode::ServFail));
    let silent = Scripted::start(|_, _| Step::Silence);
    let resolver = resolver(&[broken.address, silent.address]);
    let mut answer = resolver.watch("orders.mesh");
    let failed = until(&mut answer, |answer| answer.state != State::Pending).await;
    let State::Failed { reason: Reason::DnsNoAnswer, why } = failed.state else { panic!("{failed:?}") };
    assert!(why.contains(&format!("{} answered Server Failure", broken.address)), "{why}");
    assert!(why.contains(&format!("{} did not answer", silent.address)), "{why}");
}

#[tokio::test]
async fn the_least_ttl_of_a_chain_counts_over_several_queries() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        "orders.mesh." => alias(query, 2, "blue.mesh."),
        _ => with(query, 300, &["10.0.0.1"]),
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    let first = addresses(&mut answer, &["10.0.0.1"]).await;
    let left = first.expires.expect("it expires") - tokio::time::Instant::now();
    assert!(left <= 2 * SECOND, "{left:?}");
}

#[tokio::test]
async fn a_loop_of_aliases_ends() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        "a.mesh." => alias(query, 1, "b.mesh."),
        _ => alias(query, 1, "a.mesh."),
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("a.mesh");
    let failed = until(&mut answer, |answer| answer.state != State::Pending).await;
    assert!(matches!(failed.state, State::Failed { .. }), "{failed:?}");
}

#[tokio::test]
async fn the_search_list_finds_a_name_once() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        "orders.svc.mesh." => with(query, 1, &["10.0.0.1"]),
        _ => code(query, ResponseCode::NXDomain),
    });
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, "search shop.mesh svc.mesh\nnameserver 127.0.0.1\noptions ndots:5\n")
        .expect("written");
    let resolver = resolver_with(&settings(&[server.address]), &file, NONE);
    let mut answer = resolver.watch("orders");
    let first = addresses(&mut answer, &["10.0.0.1"]).await;
    until(&mut answer, |answer| answer.expires > first.expires).await;
    let asked: Vec<_> =
        server.asked().into_iter().filter(|a| a.kind == RecordType::A).map(|a| a.name).collect();
    assert_eq!(asked[..3], ["orders.shop.mesh.", "orders.svc.mesh.", "orders.svc.mesh."]);
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_followed() {
    let server = Scripted::start(|query, _| with(query, 1, &["10.0.0.9"]));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, "10.0.0.1 orders.mesh orders # here\n").expect("written");
    let resolver = resolver_with(&settings(&[server.address]), NONE, &file);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    assert!(server.asked().is_empty());
    std::fs::write(&file, "10.0.0.23 orders.mesh\n").expect("written");
    addresses(&mut answer, &["10.0.0.23"]).await;
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn other_servers_take_over_with_the_answers_in_service() {
    let old = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let new = Scripted::start(|query, _| with(query, 300, &["10.0.0.2"]));
    let resolver = resolver(&[old.address]);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    resolver.reconfigure(&settings(&[new.address])).expect("reconfigured");
    let next = until(&mut answer, |answer| *answer.addresses != [ip("10.0.0.1")]).await;
    assert_eq!(*next.addresses, [ip("10.0.0.2")]);
}

#[tokio::test]
async fn what_is_no_name_fails_without_a_query() {
    let server = Scripted::start(|_, _| Step::Silence);
    let resolver = resolver(&[server.address]);
    let label = "x".repeat(64);
    let mut answer = resolver.watch(&label);
    let failed = until(&mut answer, |answer| answer.state != State::Pending).await;
    assert!(matches!(failed.state, State::Failed { reason: Reason::DnsNoSuchName, .. }), "{failed:?}");
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn the_responder_takes_any_bytes() {
    let zone = Zone::new();
    zone.set("orders.mesh", SECOND, [ip("10.0.0.1")]);
    let server = responder(&zone, 0);
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    for length in 0..600 {
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect();
        socket.send_to(&noise, server.address()).await.expect("sent");
    }
    let servers: [SocketAddr; 1] = [server.address()];
    let resolver = resolver(&servers);
    addresses(&mut resolver.watch("orders.mesh"), &["10.0.0.1"]).await;
}

#[tokio::test]
async fn a_name_that_exists_without_an_address_is_told_from_one_that_does_not_exist() {
    let server = Scripted::start(|query, _| match name(query).as_str() {
        "empty.mesh." => with(query, 300, &[]),
        _ => code(query, ResponseCode::NXDomain),
    });
    let resolver = resolver(&[server.address]);
    for (name, expected) in [("empty.mesh", Reason::DnsNoAddress), ("nobody.mesh", Reason::DnsNoSuchName)] {
        let failed = until(&mut resolver.watch(name), |answer| answer.state != State::Pending).await;
        assert!(matches!(failed.state, State::Failed { reason, .. } if reason == expected), "{failed:?}");
    }
}

#[tokio::test]
async fn the_systems_files_are_followed() {
    let old = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let directory = tempfile::tempdir().expect("a directory");
    let (resolv_conf, hosts) = (directory.path().join("resolv.conf"), directory.path().join("hosts"));
    std::fs::write(&resolv_conf, "search one.mesh\noptions ndots:5\n").expect("written");
    std::fs::write(&hosts, "").expect("written");
    let resolver = resolver_with(&settings(&[old.address]), &resolv_conf, &hosts);
    let mut answer = resolver.watch("orders");
    addresses(&mut answer, &["10.0.0.1"]).await;
    assert_eq!(old.asked()[0].name, "orders.one.mesh.");
    assert_eq!(resolver.meant_by("orders.one.mesh").as_deref(), Some("orders"));

    std::fs::write(&resolv_conf, "search two.mesh\noptions ndots:5\n").expect("written");
    let searched = async {
        while resolver.meant_by("orders.two.mesh").is_none() {
            answer.changed().await.expect("open");
            assert_eq!(*answer.borrow_and_update().addresses, [ip("10.0.0.1")], "it serves on");
        }
    };
    tokio::time::timeout(PATIENCE, searched).await.expect("followed");

    // Long before the answer's own end.
    std::fs::write(&hosts, "10.0.0.7 orders\n").expect("written");
    addresses(&mut answer, &["10.0.0.7"]).await;
}

#[tokio::test]
async fn a_server_that_rotates_thrashes_nothing() {
    let turn = Arc::new(AtomicUsize::new(0));
    let server = Scripted::start({
        let turn = turn.clone();
        move |query, _| {
            let turn = turn.fetch_add(usize::from(kind(query) == RecordType::A), Ordering::Relaxed);
            with(
                query,
                1,
                [&["10.0.0.1", "10.0.0.2"], &["10.0.0.2", "10.0.0.3"], &["10.0.0.3", "10.0.0.1"]][turn % 3],
            )
        }
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    let whole = addresses(&mut answer, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]).await;
    let asked = turn.load(Ordering::Relaxed);
    while turn.load(Ordering::Relaxed) < asked + 4 {
        tokio::time::timeout(PATIENCE, answer.changed()).await.expect("in time").expect("open");
        assert!(Arc::ptr_eq(&answer.borrow_and_update().addresses, &whole.addresses), "one set from then on");
    }
}

#[tokio::test]
async fn an_answer_of_any_size_makes_a_set_of_a_bounded_one() {
    let all: Vec<String> = (0..2000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
    let server = Scripted::start(move |query, _| {
        with(query, 300, &all.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    let first = until(&mut answer, |answer| answer.state != State::Pending).await;
    assert_eq!(first.addresses.len(), 1024, "{:?}", first.state);
}
