//! Clients that leave: one that has only said all it has to say is answered, one that is gone frees
//! what was being done for it, at once and on every hop.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::support::loopback::{HOST, Loopback, Pair, hop};
use crate::support::raw::{Raw, listen};

crate::over_a_hop_and_a_pair! { gone:
    a_client_that_has_ended_its_side_is_answered
}

/// An application thinks for so long, where a test needs one that thinks.
const A_WHILE: Duration = Duration::from_millis(300);

mod a_client_that_has_ended_its_side_is_answered {
    use super::*;

    pub(super) async fn app() -> SocketAddr {
        listen(async |mut raw: Raw| {
            let head = raw.head().await;
            if head.starts_with("POST") {
                assert_eq!(raw.take(4).await, b"body");
            }
            tokio::time::sleep(A_WHILE).await;
            raw.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            tokio::time::sleep(A_WHILE).await;
            raw.send("5\r\nworld\r\n0\r\n\r\n").await;
        })
        .await
    }

    pub(super) async fn holds(mut raw: Raw) {
        let through = raw.peer();
        raw.send(get()).await;
        raw.finish().await;
        assert!(final_head(&mut raw).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.chunked().await.0, b"helloworld");
        assert_eq!(raw.rest().await, "");

        let mut raw = Raw::connect(through).await;
        raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\nbody")).await;
        raw.finish().await;
        assert!(final_head(&mut raw).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.chunked().await.0, b"helloworld");
    }
}

/// The head of an answer, behind that by which a client is asked whether it still reads.
async fn final_head(raw: &mut Raw) -> String {
    let first = raw.head().await;
    if first == "HTTP/1.1 100 Continue\r\n\r\n" { raw.head().await } else { first }
}

/// An application that answers nothing more than `begin`, and tells of each request when it has
/// come, and when its client has left.
async fn thinking(begin: &'static str) -> (SocketAddr, mpsc::UnboundedReceiver<&'static str>) {
    let (tell, told) = mpsc::unbounded_channel();
    let app = listen(move |mut raw: Raw| {
        let tell = tell.clone();
        async move {
            raw.head().await;
            raw.send(begin).await;
            let _ = tell.send("came");
            raw.rest().await;
            let _ = tell.send("left");
        }
    })
    .await;
    (app, told)
}

