//! Sidecars of callers and of endpoints, with and without mutual TLS, and what their pages say.

use std::net::SocketAddr;

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};

use crate::app::App;
use crate::eventually;
use crate::support::authority::{Authority, IdentityFiles};
use crate::support::client::{Answer, request, send};
use crate::support::loopback::{HOST, Loopback};

/// Identities of one trust domain.
pub(crate) struct Mesh {
    authority: Authority,
    files: TempDir,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let files = TempDir::with_prefix("pannier-saturation-").expect("a temporary directory");
        Self { authority: Authority::new("cluster.local"), files }
    }

    /// An identity.
    pub(crate) fn identity(&self, name: &str) -> IdentityFiles {
        self.authority.issue_into(&self.files.path().join(name), &format!("ns/shop/sa/{name}"))
    }

    /// The sidecar of an application, with more in its `inbound`.
    pub(crate) async fn endpoint(&self, app: &App, inbound: &str) -> Loopback {
        let yaml = self.identity("orders").yaml()
            + &format!("application: {}\ninbound: {{ mtls: strict{inbound} }}\n", app.address);
        Loopback::start("orders", &yaml).await
    }

    /// The sidecar of a caller of applications behind these, with more in its upstream.
    pub(crate) async fn caller(&self, endpoints: &[&Loopback], upstream: &str) -> Loopback {
        self.caller_with(endpoints, upstream, "").await
    }

    /// As [`caller`](Self::caller), with more in its configuration.
    pub(crate) async fn caller_with(&self, endpoints: &[&Loopback], upstream: &str, more: &str) -> Loopback {
        let endpoints: Vec<_> = endpoints.iter().map(|endpoint| endpoint.inbound()).collect();
        let peer = format!(", mtls: {{ peer: \"spiffe://cluster.local/ns/shop/sa/orders\" }}{upstream}");
        let yaml = self.identity("caller").yaml() + &orders(&endpoints, &peer) + more;
        Loopback::start("caller", &yaml).await
    }
}

/// An upstream with these endpoints.
pub(crate) fn orders(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    let endpoints = endpoints.join(", ");
    format!("upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [{endpoints}]{more} }} }}\n")
}

/// The sidecar of a caller of applications that have none, with more in its upstream.
pub(crate) async fn plain(apps: &[&App], upstream: &str) -> Loopback {
    let endpoints: Vec<_> = apps.iter().map(|app| app.address).collect();
    Loopback::start("caller", &orders(&endpoints, upstream)).await
}

/// `GET`, as the application beside a caller sends it.
pub(crate) async fn get(caller: &Loopback, path: &str) -> Answer {
    send(caller.outbound(), request("GET", HOST, path, "")).await.expect("an answer")
}

/// So many of them, so many at once. How many were answered with success; none may be refused.
pub(crate) async fn crowd(caller: &Loopback, n: usize, at_once: usize) -> usize {
    let mut callers = JoinSet::new();
    for first in 0..at_once {
        let to = caller.outbound();
        callers.spawn(async move {
            let mut good = 0;
            for _ in (first..n).step_by(at_once) {
                let answer = send(to, request("GET", HOST, "/", "")).await.expect("an answer");
                assert!(answer.refused().is_none(), "{answer:?}");
                good += usize::from(answer.status == 200);
            }
            good
        });
    }
    callers.join_all().await.into_iter().sum()
}

/// A request that is being held by an application, or waits for one.
pub(crate) struct Held(JoinHandle<Answer>);

impl Held {
    /// Its answer.
    pub(crate) async fn answer(self) -> Answer {
        self.0.await.expect("an answer")
    }

    /// Whether it has been answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.0.is_finished()
    }

    /// Gives it up.
    pub(crate) async fn give_up(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

/// Sends a request that is answered when the application is told so.
pub(crate) fn hold(to: SocketAddr) -> Held {
    Held(tokio::spawn(async move { send(to, request("GET", HOST, "/hold", "")).await.expect("an answer") }))
}

/// Has so many requests held, all by the application beyond this sidecar.
pub(crate) async fn hold_at(to: SocketAddr, app: &App, n: usize) -> Vec<Held> {
    let before = app.held();
    let held = (0..n).map(|_| hold(to)).collect();
    eventually("the application to hold them", async || app.held() == before + n).await;
    held
}

/// Releases all of them, and sees that each is answered with success.
pub(crate) async fn release(app: &App, held: Vec<Held>) {
    app.release(held.len());
    for held in held {
        assert_eq!(held.answer().await.status, 200);
    }
}

/// What `/upstreams` says of the upstream.
pub(crate) async fn shown(caller: &Loopback) -> Value {
    caller.get("/upstreams").await.expect("the page").json()["upstreams"][0].clone()
}

/// What it says of one endpoint.
pub(crate) async fn endpoint(caller: &Loopback, address: SocketAddr) -> Value {
    let shown = shown(caller).await;
    let endpoints = shown["endpoints"].as_array().expect("endpoints");
    let found = endpoints.iter().find(|endpoint| endpoint["address"] == address.to_string());
    found.unwrap_or_else(|| panic!("no {address} in {shown}")).clone()
}

/// Waits until so many requests wait for room.
pub(crate) async fn until_waiting(caller: &Loopback, n: u64) {
    eventually(&format!("{n} to wait"), async || shown(caller).await["waiting"] == n).await;
}
