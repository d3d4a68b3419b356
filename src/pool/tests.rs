//! Real sockets on a simulated clock.

use std::cell::Cell;
use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::balance::Spec;
use crate::config::model;
use crate::config::units::{EndpointName, HostPort};
use crate::dns::{EndpointSource, Resolver};

const KEPT: Duration = Duration::from_secs(5);

/// Takes connections, and closes those that have idled for [`KEPT`]; how many are open.
async fn server() -> (SocketAddr, Rc<Cell<u32>>) {
    server_that_keeps(KEPT).await
}

async fn server_that_keeps(kept: Duration) -> (SocketAddr, Rc<Cell<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let open = Rc::new(Cell::new(0));
    let counted = open.clone();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let open = counted.clone();
            open.set(open.get() + 1);
            spawn_local(async move {
                let _ = timeout(kept, stream.read(&mut [0])).await;
                drop(stream);
                open.set(open.get() - 1);
            });
        }
    });
    (address, open)
}

fn upstream(address: SocketAddr, max_connections: u32) -> Arc<Upstream> {
    upstream_that(address, max_connections, true)
}

fn upstream_that(address: SocketAddr, max_connections: u32, is_balanced: bool) -> Arc<Upstream> {
    let at: HostPort = address.to_string().parse().unwrap();
    let source = EndpointSource::new(&[EndpointName::At(at.clone())]);
    let spec = Spec { is_balanced, max_connections, ..Spec::plain("orders", at, source) };
    let resolver = Resolver::new(&model::Dns::default(), Handle::current()).unwrap();
    Upstream::new(spec, None, &resolver)
}

fn pools() -> Rc<Pools> {
    let pools = Rc::new(Pools::new(tls::Current::default(), 0, [Arc::default()].into()));
    let keeper = pools.clone();
    spawn_local(async move { keeper.keep().await });
    pools
}

async fn lease(pools: &Pools, upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>, need: Need) -> Lease {
    match pools.idle_h1(endpoint, need, Instant::now()) {
        Some(lease) => lease,
        None => pools.open_h1(upstream, endpoint, Dial::default(), need).await.unwrap(),
    }
}

async fn only_endpoint(upstream: &Upstream) -> Arc<Endpoint> {
    while upstream.endpoints().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    upstream.endpoints()[0].clone()
}

