//! How a connection is found alive, or is not, and how it ends.

use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::hostile::begun;
use super::*;
use crate::identity::{Identity, ca};
use crate::tls::{self, Carries, Peer, Tls};

#[test]
fn one_that_is_asked_answers_and_costs_no_stream() {
    local(async {
        let (link, echo) = connected(1 << 16);
        link.greeted().await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert!(link.silent_for(Instant::now()) >= Duration::from_secs(60));
        assert!(!link.is_owed(), "nothing is due on one that idles");
        for _ in 0..3 {
            link.answers().await;
            assert!(link.silent_for(Instant::now()) < Duration::from_millis(1));
        }
        assert!(!link.is_owed() && echo.served.borrow().is_empty());
    });
}

#[test]
fn one_that_is_given_up_loses_its_streams_and_wakes_who_waits() {
    local(async {
        let (ours, theirs) = duplex(1 << 16);
        let (link, task) = connect(ours, &BOUNDS);
        let task = spawn_local(task);
        let (_sink, mut response) =
            link.send(&request("/", Length::None), "", &HeaderMap::new(), None).unwrap();
        assert!(link.is_owed());
        let asking = spawn_local({
            let link = link.clone();
            async move { link.answers().await }
        });
        sleep(Duration::from_millis(1)).await;
        assert!(!asking.is_finished() && !link.is_over());
        link.give_up("silent");
        assert!(matches!(head_of(&mut response).await, Err(Lost::Connection(why)) if &*why == "silent"));
        asking.await.unwrap();
        assert_eq!(&*task.await.unwrap(), "silent");
        assert!(link.is_over());
        drop(theirs);
    });
}

#[test]
fn one_that_is_old_says_goodbye_and_finishes_what_it_has() {
    local(async {
        let (link, _) = connected(1 << 16);
        let (_sink, mut response) =
            link.send(&request("/hang", Length::None), "", &HeaderMap::new(), None).unwrap();
        sleep(BOUNDS.age.mul_f64(0.89)).await;
        assert!(!link.is_over(), "a tenth more or less");
        sleep(BOUNDS.age.mul_f64(0.22)).await;
        assert!(link.is_over(), "no stream may be opened any more");
        let waiting = tokio::time::timeout(Duration::from_secs(1), head_of(&mut response)).await;
        assert!(waiting.is_err(), "what is open goes on");
    });
}

/// A client's connection over TLS, and its server, which sends session tickets as ours do not.
async fn with_tickets() -> (Link, tokio_rustls::server::TlsStream<DuplexStream>) {
    let authority = ca::Authority::new("cluster.local").unwrap();
    let tls = |path: &str| {
        let directory = tempfile::tempdir().unwrap();
        let files = authority.leaf(path).unwrap().write(directory.path()).unwrap();
        Tls::new(&Identity::load(&files).unwrap())
    };
    let (web, orders) = (tls("ns/shop/sa/web"), tls("ns/shop/sa/orders"));
    let mut server = rustls::ServerConfig::clone(&orders.server());
    server.send_tls13_tickets = 4;
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let client = web.client(&Peer::TrustDomain("cluster.local".into()), Carries::Requests);
    let (near, far) = duplex(1 << 16);
    let name = tls::server_name([10, 0, 0, 7].into());
    let connecting = TlsConnector::from(client).connect(name, near);
    let accepting = TlsAcceptor::from(std::sync::Arc::new(server)).accept(far);
    let (near, mut far) = tokio::try_join!(connecting, accepting).unwrap();
    far.write_all(&begun()).await.unwrap();
    far.flush().await.unwrap();
    let (link, task) = connect(near, &BOUNDS);
    spawn_local(task);
    (link, far)
}

#[test]
fn session_tickets_are_not_the_end() {
    local(async {
        let (link, _far) = with_tickets().await;
        link.greeted().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(!link.is_over());
    });
}

#[test]
fn a_close_of_tls_is_the_end_though_that_of_tcp_is_not_there_yet() {
    local(async {
        let (link, mut far) = with_tickets().await;
        link.greeted().await.unwrap();
        far.get_mut().1.send_close_notify();
        far.flush().await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert!(link.is_over());
    });
}

#[test]
fn an_end_of_tcp_without_one_of_tls_is_the_end() {
    local(async {
        let (link, mut far) = with_tickets().await;
        link.greeted().await.unwrap();
        far.get_mut().0.shutdown().await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert!(link.is_over());
    });
}
