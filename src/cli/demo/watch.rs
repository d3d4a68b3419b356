//! What the caller's sidecar says of itself, asked several times a second through its admin
//! listener, as an operator would.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::config::LIMIT;
use super::ended::Result;
use super::place::{Place, Running};

/// How often it is asked.
const PERIOD: Duration = Duration::from_millis(100);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sidecar that is watched, for as long as this lives.
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    _running: Running,
}

/// What it said last.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Its endpoints of orders.
    pub(super) endpoints: Vec<Endpoint>,
    /// How long the answer to the endpoints' name is valid, and what became of it.
    pub(super) dns: Option<Dns>,
    /// The limit on writes.
    pub(super) limit: Option<Limit>,
    /// Whether Redis answers; none: there is none.
    pub(super) redis: Option<bool>,
}

/// An endpoint, as the sidecar sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) saturation: f64,
    pub(super) in_flight: u64,
    pub(super) capacity: u64,
    pub(super) state: State,
}

/// What an endpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It takes requests.
    Serving,
    /// It is not in DNS any more, and finishes what it has.
    Leaving,
    /// It could not be reached, and is passed over.
    PassedOver,
}

/// The answer to the endpoints' name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dns {
    pub(super) state: String,
    pub(super) expires: Option<Duration>,
}

/// A limit's numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Limit {
    /// Such as `100/s`.
    pub(super) rate: String,
    pub(super) burst: u64,
    pub(super) admitted: u64,
    pub(super) refused: u64,
    /// Tokens that are leased and not spent yet.
    pub(super) leased: u64,
    pub(super) redis_calls: u64,
    /// When it was asked.
    pub(super) at: Instant,
}

impl Watch {
    /// Watches the sidecar whose admin listener is at `admin`.
    pub(super) fn start(place: &Place, admin: SocketAddr) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let write = seen.clone();
        let running = place.start("watch", move || async move {
            loop {
                if let Ok(now) = look(admin) {
                    *write.lock().unwrap_or_else(PoisonError::into_inner) = now;
                }
                tokio::time::sleep(PERIOD).await;
            }
        })?;
        Ok(Self { seen, _running: running })
    }

    /// What it said last.
    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn look(admin: SocketAddr) -> io::Result<Seen> {
    let page = |path| {
        let (_, text) = get(admin, path)?;
        serde_json::from_str::<Value>(&text).map_err(io::Error::other)
    };
    let (upstreams, limits) = (page("/upstreams")?, page("/limits")?);
    Ok(read(&upstreams, &limits, Instant::now()))
}

/// Reads the pages. What is not there is left out.
fn read(upstreams: &Value, limits: &Value, at: Instant) -> Seen {
    let named = |list: &Value, name: &str| {
        list.as_array().into_iter().flatten().find(|item| item["name"] == name).cloned()
    };
    let orders = named(&upstreams["upstreams"], "orders").unwrap_or_default();
    let all = |key: &str| orders[key].as_array().cloned().unwrap_or_default();
    let serving = all("endpoints").into_iter().map(|e| {
        let passed_over = e["passed_over"].as_bool() == Some(true);
        (if passed_over { State::PassedOver } else { State::Serving }, e)
    });
    let leaving = all("leaving").into_iter().map(|e| (State::Leaving, e));
    let endpoint = |(state, value): (State, Value)| {
        Some(Endpoint {
            address: value["address"].as_str()?.parse().ok()?,
            saturation: value["saturation"].as_f64()?,
            in_flight: value["in_flight"].as_u64()?,
            capacity: value["capacity"].as_u64()?,
            state,
        })
    };
    let dns = || {
        let dns = &orders["dns"];
        let expires = dns["expires_in_seconds"].as_f64().map(|s| Duration::from_secs_f64(s.max(0.0)));
        Some(Dns { state: dns["state"].as_str()?.to_owned(), expires })
    };
    let limit = named(&limits["limits"], LIMIT).and_then(|limit| {
        let number = |key: &str| limit[key].as_u64();
        Some(Limit {
            rate: limit["rate"].as_str()?.to_owned(),
            burst: number("burst")?,
            admitted: number("admitted")?,
            refused: number("refused")?,
            leased: number("tokens")?,
            redis_calls: limits["redis"]["calls"].as_u64().unwrap_or(0),
            at,
        })
    });
    Seen {
        endpoints: serving.chain(leaving).filter_map(endpoint).collect(),
        dns: dns(),
        limit,
        redis: limits["redis"]["up"].as_bool(),
    }
}

/// A page's status and text.
pub(super) fn get(from: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&from, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {from}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let malformed = || io::Error::other("no HTTP answer");
    let (head, text) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((status, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::model::Direction;
    use crate::limit::{self, Limits};

    use super::*;

    /// What a sidecar says of the demo's limit.
    fn limits_of_a_sidecar() -> Value {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let state = limit::State::new(None, runtime.handle()).expect("no Redis");
        let text = format!("limits: [{{ name: {LIMIT}, rate: 100/s }}]");
        let model = crate::config::parse(&text, "t").expect("valid");
        let limits = Limits::compile(&model.limits, Direction::Outbound, &state);
        json!({ "limits": limits.snapshot_with_buckets(), "redis": state.redis() })
    }

    #[test]
    fn the_pages_are_read() {
        let endpoint = |address: &str, passed_over: bool| {
            json!({ "address": address, "saturation": 0.25, "in_flight": 12, "capacity": 48,
                    "connections": 2, "passed_over": passed_over, "plaintext": false })
        };
        let upstreams = json!({ "upstreams": [{
            "name": "orders",
            "dns": { "state": "fresh", "expires_in_seconds": 1.5 },
            "endpoints": [endpoint("10.0.0.1:80", false), endpoint("10.0.0.2:80", true)],
            "leaving": [endpoint("10.0.0.3:80", false)],
        }] });
        let mut limits = limits_of_a_sidecar();
        limits["limits"][0]["tokens"] = 7.into();
        limits["redis"] = json!({ "up": true, "calls": 2 });
        let seen = read(&upstreams, &limits, Instant::now());
        let states: Vec<_> = seen.endpoints.iter().map(|e| e.state).collect();
        assert_eq!(states, [State::Serving, State::PassedOver, State::Leaving]);
        assert_eq!((seen.endpoints[0].in_flight, seen.endpoints[0].capacity), (12, 48));
        assert_eq!(seen.dns.expect("DNS").expires, Some(Duration::from_millis(1500)));
        let limit = seen.limit.expect("a limit");
        assert_eq!((limit.rate.as_str(), limit.leased, limit.redis_calls), ("100/s", 7, 2));
        assert_eq!(seen.redis, Some(true));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let seen =
            read(&json!({}), &json!({ "limits": [{ "name": "writes" }], "redis": null }), Instant::now());
        assert!(seen.endpoints.is_empty() && seen.dns.is_none() && seen.limit.is_none());
        assert_eq!(seen.redis, None);
    }
}
