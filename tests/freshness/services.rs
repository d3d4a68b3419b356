//! Services (SRV, RFC 2782): ports, priorities and weights of their own, and targets with their own TTLs.

use hickory_resolver::proto::rr::RecordType;

use super::server::Mode;
use super::*;

const SERVICES: &str = "_http._tcp.orders.mesh";

#[tokio::test]
async fn ports_and_weights_come_from_the_records() {
    let server = Server::start(30).await;
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3"]).await;
    server.services(SERVICES, &[(0, 1, apps.port, "one.mesh."), (0, 3, apps.port, "two.mesh.")]);
    server.addresses("one.mesh", &["127.0.0.2"]);
    server.addresses("two.mesh", &["127.0.0.3"]);
    let sidecar = sidecar(&server, &apps, "", &format!(", endpoints: {SERVICES}")).await;
    let load = Load::start(&sidecar, &apps);
    load.more(2000).await;
    let (one, two) = (apps.requests("127.0.0.2"), apps.requests("127.0.0.3"));
    assert!(one * 2 < two && two < one * 5, "{one} and {two} of weights 1 and 3");
    load.end().await;
    let seen = upstreams(&sidecar).await;
    let weights: Vec<_> = [0, 1].map(|n| seen["upstreams"][0]["endpoints"][n]["weight"].as_u64()).into();
    assert_eq!(weights, [Some(1), Some(3)], "{seen}");
}

#[tokio::test]
async fn the_next_priority_takes_over_where_the_first_takes_no_connection() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3"]).await;
    let first = (0, 1, apps.port, "one.mesh.");
    let second = (1, 1, apps.port, "two.mesh.");
    server.services(SERVICES, &[first, second]);
    server.addresses("one.mesh", &["127.0.0.2"]);
    server.addresses("two.mesh", &["127.0.0.3"]);
    let sidecar = sidecar(&server, &apps, "", &format!(", endpoints: {SERVICES}")).await;
    let load = Load::start(&sidecar, &apps);
    load.more(200).await;
    assert_eq!(apps.requests("127.0.0.3"), 0, "while the first priority takes it all");
    // Nobody listens there.
    server.addresses("one.mesh", &["127.0.0.9"]);
    eventually("the second priority", async || apps.requests("127.0.0.3") > 10).await;
    load.end().await;
}

#[tokio::test]
async fn services_that_change_or_fail_empty_nothing() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3"]).await;
    server.services(SERVICES, &[(0, 1, apps.port, "one.mesh.")]);
    server.addresses("one.mesh", &["127.0.0.2"]);
    let sidecar = sidecar(&server, &apps, ", timeout: 300ms", &format!(", endpoints: {SERVICES}")).await;
    let load = Load::start(&sidecar, &apps);
    load.more(50).await;
    for mode in [Mode::Silence, Mode::Deny(1)] {
        server.mode(&[RecordType::SRV], mode);
        let asked = server.asked(RecordType::SRV);
        eventually("further queries", async || server.asked(RecordType::SRV) >= asked + 3).await;
        assert_eq!(endpoints(&sidecar).await.len(), 1);
    }
    server.mode(&[RecordType::SRV], Mode::Answer);
    server.addresses("two.mesh", &["127.0.0.3"]);
    server.services(SERVICES, &[(0, 1, apps.port, "two.mesh.")]);
    eventually("the new target", async || apps.requests("127.0.0.3") > 10).await;
    load.end().await;
}
