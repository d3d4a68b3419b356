//! Between sidecars: a peer that is silent is found in time, and a connection that has paused is asked
//! before it carries a request.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::server::{Keeps, serve};
use crate::support::loopback::Pair;
use crate::{Client, eventually};

#[tokio::test]
async fn a_silent_peer_holds_up_no_request_longer_than_it_may() {
    let (_, app) = serve(Keeps::default()).await;
    let mut pair = Pair::towards(app, ", peer_timeout: 1s", "", "").await;
    let mut client = Client::new(&pair.caller).await;
    client.ask("GET").await;
    pair.orders.process().signal(Signal::STOP);
    let begin = Instant::now();
    let (status, body) = client.send("POST", "/").await;
    assert!(
        status >= 500 && begin.elapsed() < Duration::from_secs(8),
        "{status} {body}: {:?}",
        begin.elapsed()
    );
    pair.orders.process().signal(Signal::CONT);
    eventually("requests to go through again", async || client.send("POST", "/").await.0 == 200).await;
}
