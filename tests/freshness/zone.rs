//! The mesh's endpoint zone, served by `pannier controller` from EndpointSlices, is what an upstream is
//! balanced over: a sidecar needs DNS and nothing else.

use std::path::Path;

use super::support::loopback::{binary, bound};
use super::support::process::Process;
use super::*;

/// A slice of orders with these endpoints, each in a zone, and with a weight for all of them.
fn slice(name: &str, weight: u16, port: u16, endpoints: &[(&str, &str)]) -> String {
    let one = |(address, zone): &(&str, &str)| format!("{{ addresses: [{address}], zone: {zone} }}");
    let endpoints = endpoints.iter().map(one).collect::<Vec<_>>().join(", ");
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: shop
  labels: {{ kubernetes.io/service-name: orders }}
  annotations: {{ pannier.dev/weight: \"{weight}\" }}
addressType: IPv4
ports: [{{ name: http, port: {port}, protocol: TCP }}]
endpoints: [{endpoints}]
"
    )
}

fn put(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file)).expect("our own directory");
}

#[tokio::test]
async fn an_upstream_is_balanced_over_the_endpoint_zone() {
    let dir = tempfile::tempdir().expect("a directory");
    let slices = dir.path().join("slices.yaml");
    let apps = Apps::start(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]).await;
    let [one, two, three] = [("127.0.0.2", "a"), ("127.0.0.3", "b"), ("127.0.0.4", "b")];
    put(&slices, &(slice("light", 100, apps.port, &[one]) + &slice("heavy", 300, apps.port, &[two])));
    let mut command = binary(&["controller", "--listen", "127.0.0.1:0", "--probes", "127.0.0.1:0"]);
    command.arg("--slices").arg(&slices).env("PANNIER_LOG", "debug");
    let mut controller = Process::start(command, "controller", &dir.path().join("log"));
    let listens = controller.until(PATIENCE, "listening", |process| {
        let bound = bound(&process.log());
        (bound.len() == 2).then_some(bound)
    });
    // The cluster's own server knows nothing of the zone.
    let cluster = Server::start(30).await;
    let dns = format!(", domains: {{ endpoints.mesh: \"{}\" }}", listens["dns"]);
    let endpoints_in_zone = ", endpoints: _http._tcp.orders.shop.endpoints.mesh";
    let sidecar = sidecar(&cluster, &apps, &dns, endpoints_in_zone).await;
    eventually("both endpoints", async || endpoints(&sidecar).await.len() == 2).await;
    let load = Load::start(&sidecar, &apps);
    load.more(1000).await;
    let (light, heavy) = (apps.requests("127.0.0.2"), apps.requests("127.0.0.3"));
    assert!(light * 2 < heavy && heavy < light * 5, "{light} and {heavy} of weights 100 and 300");
    let seen = upstreams(&sidecar).await;
    let list = seen["upstreams"][0]["endpoints"].as_array().expect("a list");
    let zones: Vec<_> = list.iter().map(|endpoint| endpoint["zone"].as_str().unwrap_or_default()).collect();
    assert_eq!(zones, ["a", "b"], "{seen}");

    // A pod takes another's place.
    put(&slices, &(slice("light", 100, apps.port, &[one]) + &slice("heavy", 300, apps.port, &[three])));
    eventually("the new endpoint", async || apps.requests("127.0.0.4") > 0).await;
    let gone = apps.requests("127.0.0.3");
    load.more(200).await;
    assert_eq!(apps.requests("127.0.0.3"), gone, "one that has left gets nothing more");

    // Without the controller, what it said serves on.
    controller.kill();
    eventually("a stale name", async || {
        let dns = upstreams(&sidecar).await["dns"].clone();
        let names = dns["names"].as_array().expect("a list").clone();
        names.iter().any(|name| name["services"].is_array() && name["state"] == "stale")
    })
    .await;
    load.more(100).await;
    load.end().await;
}
