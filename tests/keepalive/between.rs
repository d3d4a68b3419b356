//! Between sidecars: a peer that is silent is found in time, a connection that has paused is asked before
//! it carries a request, and none ever reaches another than it was opened to.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::server::{Keeps, serve};
use crate::support::authority::Authority;
use crate::support::loopback::{HOST, Loopback, Pair};
use crate::support::raw::Witness;
use crate::{Client, eventually};

#[tokio::test]
async fn a_silent_peer_holds_up_no_request_longer_than_it_may() {
    let (_, app) = serve(Keeps::default()).await;
    let mut pair = Pair::towards(app, ", peer_timeout: 1s", "", "").await;
    let mut client = Client::new(&pair.caller).await;
    client.ask("GET").await;
    stop(&mut pair.orders).await;
    let begin = Instant::now();
    let (status, body) = client.send("POST", "/").await;
    let took = begin.elapsed();
    assert!(status >= 500 && took < Duration::from_secs(8), "{status} {body}: {took:?}");
    pair.orders.process().signal(Signal::CONT);
    eventually("requests to go through again", async || client.send("POST", "/").await.0 == 200).await;
}

/// Stops a sidecar where it is. It has stopped when this returns.
async fn stop(sidecar: &mut Loopback) {
    let process = sidecar.process();
    process.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", process.pid());
    eventually("every thread to stop", async || {
        let mut tasks = fs::read_dir(&tasks).expect("it lives").flatten();
        tasks.all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    })
    .await;
}

/// A caller, and the application's sidecars at each of two endpoints.
struct Two {
    caller: Loopback,
    orders: [Loopback; 2],
    authority: Authority,
    files: TempDir,
}

impl Two {
    async fn new(app: SocketAddr) -> Self {
        Self::with([app; 2]).await
    }

    /// With an application of its own at each.
    async fn with(apps: [SocketAddr; 2]) -> Self {
        let files = TempDir::with_prefix("pannier-two-").expect("a temporary directory");
        let authority = Authority::new("cluster.local");
        let issue =
            |name: &str| authority.issue_into(&files.path().join(name), &format!("ns/shop/sa/{name}"));
        let identity = issue("orders").yaml();
        let strict = apps.map(|app| format!("{identity}application: {app}\ninbound: {{ mtls: strict }}\n"));
        let orders = [Loopback::start("one", &strict[0]).await, Loopback::start("two", &strict[1]).await];
        let yaml = format!(
            "{}upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [\"{}\", \"{}\"], \
             mtls: {{ peer: \"spiffe://cluster.local/ns/shop/sa/orders\" }} }} }}\n",
            issue("caller").yaml(),
            orders[0].inbound(),
            orders[1].inbound()
        );
        let caller = Loopback::start("caller", &yaml).await;
        Self { caller, orders, authority, files }
    }
}

#[tokio::test]
async fn a_connection_that_has_paused_is_asked_before_it_carries_a_request() {
    const MORE_THAN_A_PAUSE: Duration = Duration::from_millis(5500);
    let (seen, app) = serve(Keeps { fields: "keep-alive: timeout=60\r\n", ..Keeps::default() }).await;
    let mut two = Two::new(app).await;
    let mut client = Client::new(&two.caller).await;
    // Until there is a connection to each.
    let connections =
        async || two.caller.metric("pannier_upstream_connections", &["upstream=\"orders\""]).await;
    while connections().await < 2.0 {
        client.ask("POST").await;
    }
    let before = seen.requests();
    stop(&mut two.orders[0]).await;
    tokio::time::sleep(MORE_THAN_A_PAUSE).await;
    for _ in 0..6 {
        // What may not be sent twice goes to the one that lives: nothing was sent to the other.
        client.ask("POST").await;
    }
    assert_eq!(seen.requests(), before + 6, "each once");
    two.orders[0].process().signal(Signal::CONT);
}

#[tokio::test]
async fn an_address_that_is_anothers_now_gets_nothing() {
    let (_, app) = serve(Keeps::default()).await;
    let mut two = Two::new(app).await;
    let mut client = Client::new(&two.caller).await;
    for _ in 0..20 {
        client.ask("POST").await;
    }
    // The pod is gone, and another one has its address.
    let address = two.orders[0].inbound();
    two.orders[0].process().kill();
    let (other, others) = Witness::listen().await;
    let identity = two.authority.issue_into(&two.files.path().join("other"), "ns/shop/sa/other");
    let strict = identity.yaml() + &format!("application: {others}\ninbound: {{ mtls: strict }}\n");
    let _other = Loopback::in_place_of(address, "other", &strict).await;
    for _ in 0..20 {
        client.ask("POST").await;
    }
    assert_eq!(other.seen(), "");
}

#[tokio::test]
async fn what_the_application_has_not_taken_goes_to_another() {
    let (_, app) = serve(Keeps::default()).await;
    // Behind one of them nobody listens: its sidecar knows that nothing was taken.
    let two = Two::with(["127.0.0.1:9".parse().unwrap(), app]).await;
    let mut client = Client::new(&two.caller).await;
    let refused = async || two.orders[0].metric("pannier_refused_total", &["reason=\"pool.connect\""]).await;
    while refused().await < 5.0 {
        client.ask("POST").await;
    }
}
