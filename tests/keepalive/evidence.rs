//! What proves that a request was not executed, and what does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Client;
use crate::support::loopback::{HOST, Loopback, upstream};
use crate::support::raw::{Raw, listen};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n1 1";

/// An application that keeps a connection after `/warm`, and on any other request does what it must not,
/// for the first `bad` of them. How many it was asked for, and the sidecar in front of it.
async fn behind(acts: bool, bad: usize) -> (Arc<AtomicUsize>, Loopback) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let app = listen(move |mut raw: Raw| {
        let counted = counted.clone();
        async move {
            while let Some(head) = raw.next().await {
                if head.contains(" /warm ") {
                    raw.send(OK).await;
                    if acts {
                        continue;
                    }
                    // Unread, what comes next is acknowledged by the kernel alone; closing resets it.
                    raw.has_unread().await;
                    if counted.fetch_add(1, Ordering::SeqCst) < bad {
                        return;
                    }
                    continue;
                }
                if acts && counted.fetch_add(1, Ordering::SeqCst) < bad {
                    // Executed, and aborted before the acknowledgement that the kernel delays.
                    return raw.reset();
                }
                raw.offer(OK).await;
            }
        }
    })
    .await;
    let more = ", keep_alive: { timeout: 60s, requests: 1000 }";
    (asked, Loopback::start("caller", &upstream(app, more)).await)
}

#[tokio::test]
async fn acknowledged_bytes_prove_nothing() {
    for acts in [true, false] {
        let (asked, sidecar) = behind(acts, 1).await;
        let mut client = Client::new(&sidecar).await;
        assert_eq!(client.send("GET", "/warm").await.0, 200);
        let (status, body) = client.send("POST", "/").await;
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("upstream.reset"), "{body}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "acts {acts}: it was sent again");
    }
}

#[tokio::test]
async fn what_may_be_repeated_is() {
    for acts in [true, false] {
        let (asked, sidecar) = behind(acts, 1).await;
        let mut client = Client::new(&sidecar).await;
        assert_eq!(client.send("GET", "/warm").await.0, 200);
        assert_eq!(client.send("PUT", "/").await.0, 200);
        assert!(asked.load(Ordering::SeqCst) >= 1);
    }
}

#[tokio::test]
async fn a_route_without_retries_repeats_nothing() {
    let (asked, sidecar) = behind(true, usize::MAX).await;
    sidecar.configure(&format!(
        "{}routes: [{{ host: {HOST}, upstream: orders, retries: 0 }}]\n",
        upstream(sidecar_endpoint(&sidecar).await, "")
    ));
    crate::eventually("the reload", async || sidecar.metric("pannier_config_generation", &[]).await >= 2.0)
        .await;
    let mut client = Client::new(&sidecar).await;
    assert_eq!(client.send("GET", "/").await.0, 502);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

async fn sidecar_endpoint(sidecar: &Loopback) -> std::net::SocketAddr {
    let page = sidecar.get("/upstreams").await.expect("the page");
    let page: serde_json::Value = serde_json::from_str(page.text()).expect("JSON");
    let address = page["upstreams"][0]["endpoints"][0]["address"].as_str().expect("an address");
    address.parse().expect("an address")
}
