//! Which servers are asked, how, and what is made of what they say together.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::dns::State;
use crate::error::Reason;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn another_server_answers_where_one_fails() {
    let broken = Scripted::start(|query, _| code(query, ResponseCode::ServFail));
    let silent = Scripted::start(|_, _| Step::Silence);
    let good = Scripted::start(|query, _| with(query, 1, &["10.0.0.1"]));
    let resolver = resolver(&[broken.address, silent.address, good.address]);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    // Those that fail are asked again now and then, and are not in the way.
    while good.asked_for(RecordType::A) < 5 {
        tokio::time::timeout(PATIENCE, answer.changed()).await.expect("in time").expect("open");
        assert_eq!(answer.borrow_and_update().state, State::Fresh);
    }
    assert!((1..5).contains(&silent.asked_for(RecordType::A)), "{}", silent.asked_for(RecordType::A));
}

#[tokio::test]
async fn a_slow_server_is_helped_by_the_next_one() {
    let slow = Scripted::start(|_, _| Step::Silence);
    let good = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let settings = model::Dns {
        timeout: Time(Duration::from_secs(4)),
        resolution_timeout: Time(Duration::from_secs(3)),
        ..settings(&[slow.address, good.address])
    };
    let resolver = resolver_with(&settings, NONE, NONE);
    let mut answer = resolver.watch("orders.mesh");
    // In less than the slow one's own time, which is beyond that of the whole resolution.
    addresses(&mut answer, &["10.0.0.1"]).await;
    assert!(resolver.snapshot().servers[0].asked_last);
}

#[tokio::test]
async fn a_resolution_ends_with_its_time_and_says_so() {
    let silent = Scripted::start(|_, _| Step::Silence);
    let settings = model::Dns {
        timeout: Time(Duration::from_secs(60)),
        resolution_timeout: Time(SECOND),
        ..settings(&[silent.address])
    };
    let resolver = resolver_with(&settings, NONE, NONE);
    let failed = until(&mut resolver.watch("orders.mesh"), |answer| answer.state != State::Pending).await;
    let State::Failed { reason: Reason::DnsNoAnswer, why } = failed.state else { panic!("{failed:?}") };
    assert!(why.contains("resolution_timeout"), "{why}");
}

#[tokio::test]
async fn a_domain_is_asked_for_at_its_own_servers_alone() {
    let own = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let others = Scripted::start(|query, _| with(query, 300, &["10.0.0.2"]));
    let domains = [("endpoints.mesh".to_owned(), vec![own.address])].into();
    let resolver = resolver_with(&model::Dns { domains, ..settings(&[others.address]) }, NONE, NONE);
    addresses(&mut resolver.watch("orders.shop.Endpoints.mesh"), &["10.0.0.1"]).await;
    addresses(&mut resolver.watch("orders.shop"), &["10.0.0.2"]).await;
    assert!(own.asked().iter().all(|asked| asked.name == "orders.shop.endpoints.mesh."));
    assert!(others.asked().iter().all(|asked| asked.name == "orders.shop."));
}

#[tokio::test]
async fn letters_of_mixed_case_have_to_come_back() {
    let honest = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let settings = |address| model::Dns { mixed_case: true, ..settings(&[address]) };
    let long = "orders-of-a-shop-with-a-very-long-name.mesh";
    let resolver = resolver_with(&settings(honest.address), NONE, NONE);
    addresses(&mut resolver.watch(long), &["10.0.0.1"]).await;
    let asked = honest.asked().remove(0).name;
    assert_ne!(asked, format!("{long}."), "in letters of mixed case");
    assert!(asked.eq_ignore_ascii_case(&format!("{long}.")));

    // What a forger cannot do is answer over TCP.
    let forger = Scripted::start(|query, transport| {
        let mut plain = query.clone();
        plain.queries[0].name = plain.queries[0].name.to_lowercase();
        match transport {
            Transport::Udp => with(&plain, 300, &["10.6.6.6"]),
            Transport::Tcp => with(query, 300, &["10.0.0.1"]),
        }
    });
    let resolver = resolver_with(&settings(forger.address), NONE, NONE);
    let mut answer = resolver.watch(long);
    let first = until(&mut answer, |answer| answer.state != State::Pending).await;
    assert_eq!(*first.addresses, [ip("10.0.0.1")]);
}

