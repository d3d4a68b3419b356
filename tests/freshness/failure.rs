//! A server's failure never fails a request that has somewhere to go, and says what it was where a
//! request has not.

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;

use super::server::Mode;
use super::*;

const BOTH: [RecordType; 2] = [RecordType::A, RecordType::AAAA];

/// A running sidecar whose server then does this, until so many more queries for an address have failed.
async fn serves_through(kinds: &[RecordType], mode: Mode, further: usize) {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2"]).await;
    server.addresses(NAME, &["127.0.0.2"]);
    let sidecar = sidecar(&server, &apps, ", timeout: 300ms", "").await;
    let load = Load::start(&sidecar, &apps);
    load.more(50).await;
    server.mode(kinds, mode);
    let asked = server.asked(kinds[0]);
    eventually("further queries", async || server.asked(kinds[0]) >= asked + further).await;
    load.more(50).await;
    assert_eq!(endpoints(&sidecar).await.len(), 1);
    server.mode(kinds, Mode::Answer);
    load.more(50).await;
    load.end().await;
}

#[tokio::test]
async fn servers_that_are_silent() {
    serves_through(&BOTH, Mode::Silence, 5).await;
}

#[tokio::test]
async fn servers_that_fail() {
    serves_through(&BOTH, Mode::Fail(ResponseCode::ServFail), 5).await;
}

#[tokio::test]
async fn servers_that_refuse() {
    serves_through(&BOTH, Mode::Fail(ResponseCode::Refused), 5).await;
}

#[tokio::test]
async fn one_denial_of_each_family() {
    serves_through(&BOTH, Mode::Deny(1), 3).await;
}

#[tokio::test]
async fn one_family_that_is_silent() {
    serves_through(&[RecordType::AAAA], Mode::Silence, 5).await;
}

#[tokio::test]
async fn one_family_that_is_silent_from_the_start() {
    for (silent, address) in [(RecordType::AAAA, "127.0.0.2"), (RecordType::A, "::1")] {
        let server = Server::start(1).await;
        let apps = Apps::start(&[address]).await;
        server.addresses(NAME, &[address]);
        server.mode(&[silent], Mode::Silence);
        let sidecar = sidecar(&server, &apps, "", "").await;
        assert!(once(&sidecar, &apps).await.starts_with("HTTP/1.1 200"), "without {silent}");
    }
}

#[tokio::test]
async fn of_two_families_one_that_takes_no_connections_fails_no_request() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2"]).await;
    // Nobody listens at the IPv6 address, which comes first.
    server.addresses(NAME, &["127.0.0.2", "::1"]);
    let sidecar = sidecar(&server, &apps, "", "").await;
    let load = Load::start(&sidecar, &apps);
    load.more(100).await;
    let seen = upstreams(&sidecar).await;
    let list = seen["upstreams"][0]["endpoints"].as_array().expect("a list").clone();
    let second = |address: &str| {
        let at = list.iter().find(|e| e["address"].as_str().is_some_and(|at| at.starts_with(address)));
        at.map(|endpoint| endpoint["second_family"].clone())
    };
    assert_eq!((second("[::1]"), second("127.0.0.2")), (Some(false.into()), Some(true.into())), "{list:?}");
    load.end().await;
}

#[tokio::test]
async fn a_cold_name_that_fails_says_which_server_said_what() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2"]).await;
    let cases = [
        (Mode::Fail(ResponseCode::ServFail), "dns.no_answer", "answered Server Failure"),
        (Mode::Fail(ResponseCode::Refused), "dns.no_answer", "answered Query Refused"),
        (Mode::Silence, "dns.no_answer", "did not answer within 300ms"),
        (Mode::Answer, "dns.no_such_name", "does not exist"),
    ];
    for (mode, reason, words) in cases {
        server.mode(&BOTH, mode);
        let sidecar = sidecar(&server, &apps, ", timeout: 300ms", "").await;
        let head = once(&sidecar, &apps).await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(head.contains(&format!("x-pannier-refused: {reason}")), "{head}");
        let seen = upstreams(&sidecar).await;
        let why = seen["dns"]["names"][0]["last_error"].as_str().unwrap_or_default().to_owned();
        assert!(why.contains(&server.address.to_string()) && why.contains(words), "{why}");
    }
    // One that exists, and has none.
    server.addresses(NAME, &[]);
    let sidecar = sidecar(&server, &apps, "", "").await;
    let head = once(&sidecar, &apps).await;
    assert!(head.contains("x-pannier-refused: dns.no_address"), "{head}");
}

#[tokio::test]
async fn what_is_stale_for_longer_than_allowed_ends() {
    let server = Server::start(1).await;
    let apps = Apps::start(&["127.0.0.2"]).await;
    server.addresses(NAME, &["127.0.0.2"]);
    let sidecar = sidecar(&server, &apps, ", stale: 1s, timeout: 300ms", "").await;
    assert!(once(&sidecar, &apps).await.starts_with("HTTP/1.1 200"));
    server.mode(&BOTH, Mode::Silence);
    eventually("the end of stale answers", async || endpoints(&sidecar).await.is_empty()).await;
    assert!(once(&sidecar, &apps).await.contains("x-pannier-refused: dns.no_answer"));
    server.mode(&BOTH, Mode::Answer);
    eventually("answers again", async || once(&sidecar, &apps).await.starts_with("HTTP/1.1 200")).await;
}

#[tokio::test]
async fn another_server_takes_over_from_one_that_is_silent() {
    let (silent, good) = (Server::start(1).await, Server::start(1).await);
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3"]).await;
    silent.mode(&BOTH, Mode::Silence);
    good.addresses(NAME, &["127.0.0.2"]);
    let dns = format!("servers: [\"{}\", \"{}\"]", silent.address, good.address);
    let orders = format!("upstreams: {{ orders: {{ address: \"{NAME}:{}\" }} }}\n", apps.port);
    let sidecar = Loopback::asking(&dns, "caller", &orders).await;
    let load = Load::start(&sidecar, &apps);
    load.more(50).await;
    good.addresses(NAME, &["127.0.0.3"]);
    let asked = good.asked(RecordType::A);
    eventually("the new address", async || apps.requests("127.0.0.3") > 0).await;
    assert!(good.asked(RecordType::A) <= asked + 1);
    load.end().await;
}