async fn told(told: &mut mpsc::UnboundedReceiver<&'static str>) -> &'static str {
    tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("word in time").expect("word")
}

async fn frees_what_was_done(
    sidecars: &[&Loopback],
    word: &mut mpsc::UnboundedReceiver<&'static str>,
    begins: bool,
) {
    let get = get();
    for behind in ["", "GET /next HTTP/1.1\r\nhost: orders.test\r\n\r\n", "GET /half HTTP/1.1\r\n"] {
        let mut raw = Raw::connect(sidecars[0].outbound()).await;
        raw.send(format!("{get}{behind}")).await;
        if begins {
            raw.head().await;
        }
        assert_eq!(told(word).await, "came");
        for sidecar in sidecars {
            sidecar.until_metric("pannier_upstream_in_flight", &[], 1.0).await;
        }
        // What was sent ahead is not looked at again and again meanwhile.
        let before = processor_time(sidecars).await;
        tokio::time::sleep(A_WHILE).await;
        let used = processor_time(sidecars).await - before;
        assert!(used < A_WHILE.as_secs_f64() / 3.0, "{used} s of work for nothing");
        raw.reset();
        assert_eq!(told(word).await, "left", "{behind:?}");
        for sidecar in sidecars {
            sidecar.until_metric("pannier_upstream_in_flight", &[], 0.0).await;
        }
    }
    let refused = [r#"direction="outbound""#, r#"reason="http.downstream_gone""#];
    // Counted by the connection, once it has let go of the exchange.
    sidecars[0].until_metric("pannier_refused_total", &refused, 3.0).await;
}

async fn processor_time(sidecars: &[&Loopback]) -> f64 {
    let mut sum = 0.0;
    for sidecar in sidecars {
        sum += sidecar.metric("process_cpu_seconds_total", &[]).await;
    }
    sum
}

fn get() -> String {
    format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")
}

#[tokio::test]
async fn a_client_that_has_closed_before_its_answer_frees_the_request() {
    let (app, mut word) = thinking("").await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for sidecars in [&[&plain][..], &[&pair.caller, &pair.orders]] {
        for behind in ["", "GET /next HTTP/1.1\r\nhost: orders.test\r\n\r\n", "GET /half HTTP/1.1\r\n"] {
            let mut raw = Raw::connect(sidecars[0].outbound()).await;
            raw.send(format!("{}{behind}", get())).await;
            assert_eq!(told(&mut word).await, "came");
            // As any client does whose own time is over.
            drop(raw);
            assert_eq!(told(&mut word).await, "left");
            for sidecar in sidecars {
                sidecar.until_metric("pannier_upstream_in_flight", &[], 0.0).await;
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_still_reads_is_asked_and_answered_however_long_that_takes() {
    let app = listen(async |mut raw: Raw| {
        raw.head().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        raw.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    })
    .await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&plain, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        raw.send(get()).await;
        raw.finish().await;
        assert_eq!(raw.head().await.lines().next(), Some("HTTP/1.1 100 Continue"));
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "), "asked once");
        // An older client knows no interim answers.
        let mut raw = Raw::connect(sidecar.outbound()).await;
        raw.send(get().replace("1.1", "1.0")).await;
        raw.finish().await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    }
}

/// A large answer, most of which is still on its way when the next request is being thought about.
#[tokio::test]
async fn a_client_that_reads_slowly_loses_nothing_of_the_answer_before() {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 128;
    let app = listen(async |mut raw: Raw| {
        while let Some(head) = raw.next().await {
            if head.starts_with("GET /large ") {
                raw.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", PIECE * PIECES)).await;
                raw.send("x".repeat(PIECE * PIECES)).await;
            } else {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                raw.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for sidecar in [&plain, &pair.caller] {
        let mut raw = Raw::connect(sidecar.outbound()).await;
        raw.send(format!("GET /large HTTP/1.1\r\nhost: {HOST}\r\n\r\n{}", get())).await;
        raw.finish().await;
        // A first connection may take so long that it is asked.
        assert!(final_head(&mut raw).await.starts_with("HTTP/1.1 200 "));
        for _ in 0..PIECES {
            tokio::time::sleep(Duration::from_millis(3)).await;
            assert_eq!(raw.take(PIECE).await.len(), PIECE);
        }
        assert!(final_head(&mut raw).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(raw.take(2).await, b"ok");
    }
}

#[tokio::test]
async fn a_client_that_is_gone_before_its_answer_frees_the_request() {
    let (app, mut word) = thinking("").await;
    frees_what_was_done(&[&hop(app).await], &mut word, false).await;
    let pair = Pair::new(app).await;
    frees_what_was_done(&[&pair.caller, &pair.orders], &mut word, false).await;
}

#[tokio::test]
async fn a_client_that_is_gone_within_a_silent_answer_frees_the_request() {
    let (app, mut word) = thinking("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
    frees_what_was_done(&[&hop(app).await], &mut word, true).await;
    let pair = Pair::new(app).await;
    frees_what_was_done(&[&pair.caller, &pair.orders], &mut word, true).await;
}

#[tokio::test]
async fn a_client_that_is_gone_within_its_body_frees_the_request() {
    let (app, mut word) = thinking("").await;
    let (plain, pair) = (hop(app).await, Pair::new(app).await);
    for sidecars in [&[&plain][..], &[&pair.caller, &pair.orders]] {
        for by_reset in [false, true] {
            let mut raw = Raw::connect(sidecars[0].outbound()).await;
            raw.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nhalf")).await;
            assert_eq!(told(&mut word).await, "came");
            // Half a body cannot be finished by a client that has ended its side.
            if by_reset {
                raw.reset()
            } else {
                drop(raw)
            }
            assert_eq!(told(&mut word).await, "left");
            for sidecar in sidecars {
                sidecar.until_metric("pannier_upstream_in_flight", &[], 0.0).await;
            }
        }
    }
}