#[tokio::test]
async fn a_server_that_knows_less_empties_nothing_while_the_one_that_knows_is_silent() {
    let silent = Arc::new(AtomicBool::new(false));
    let knows = Scripted::start({
        let silent = silent.clone();
        move |query, _| match silent.load(Ordering::Relaxed) {
            true => Step::Silence,
            false => with(query, 1, &["10.0.0.1"]),
        }
    });
    let other = Scripted::start(|query, _| code(query, ResponseCode::NXDomain));
    let resolver = resolver(&[knows.address, other.address]);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    silent.store(true, Ordering::Relaxed);
    while other.asked_for(RecordType::A) < 4 {
        assert_eq!(*answer.borrow_and_update().addresses, [ip("10.0.0.1")]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    silent.store(false, Ordering::Relaxed);
    until(&mut answer, |answer| answer.state == State::Fresh).await;
}

#[tokio::test]
async fn a_server_from_before_edns_is_asked_without() {
    let server = Scripted::start(|query, _| match query.edns {
        Some(_) => code(query, ResponseCode::NotImp),
        None => with(query, 1, &["10.0.0.1"]),
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    let first = addresses(&mut answer, &["10.0.0.1"]).await;
    let asked = server.asked_for(RecordType::A);
    assert_eq!(asked, 2);
    until(&mut answer, |answer| answer.expires > first.expires).await;
    assert_eq!(server.asked_for(RecordType::A), asked + 1, "from then on at once");
}

#[tokio::test]
async fn a_server_that_says_nothing_to_edns_is_asked_without() {
    let drops = |_: &Message| Step::Silence;
    // FORMERR, and no question: not to be told from a forger's.
    let complains = |query: &Message| {
        let [high, low] = query.metadata.id.to_be_bytes();
        Step::Raw(vec![high, low, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    };
    for says in [drops as fn(&Message) -> Step, complains] {
        let server = Scripted::start(move |query, _| match query.edns {
            Some(_) => says(query),
            None => with(query, 1, &["10.0.0.1"]),
        });
        let resolver = resolver(&[server.address]);
        let mut answer = resolver.watch("orders.mesh");
        let first = addresses(&mut answer, &["10.0.0.1"]).await;
        let asked = server.asked_for(RecordType::A);
        until(&mut answer, |answer| answer.expires > first.expires).await;
        assert_eq!(server.asked_for(RecordType::A), asked + 1, "from then on at once");
    }
}

#[tokio::test]
async fn names_that_nobody_answers_are_not_in_the_way_of_others() {
    let server = Scripted::start(|query, _| match name(query).starts_with("silent") {
        true => Step::Silence,
        false => with(query, 1, &["10.0.0.1"]),
    });
    let resolver = resolver(&[server.address]);
    let _silent: Vec<_> = (0..100).map(|n| resolver.watch(&format!("silent-{n}.mesh"))).collect();
    let mut answer = resolver.watch("orders.mesh");
    // Theirs are more than may be under way at once, and none of them has failed yet.
    let first = addresses(&mut answer, &["10.0.0.1"]).await;
    assert_eq!(first.state, State::Fresh);
    until(&mut answer, |answer| answer.expires > first.expires).await;
}

#[tokio::test]
async fn many_names_are_asked_for_in_order_and_not_all_at_once() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.1"]));
    let resolver = resolver(&[server.address]);
    let mut watched: Vec<_> = (0..2000).map(|n| resolver.watch(&format!("name-{n}.mesh"))).collect();
    for answer in &mut watched {
        addresses(answer, &["10.0.0.1"]).await;
    }
    let snapshot = resolver.snapshot();
    assert_eq!((snapshot.misses, snapshot.failures), (2000, 0), "no server was overrun");
    drop(resolver.watch("name-7.mesh"));
    assert_eq!(resolver.snapshot().hits, 1);
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let all: Vec<String> = (0..200).map(|n| format!("10.0.1.{n}")).collect();
    let server = Scripted::start({
        let all = all.clone();
        move |query, _| with(query, 300, &all.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let resolver = resolver(&[server.address]);
    let mut answer = resolver.watch("orders.mesh");
    until(&mut answer, |answer| answer.addresses.len() == 200).await;
    let transports: Vec<_> =
        server.asked().into_iter().filter(|a| a.kind == RecordType::A).map(|a| a.transport).collect();
    assert_eq!(transports, [Transport::Udp, Transport::Tcp]);
}

#[tokio::test]
async fn options_of_the_system_hold() {
    let server = Scripted::start(|query, _| with(query, 300, &["10.0.0.1", "fd00::1"]));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, "options use-vc no-aaaa\n").expect("written");
    let resolver = resolver_with(&settings(&[server.address]), &file, NONE);
    let mut answer = resolver.watch("orders.mesh");
    addresses(&mut answer, &["10.0.0.1"]).await;
    assert!(server.asked().iter().all(|a| a.kind == RecordType::A && a.transport == Transport::Tcp));
}