#[tokio::test(start_paused = true)]
async fn a_day_of_bursts_and_idling_leaves_nothing_behind() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let local = LocalSet::new();
    local
        .run_until(async {
            let (address, open) = server().await;
            let (upstream, pools) = (upstream(address, u32::MAX), pools());
            let endpoint = only_endpoint(&upstream).await;
            let tasks = || Handle::current().metrics().num_alive_tasks();
            sleep(Duration::from_secs(1)).await;
            let (begin, before) = (Instant::now(), tasks());
            let mut bursts = 0u32;
            while begin.elapsed() < DAY {
                bursts += 1;
                let need = if bursts.is_multiple_of(2) { Need::Usable } else { Need::Proven };
                let mut leases = Vec::new();
                for _ in 0..20 {
                    leases.push(lease(&pools, &upstream, &endpoint, need).await);
                }
                assert_eq!(upstream.connections(), endpoint.connections());
                assert!(upstream.connections() <= 41, "{} after {bursts} bursts", upstream.connections());
                // Half of them go on with something else, and half fail.
                let now = Instant::now();
                for lease in leases.into_iter().skip(10) {
                    pools.put(lease, Duration::from_millis(1), None, now);
                }
                sleep(Duration::from_secs(if bursts.is_multiple_of(5) { 180 } else { 2 })).await;
            }
            // Longer than the peer keeps them, and than one is kept to watch that.
            sleep(Duration::from_secs(600)).await;
            assert!(bursts > 2000, "{bursts}");
            assert_eq!((upstream.connections(), endpoint.connections(), open.get()), (0, 0, 0));
            assert_eq!(tasks(), before, "tasks");
            assert!(pools.plain.is_empty(), "pools that hold nothing are kept");
            let known = endpoint.keep_alive.report();
            assert!(known.closes_after.is_some_and(|at| at >= KEPT && at < KEPT * 2), "{known:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_full_is_waited_for_in_order_and_given_back_once() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (address, _open) = server().await;
            let (upstream, pools) = (upstream(address, 2), pools());
            let endpoint = only_endpoint(&upstream).await;
            let held = [
                lease(&pools, &upstream, &endpoint, Need::Usable).await,
                lease(&pools, &upstream, &endpoint, Need::Usable).await,
            ];
            let served = Rc::new(std::cell::RefCell::new(Vec::new()));
            for n in 0..6 {
                let (pools, upstream, endpoint, served) =
                    (pools.clone(), upstream.clone(), endpoint.clone(), served.clone());
                spawn_local(async move {
                    let need = if n % 2 == 0 { Need::Usable } else { Need::New };
                    let lease = lease(&pools, &upstream, &endpoint, need).await;
                    served.borrow_mut().push((n, lease.is_new()));
                    assert!(upstream.connections() <= 2);
                    sleep(Duration::from_millis(10)).await;
                    pools.put(lease, Duration::from_millis(1), None, Instant::now());
                });
                sleep(Duration::from_millis(1)).await;
            }
            // One who has given up is passed by.
            let gone = timeout(Duration::from_millis(5), pools.room(&upstream, &endpoint)).await;
            assert!(gone.is_err() && served.borrow().is_empty());
            for lease in held {
                pools.put(lease, Duration::from_millis(1), None, Instant::now());
            }
            sleep(Duration::from_millis(200)).await;
            let expected: Vec<_> = (0..6).map(|n| (n, n % 2 == 1)).collect();
            assert_eq!(*served.borrow(), expected, "in order, each with what it needs");
            sleep(Duration::from_secs(10)).await;
            assert_eq!(upstream.connections(), 0);
            // In vain, it ends with the time that a connection may take.
            let (_a, _b) = (
                lease(&pools, &upstream, &endpoint, Need::Usable).await,
                lease(&pools, &upstream, &endpoint, Need::Usable).await,
            );
            let error = pools.room(&upstream, &endpoint).await.unwrap_err();
            assert_eq!(error.reason, crate::error::Reason::PoolFull);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn one_is_kept_warm_for_those_who_would_wait() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (address, open) = server().await;
            let (upstream, pools) = (upstream(address, 100), pools());
            let endpoint = only_endpoint(&upstream).await;
            let mut leases = Vec::new();
            for n in 0..20 {
                // Each is held on to, so that the next finds none idle.
                leases.push(lease(&pools, &upstream, &endpoint, Need::Usable).await);
                sleep(Duration::from_millis(20)).await;
                if n == 0 {
                    assert_eq!(open.get(), 1, "for one request nothing is kept warm");
                }
            }
            assert!(leases.iter().filter(|lease| !lease.is_new()).count() > 0, "none was warm");
            assert!(open.get() <= 25, "{}", open.get());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_requests_that_was_none_is_forgotten() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (address, _open) = server().await;
            let (upstream, pools) = (upstream(address, 100), pools());
            let endpoint = only_endpoint(&upstream).await;
            // Three crashes, each after a connection's first request.
            (0..3).for_each(|_| endpoint.keep_alive.closed(Duration::ZERO, 1));
            assert!(!endpoint.keep_alive.takes_more(1));
            let mut requests = 0;
            while !endpoint.keep_alive.takes_more(1) {
                requests += 1;
                assert!(requests < 100, "{:?}", endpoint.keep_alive.report());
                let lease = lease(&pools, &upstream, &endpoint, Need::Usable).await;
                pools.put(lease, Duration::from_millis(1), None, Instant::now());
                assert!(upstream.connections() <= 3, "{}", upstream.connections());
                sleep(Duration::from_millis(150)).await;
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_given_to_one_who_waits_is_what_he_may_use() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (address, _open) = server().await;
            let (upstream, pools) = (upstream(address, 1), pools());
            let endpoint = only_endpoint(&upstream).await;
            // Nothing is proven of it yet, so that one for a request that may not be sent twice is new,
            // though another is given back.
            let held = lease(&pools, &upstream, &endpoint, Need::Usable).await;
            let waiting = spawn_local({
                let (pools, upstream, endpoint) = (pools.clone(), upstream.clone(), endpoint.clone());
                async move { lease(&pools, &upstream, &endpoint, Need::Proven).await.is_new() }
            });
            sleep(Duration::from_millis(50)).await;
            pools.put(held, Duration::from_millis(1), None, Instant::now());
            assert!(waiting.await.unwrap());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_is_sent_only_what_may_not_be_sent_twice_is_soon_none() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (address, _open) = server().await;
            let (upstream, pools) = (upstream(address, u32::MAX), pools());
            let endpoint = only_endpoint(&upstream).await;
            let mut opened = Vec::new();
            for _ in 0..500 {
                let mut leases = Vec::new();
                for _ in 0..20 {
                    leases.push(lease(&pools, &upstream, &endpoint, Need::Proven).await);
                }
                opened.push(leases.iter().filter(|lease| lease.is_new()).count());
                sleep(Duration::from_millis(1)).await;
                let now = Instant::now();
                for lease in leases {
                    pools.put(lease, Duration::from_millis(1), None, now);
                }
            }
            let all: usize = opened.iter().sum();
            assert!(all <= 1000, "{all} of 10,000 requests were on connections of their own");
            assert_eq!(opened[300..].iter().sum::<usize>(), 0, "after a while none is");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_one_of_many_is_replaced_after_a_while_and_others_are_not() {
    let local = LocalSet::new();
    let run = async |is_balanced| {
        let (address, _open) = server_that_keeps(ONE_OF_MANY * 100).await;
        let (upstream, pools) = (upstream_that(address, u32::MAX, is_balanced), pools());
        let endpoint = only_endpoint(&upstream).await;
        assert_eq!(endpoint.standing.is_virtual(), !is_balanced);
        let (begin, mut opened) = (Instant::now(), 0);
        while begin.elapsed() < ONE_OF_MANY * 10 {
            let lease = lease(&pools, &upstream, &endpoint, Need::Usable).await;
            opened += u32::from(lease.is_new());
            pools.put(lease, Duration::from_millis(1), None, Instant::now());
            sleep(Duration::from_millis(500)).await;
        }
        opened
    };
    local
        .run_until(async {
            let of_many = run(false).await;
            assert!((8..=13).contains(&of_many), "{of_many} in ten times that age");
            assert_eq!(run(true).await, 1);
        })
        .await;
}
