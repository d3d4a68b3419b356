//! What `edge` is told: one JSON object a line. Times are in milliseconds.

use std::net::SocketAddr;

use serde::Deserialize;

/// A line of input.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Upstreams to be; the answer says at which ports they listen, on every loopback address.
    Serve(Vec<Behaviour>),
    /// Requests to send; the answer is what came of them.
    Run(Vec<Row>),
}

/// How an upstream treats its connections.
#[derive(Deserialize)]
pub(crate) struct Behaviour {
    pub(crate) name: String,
    /// For how long a connection may idle. Of several, each is in force for a `period` in turn.
    pub(crate) idle: Vec<f64>,
    #[serde(default)]
    pub(crate) period: f64,
    pub(crate) end: End,
    /// What answers promise in `Keep-Alive: timeout=`, in seconds.
    pub(crate) hint: Option<u32>,
    /// After how many answers a connection is read no more, and closed in a moment.
    pub(crate) after: Option<u64>,
    /// Whether the last of them says `Connection: close`.
    #[serde(default)]
    pub(crate) announced: bool,
    /// Stands behind a relay that adds so much each way.
    pub(crate) delay: Option<f64>,
}

/// How a connection that has idled for long enough is ended.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum End {
    /// Closed: what comes later is answered by the kernel with a reset.
    Fin,
    /// Reset.
    Rst,
    /// Its own direction alone: requests that come later are acted on, and cannot be answered.
    Half,
}

/// Lanes of one kind, and where their requests go.
#[derive(Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The proxy.
    pub(crate) to: SocketAddr,
    pub(crate) method: Method,
    /// How many requests each lane sends, not counting those that only open a connection.
    pub(crate) rounds: u32,
    /// The lanes begin one after the other over this time.
    pub(crate) spread: f64,
    pub(crate) lanes: Vec<LanePlan>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Method {
    Get,
    Post,
}

/// One keep-alive connection to the proxy, with an endpoint of its own behind it.
#[derive(Deserialize)]
pub(crate) struct LanePlan {
    /// The proxy knows it as `eN.row`.
    pub(crate) endpoint: u32,
    pub(crate) gap: Gap,
}

/// The pause between an answer and the next request: any in a range, each as likely.
#[derive(Clone, Deserialize)]
pub(crate) struct Gap {
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Counted from what this behaviour lets its connections idle just then.
    pub(crate) beyond: Option<String>,
}
