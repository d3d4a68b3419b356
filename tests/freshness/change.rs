//! A change is followed, and costs neither a request nor a connection that serves.

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;

use super::server::Mode;
use super::*;

#[tokio::test]
async fn a_moved_record_is_followed_and_the_old_address_gets_nothing_more() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3"]).await;
    server.addresses(NAME, &["127.0.0.2"]);
    let sidecar = sidecar(&server, &apps, "", "").await;
    let load = Load::start(&sidecar, &apps);
    load.more(50).await;
    server.addresses(NAME, &["127.0.0.3"]);
    let asked = server.asked(RecordType::A);
    eventually("the new address", async || apps.requests("127.0.0.3") > 0).await;
    assert!(server.asked(RecordType::A) <= asked + 1, "by the first answer that had it");
    let old = apps.requests("127.0.0.2");
    load.more(100).await;
    assert_eq!(apps.requests("127.0.0.2"), old);
    load.end().await;
}

#[tokio::test]
async fn an_address_that_joins_takes_its_share_by_and_by() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3"]).await;
    server.addresses(NAME, &["127.0.0.2"]);
    let sidecar = sidecar(&server, &apps, "", ", slow_start: 1h").await;
    let load = Load::start(&sidecar, &apps);
    load.more(50).await;
    // What comes with the first ones is one of them.
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.addresses(NAME, &["127.0.0.2", "127.0.0.3"]);
    eventually("the new address", async || apps.requests("127.0.0.3") > 0).await;
    let (old, new) = (apps.requests("127.0.0.2"), apps.requests("127.0.0.3"));
    load.more(2000).await;
    let (old, new) = (apps.requests("127.0.0.2") - old, apps.requests("127.0.0.3") - new);
    // A tenth of what the other gets, in the first minutes of an hour.
    assert!(new > 60 && new * 5 < old, "{new} beside {old}");
    load.end().await;
}

#[tokio::test]
async fn a_server_that_rotates_its_answers_thrashes_no_connection() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]).await;
    server.rotate(&[&["127.0.0.2", "127.0.0.3"], &["127.0.0.3", "127.0.0.4"], &["127.0.0.4", "127.0.0.2"]]);
    let sidecar = sidecar(&server, &apps, "", ", slow_start: 0s").await;
    let load = Load::start(&sidecar, &apps);
    eventually("the whole set", async || endpoints(&sidecar).await.len() == 3).await;
    let opened = || apps.seen.keys().map(|address| apps.connections(address)).sum::<usize>();
    load.more(200).await;
    let (before, asked) = (opened(), server.asked(RecordType::A));
    eventually("further answers", async || server.asked(RecordType::A) >= asked + 5).await;
    assert_eq!(endpoints(&sidecar).await.len(), 3);
    assert!(opened() <= before + 1, "{} connections more", opened() - before);
    for address in apps.seen.keys() {
        assert!(apps.requests(address) > 0, "{address} serves");
    }
    load.end().await;
}

#[tokio::test]
async fn what_is_known_of_names_is_shown_and_counted() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2"]).await;
    server.addresses(NAME, &["127.0.0.2"]);
    let sidecar = sidecar(&server, &apps, "", "").await;
    assert!(once(&sidecar, &apps).await.starts_with("HTTP/1.1 200"));
    let found = async || upstreams(&sidecar).await["dns"]["servers"][0]["found"].as_u64();
    eventually("a refresh", async || found().await > Some(1)).await;
    server.mode(&[RecordType::A], Mode::Fail(ResponseCode::ServFail));
    eventually("stale answers", async || upstreams(&sidecar).await["dns"]["stale"].as_u64() > Some(0)).await;
    let seen = upstreams(&sidecar).await;
    let dns = &seen["dns"];
    assert_eq!(dns["names"][0]["name"], NAME);
    assert!(dns["names"][0]["ttl_left"].as_f64() < Some(0.0), "{dns}");
    assert_eq!(dns["names"][0]["state"], "stale");
    let asked = &dns["servers"][0];
    assert_eq!(asked["address"], server.address.to_string());
    assert!(asked["failures"]["servfail"].as_u64() > Some(0), "{asked}");
    assert_eq!(asked["asked_last"], false, "it fails, and is not silent");
    let labels = [format!("server=\"{}\"", server.address), "answer=\"servfail\"".to_owned()];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    assert!(sidecar.metric("pannier_dns_answers_total", &labels).await > 0.0);
    for name in ["pannier_dns_refreshes_total", "pannier_dns_stale_total", "pannier_dns_names_missed_total"] {
        assert!(sidecar.metric(name, &[]).await > 0.0, "{name}");
    }
    assert!(once(&sidecar, &apps).await.starts_with("HTTP/1.1 200"), "and all the while it serves");
}
