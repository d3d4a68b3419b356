//! What a name costs: an endpoint's choice on the request path, in nanoseconds and allocations, and ten
//! thousand names in memory, kept fresh by a real server on loopback.
//!
//! `cargo run --release --example lookup` prints the figures. What is exact in them, allocations and
//! bytes, is a test as well.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pannier::balance::{Spec, Upstream};
use pannier::config::model;
use pannier::config::units::{EndpointName, Time};
use pannier::dns::{EndpointSource, Resolver, Responder, Zone};
use tokio::runtime::{Builder, Runtime};

/// Counts what is allocated, and what of it is in use.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the arguments that it came with; the counts beside
// it touch no memory that is allocated here.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NAMES: usize = 10_000;
const MIB: f64 = 1_048_576.0;

/// Lookups that are timed together.
const LOOKUPS: u32 = 1_000_000;

/// A server and the resolver that asks it, on a runtime of their own each.
struct Ground {
    zone: Arc<Zone>,
    resolver: Arc<Resolver>,
    control: Runtime,
    _responder: Responder,
    _server: Runtime,
}

impl Ground {
    fn new() -> Self {
        let runtime =
            || Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (server, control) = (runtime(), runtime());
        let zone = Zone::new();
        let responder = Responder::start((Ipv4Addr::LOCALHOST, 0).into(), zone.clone(), server.handle());
        let responder = responder.expect("a free port");
        // The server answers every query, however busy the machine is.
        let config = model::Dns {
            servers: vec![responder.address()],
            timeout: Time(Duration::from_secs(60)),
            resolution_timeout: Time(Duration::from_secs(60)),
            ..Default::default()
        };
        let resolver = Resolver::new(&config, control.handle().clone()).expect("a resolver");
        Self { zone, resolver, control, _responder: responder, _server: server }
    }

    /// An upstream with so many endpoints, found by name.
    fn upstream(&self, endpoints: u8) -> Arc<Upstream> {
        let address = |n| IpAddr::from([10, 0, 0, n]);
        let name = format!("orders-{endpoints}.shop.mesh");
        self.zone.set(&name, Duration::from_secs(300), (1..=endpoints).map(address));
        let at: EndpointName = format!("{name}:8080").parse().expect("a name");
        let address = format!("{name}:8080").parse().expect("a name");
        let spec = Spec::plain("orders", address, EndpointSource::new(&[at]));
        let upstream = Upstream::new(spec, None, &self.resolver);
        while upstream.endpoints().len() < endpoints.into() {
            std::thread::sleep(Duration::from_millis(1));
        }
        upstream
    }
}

/// Allocations of many lookups, and how long one took.
fn lookups(upstream: &Upstream) -> (usize, Duration) {
    let address: Option<SocketAddr> = upstream.choose(&[]).ok().map(|endpoint| endpoint.address);
    assert!(address.is_some());
    let (before, begin) = (ALLOCATIONS.load(Ordering::Relaxed), Instant::now());
    for _ in 0..LOOKUPS {
        black_box(black_box(upstream).choose(black_box(&[])).is_ok());
    }
    let took = begin.elapsed() / LOOKUPS;
    (ALLOCATIONS.load(Ordering::Relaxed) - before, took)
}

/// Bytes that ten thousand names take, all of them answered and followed.
fn names(ground: &Ground) -> usize {
    let name = |n: usize| format!("service-{n}.namespace-{}.svc.cluster.local", n % 100);
    for n in 0..NAMES {
        ground.zone.set(&name(n), Duration::from_secs(300), [IpAddr::from([10, 1, (n >> 8) as u8, n as u8])]);
    }
    let before = IN_USE.load(Ordering::Relaxed);
    let watched: Vec<_> = (0..NAMES).map(|n| ground.resolver.watch(&name(n))).collect();
    ground.control.block_on(async {
        for mut answer in watched.iter().cloned() {
            let known = answer.wait_for(|answer| answer.families == [true; 2]).await;
            assert_eq!(known.expect("kept").addresses.len(), 1);
        }
    });
    let bytes = at_rest() - before;
    drop(watched);
    bytes
}

/// Bytes in use, once nothing is given back any more: what the last queries took goes a moment after
/// their answers have come.
fn at_rest() -> usize {
    let mut known = (IN_USE.load(Ordering::Relaxed), Instant::now());
    while known.1.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(10));
        let now = IN_USE.load(Ordering::Relaxed);
        if now < known.0 {
            known = (now, Instant::now());
        }
    }
    known.0
}

fn main() {
    let ground = Ground::new();
    for endpoints in [1, 3, 10, 100] {
        let (allocations, took) = lookups(&ground.upstream(endpoints));
        println!(
            "a lookup among {endpoints:3} endpoints: {:3} ns, {allocations} allocations",
            took.as_nanos()
        );
    }
    let begin = Instant::now();
    let bytes = names(&ground);
    let counts = ground.resolver.counts();
    println!(
        "{NAMES} names: {:.1} MiB ({} bytes a name), {} queries in {:.1} s, {} failed",
        bytes as f64 / MIB,
        bytes / NAMES,
        counts.queries,
        begin.elapsed().as_secs_f64(),
        counts.failures
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test: what others allocate beside it would count.
    #[test]
    fn a_lookup_allocates_nothing_and_ten_thousand_names_take_little() {
        let ground = Ground::new();
        let (allocations, _) = lookups(&ground.upstream(10));
        // The resolver's own, in the background, are a few at most.
        assert!(allocations < 100, "{allocations} allocations in {LOOKUPS} lookups");
        let bytes = names(&ground);
        assert!(bytes < 20 << 20, "{bytes} bytes");
        assert_eq!(ground.resolver.counts().failures, 0);
    }
}
