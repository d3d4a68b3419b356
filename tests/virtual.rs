//! An address that stands for many, as a ClusterIP Service's does: Pannier cannot tell who is behind it,
//! says so, and reaches all of them in time, over several connections.

mod support;

use support::eventually;
use support::load::Load;
use support::shop::{HOST, NAME, PATIENCE, PORT, Shop};

/// The caller's side, without `endpoints`.
fn calls(shop: &Shop) -> String {
    let files = shop.authority.issue(&shop.caller, "ns/shop/sa/caller");
    format!(
        "{}workers: 1\nupstreams:\n  orders:\n    address: {HOST}\n    mtls: {{ peer: spiffe://cluster.local/ns/shop/sa/orders }}\n",
        files.yaml()
    )
}

#[test]
fn over_mtls_a_service_is_several_connections_to_whoever_is_behind_it() {
    let (shop, mut dns) = Shop::new(1);
    dns.set(NAME, &[Shop::vip().ip()]);
    let behind = [&shop.one, &shop.two].map(|pod| pod.addresses(PORT)[0]);
    let _service = shop.lab.service(Shop::vip(), &behind);
    let _apps = [&shop.one, &shop.two].map(|pod| pod.app(pod.addresses(PORT)[0]));
    let _sidecars =
        [&shop.one, &shop.two].map(|pod| pod.sidecar(&shop.orders(pod, "inbound: { mtls: strict }\n")));
    let sidecar = shop.caller.sidecar(&calls(&shop));
    let load = Load::new(Shop::vip(), HOST).start(&shop.caller);
    eventually(PATIENCE, "several connections", || {
        let orders = sidecar.orders();
        (orders["connections"].as_u64() >= Some(4)).then_some(())
    });
    load.more(200);
    let orders = sidecar.orders();
    assert_eq!(orders["virtual"], true, "{orders}");
    let endpoint = &orders["endpoints"][0];
    assert!(endpoint["saturation"].is_null(), "nobody knows how full whoever is behind it is: {endpoint}");
    assert_eq!(orders["connections"], 4, "and no more than a few: {orders}");
    let tally = load.stop();
    tally.assert_all_ok();
}

#[test]
fn endpoints_that_are_named_are_never_taken_for_one_of_many() {
    let (shop, mut dns) = Shop::new(1);
    support::shop::endpoints(&mut dns, &[&shop.one]);
    let _app = shop.one.app(shop.one.addresses(PORT)[0]);
    let _orders = shop.one.sidecar(&shop.orders(&shop.one, "inbound: { mtls: strict }\n"));
    let sidecar = shop.caller.sidecar(&shop.calls("", "workers: 1\n"));
    let load = shop.load().start(&shop.caller);
    load.more(200);
    let orders = sidecar.orders();
    assert_eq!((&orders["virtual"], &orders["connections"]), (&false.into(), &1.into()), "{orders}");
    load.stop().assert_all_ok();
}
