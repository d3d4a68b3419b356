//! What serde cannot see: names that must resolve, texts that must be well-formed, values that
//! must agree. Every fault is reported, at the value that would have to change.

mod balance;
mod jwt;
mod limits;
mod redis;
mod retries;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::model::*;
use super::problem::did_you_mean;
use super::syntax::{self, HostPattern};
use super::tree::{Fault, Kind, Mark, Node, index, push_key};
use super::units::{EndpointName, Host, HostPort, OneOrMany, Size, Time};

/// Checks a model that was read from the tree below `root`.
pub(super) fn check(model: &Model, root: &Node, faults: &mut Vec<Fault>) {
    let root = Place { node: Some(root), at: root.at, path: String::new() };
    let mut checker = Checker { faults, root };
    checker.listen(model);
    checker.times(model);
    checker.dns(&model.dns);
    checker.identity(model);
    checker.jwt(model);
    for (name, upstream) in &model.upstreams {
        checker.upstream(name, upstream);
    }
    checker.balance(model);
    checker.shared_addresses(model);
    checker.routes(model);
    checker.limits(model);
    checker.inbound(model);
    checker.ports(model);
    checker.redis(model);
    checker.http(model);
}

/// Where the value at a path of keys stands, or the nearest thing above it.
pub(super) fn place(root: &Node, path: &str) -> Mark {
    let root = Place { node: Some(root), at: root.at, path: String::new() };
    path.split('.').fold(root, |place, key| place.key(key)).at
}

/// A key or element, and where it stands in the text: at itself, or at the nearest thing above
/// it where a default stands for it.
#[derive(Clone)]
struct Place<'a> {
    node: Option<&'a Node>,
    at: Mark,
    path: String,
}

impl<'a> Place<'a> {
    fn key(&self, key: &str) -> Place<'a> {
        let mut path = self.path.clone();
        push_key(&mut path, key);
        match self.node.map(|node| &node.kind) {
            Some(Kind::Block(entries)) => match entries.iter().find(|entry| entry.key == key) {
                Some(entry) => {
                    let node = &*entry.slot.value;
                    // A block is pointed at by its key, a value by itself.
                    let at = if matches!(node.kind, Kind::Block(_)) { entry.key_at } else { node.at };
                    Place { node: Some(node), at, path }
                }
                None => Place { node: None, at: self.at, path },
            },
            _ => Place { node: None, at: self.at, path },
        }
    }

    /// An element of a list; where one value stands instead of a list of one, that.
    fn item(&self, i: usize) -> Place<'a> {
        match self.node.map(|node| &node.kind) {
            Some(Kind::List(slots)) => {
                let node = slots.get(i).map(|slot| &*slot.value);
                let at = node.map_or(self.at, |node| node.at);
                Place { node, at, path: format!("{}{}", self.path, index(i)) }
            }
            _ => self.clone(),
        }
    }

    /// The elements that were read into the model, in its order.
    fn items(&self) -> Vec<Place<'a>> {
        match self.node.map(|node| &node.kind) {
            Some(Kind::List(slots)) => {
                let read = slots.iter().enumerate().filter(|(_, slot)| !slot.gone.get());
                read.map(|(i, _)| self.item(i)).collect()
            }
            _ => vec![self.clone()],
        }
    }

    /// The places of values that may all be defaults.
    fn items_of<T>(&self, values: &OneOrMany<T>) -> Vec<Place<'a>> {
        match self.node {
            Some(_) => self.items(),
            None => vec![self.clone(); values.as_slice().len()],
        }
    }

    /// Whether a list stands here in which nobody has written anything.
    fn is_empty_list(&self) -> bool {
        self.node.is_some_and(|node| matches!(&node.kind, Kind::List(slots) if slots.is_empty()))
    }

    /// Whether something stands here, even something wrong.
    fn is_written(&self) -> bool {
        self.node.is_some()
    }

    /// The keys of a block, those with wrong values included.
    fn keys(&self) -> Vec<&'a str> {
        match self.node.map(|node| &node.kind) {
            Some(Kind::Block(entries)) => entries.iter().map(|entry| entry.key.as_str()).collect(),
            _ => Vec::new(),
        }
    }
}

struct Checker<'a, 'f> {
    faults: &'f mut Vec<Fault>,
    root: Place<'a>,
}

impl<'a> Checker<'a, '_> {
    fn fault(&mut self, place: &Place<'_>, message: impl Into<String>) {
        self.faults.push(Fault { at: place.at, path: place.path.clone(), message: message.into() });
    }

    fn require(&mut self, place: &Place<'_>, result: Result<(), String>) {
        if let Err(message) = result {
            self.fault(place, message);
        }
    }

    /// Addresses that collide, and doors that must not be open to others.
    fn listen(&mut self, model: &Model) {
        let place = self.root.key("listen");
        let listen = &model.listen;
        let doors = [
            ("outbound", &listen.outbound),
            ("inbound", &listen.inbound),
            ("dns", &listen.dns),
            ("admin", &listen.admin),
            ("probes", &listen.probes),
        ];
        let mut seen: Vec<(&str, SocketAddr)> = Vec::new();
        for (door, addresses) in doors {
            let door_place = place.key(door);
            for (address, place) in addresses.as_slice().iter().zip(door_place.items_of(addresses)) {
                if let Some((other, taken)) = seen.iter().find(|(_, taken)| collide(*taken, *address)) {
                    self.fault(&place, format!("{address} is taken already by `{other}`, at {taken}"));
                }
                seen.push((door, *address));
                if door == "admin" && !address.ip().is_loopback() {
                    let message = "the admin door can drain and shows the configuration; expected a loopback \
                                   address (`probes` is for others)";
                    self.fault(&place, message);
                }
            }
        }
        if let Some(application) = model.application {
            let place = self.root.key("application");
            if application.port() == 0 {
                self.fault(&place, "the port is 0; expected the port that the application listens on");
            } else if let Some((door, _)) = seen.iter().find(|(_, taken)| collide(*taken, application)) {
                self.fault(
                    &place,
                    format!("this is the sidecar's own `listen.{door}`; expected the application's"),
                );
            }
        }
        if model.workers.is_some_and(|workers| workers.get() > 1024) {
            self.fault(&self.root.key("workers"), "expected at most 1024 threads");
        }
    }

    /// Times that must not be zero.
    fn times(&mut self, model: &Model) {
        let root = self.root.clone();
        let dns = root.key("dns");
        self.not_zero(&dns.key("timeout"), model.dns.timeout);
        self.not_zero(&dns.key("resolution_timeout"), model.dns.resolution_timeout);
        self.not_zero(&dns.key("recheck"), model.dns.recheck);
        self.not_zero(&root.key("outbound").key("detect_timeout"), model.outbound.detect_timeout);
        self.not_zero(&root.key("inbound").key("detect_timeout"), model.inbound.detect_timeout);
        self.not_zero(&root.key("outbound").key("connect_timeout"), model.outbound.connect_timeout);
        self.not_zero(&root.key("inbound").key("connect_timeout"), model.inbound.connect_timeout);
        for (name, upstream) in &model.upstreams {
            let place = root.key("upstreams").key(name);
            self.not_zero(&place.key("connect_timeout"), upstream.connect_timeout);
            self.not_zero(&place.key("peer_timeout"), upstream.peer_timeout);
        }
        for (route, place) in model.routes.iter().zip(root.key("routes").items()) {
            if route.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
                self.fault(&place.key("timeout"), "nothing is done in no time; leave it out for no timeout");
            }
            if let Some(time) = route.body_timeout {
                self.not_zero(&place.key("body_timeout"), time);
            }
        }
    }

    fn not_zero(&mut self, place: &Place<'_>, time: Time) {
        if time.0.is_zero() {
            self.fault(place, "nothing is done in no time; expected more than `0s`");
        }
    }

    fn dns(&mut self, dns: &Dns) {
        let place = self.root.key("dns");
        if dns.min_ttl > dns.max_ttl {
            let key = if place.key("min_ttl").is_written() { "min_ttl" } else { "max_ttl" };
            let message = format!("`min_ttl` ({}) is above `max_ttl` ({})", dns.min_ttl, dns.max_ttl);
            self.fault(&place.key(key), message);
        }
        self.dns_servers(&dns.servers, &place.key("servers"));
        for (domain, servers) in &dns.domains {
            let place = place.key("domains").key(domain);
            if !matches!(domain.parse(), Ok(Host::Name(_))) {
                self.fault(&place, format!("`{domain}` is not a domain; expected one as `endpoints.mesh`"));
            }
            if servers.is_empty() {
                self.fault(&place, "expected at least one server");
            }
            self.dns_servers(servers, &place);
        }
    }

    fn dns_servers(&mut self, servers: &[SocketAddr], place: &Place<'_>) {
        for (server, place) in servers.iter().zip(place.items()) {
            if server.port() == 0 {
                self.fault(&place, "the port is 0; expected the server's, usually 53");
            }
        }
    }

    fn identity(&mut self, model: &Model) {
        let Some(identity) = &model.identity else { return };
        let place = self.root.key("identity");
        let files =
            [("certificate", &identity.certificate), ("key", &identity.key), ("bundle", &identity.bundle)];
        for (key, file) in files {
            if file.as_os_str().is_empty() {
                self.fault(&place.key(key), "expected a file's path");
            }
        }
    }

    fn has_identity(&self) -> bool {
        self.root.key("identity").is_written()
    }

    fn upstream(&mut self, name: &str, upstream: &Upstream) {
        let place = self.root.key("upstreams").key(name);
        self.require(&place, syntax::name(name));
        if let Some(endpoints) = &upstream.endpoints {
            self.endpoints(&place.key("endpoints"), endpoints);
        }
        if let Some(mtls) = &upstream.mtls {
            let place = place.key("mtls");
            if mtls.mode == MtlsMode::Require && !self.has_identity() {
                let mode = place.key("mode");
                self.fault(&mode, "mTLS is required, but no `identity` is configured to prove who we are");
            }
            if let Some(peer) = &mtls.peer {
                let place = place.key("peer");
                self.require(&place, syntax::spiffe_id(peer));
                if mtls.mode == MtlsMode::Off {
                    self.fault(&place, "nobody proves an id where `mode` is `off`");
                }
            }
        }
    }

    /// Two upstreams may share an address where written routes tell them apart, not otherwise.
    fn shared_addresses(&mut self, model: &Model) {
        let mut seen: HashMap<&HostPort, &str> = HashMap::new();
        for (name, address) in model.implicit_routes() {
            if let Some(twin) = seen.insert(address, name) {
                let place = self.root.key("upstreams").key(name).key("address");
                let message = format!(
                    "`{address}` is the address of `{twin}` too, and no route names it to say which takes what"
                );
                self.fault(&place, message);
            }
        }
    }

    fn endpoints(&mut self, place: &Place<'_>, endpoints: &OneOrMany<EndpointName>) {
        let list = endpoints.as_slice();
        if list.is_empty() {
            self.fault(place, "an empty list has no endpoint; leave it out to balance over `address`");
        }
        for (i, endpoint) in list.iter().enumerate() {
            let place = place.item(i);
            let is_address = matches!(endpoint, EndpointName::At(HostPort { host: Host::Address(_), .. }));
            if list.len() > 1 && !is_address {
                self.fault(&place, "a list is of `ip:port`; expected one name alone, or addresses");
            }
            if list[..i].contains(endpoint) {
                self.fault(&place, format!("`{endpoint}` is in the list already"));
            }
        }
    }

    fn routes(&mut self, model: &Model) {
        let names: HashSet<&str> = self.root.key("upstreams").keys().into_iter().collect();
        let mut seen: HashMap<(HostPattern, bool, String), usize> = HashMap::new();
        for (route, place) in model.routes.iter().zip(self.root.key("routes").items()) {
            let hosts = self.hosts(&place.key("host"), &route.host);
            let path_place = place.key("path");
            let path_sound = syntax::path(&route.path);
            for (host, place) in hosts {
                let (exact, path) = match &route.path {
                    PathMatch::Exact(exact) => (true, exact.exact.clone()),
                    PathMatch::Prefix(prefix) => (false, prefix.trim_end_matches('/').to_owned()),
                };
                if let Some(line) = seen.get(&(host.clone(), exact, path.clone())) {
                    self.fault(
                        &place,
                        format!("`{host}` with this path has a route already, on line {line}"),
                    );
                } else {
                    seen.insert((host, exact, path), place.at.line);
                }
            }
            self.require(&path_place, path_sound);
            self.retries(route, &place);
            if !names.contains(route.upstream.as_str()) {
                let hint = did_you_mean(&route.upstream, names.iter().copied());
                let message = format!("no upstream is named `{}`{hint}", route.upstream);
                self.fault(&place.key("upstream"), message);
            }
        }
    }

    /// Reports hosts that are none, and gives the others with their places.
    fn hosts(&mut self, place: &Place<'a>, hosts: &OneOrMany<String>) -> Vec<(HostPattern, Place<'a>)> {
        if hosts.as_slice().is_empty() {
            self.fault(place, "an empty list names no host; leave it out, or write `*`, for every host");
        }
        let mut good = Vec::new();
        for (i, host) in hosts.as_slice().iter().enumerate() {
            let place = place.item(i);
            match host.parse() {
                Ok(host) => good.push((host, place)),
                Err(message) => self.fault(&place, message),
            }
        }
        good
    }

    fn methods(&mut self, place: &Place<'_>, methods: Option<&OneOrMany<String>>) {
        let Some(methods) = methods.map(OneOrMany::as_slice) else { return };
        if methods.is_empty() {
            self.fault(place, "an empty list names no method; leave it out for every method");
        }
        for (i, method) in methods.iter().enumerate() {
            self.require(&place.item(i), syntax::method(method));
        }
    }

    fn inbound(&mut self, model: &Model) {
        let place = self.root.key("inbound");
        let inbound = &model.inbound;
        if inbound.mtls == Some(InboundMtls::Strict) && !self.has_identity() {
            let message = "mTLS is required, but no `identity` is configured to prove who we are";
            self.fault(&place.key("mtls"), message);
        }
        let Some(allow) = &inbound.allow else { return };
        let allow_place = place.key("allow");
        if !allow.is_empty() && !self.has_identity() {
            let message = "callers prove who they are by mTLS, which needs an `identity`; without one every \
                           request would be refused";
            self.fault(&allow_place, message);
        } else if !allow.is_empty() && inbound.mtls == Some(InboundMtls::Off) {
            let message = "callers prove who they are by mTLS, and `inbound.mtls` is `off`; every request \
                           would be refused";
            self.fault(&allow_place, message);
        }
        for (rule, place) in allow.iter().zip(allow_place.items()) {
            self.require(&place.key("caller"), syntax::spiffe_pattern(&rule.caller));
            if let Some(path) = &rule.path {
                self.require(&place.key("path"), syntax::path(path));
            }
            self.methods(&place.key("method"), rule.method.as_ref());
        }
    }

    fn ports(&mut self, model: &Model) {
        for (key, ports) in
            [("outbound", &model.outbound.opaque_ports), ("inbound", &model.inbound.opaque_ports)]
        {
            let place = self.root.key(key).key("opaque_ports");
            for (i, (port, place)) in ports.iter().zip(place.items()).enumerate() {
                if *port == 0 {
                    self.fault(&place, "expected a port from 1 to 65535");
                } else if place.is_written() && ports[..i].contains(port) {
                    self.fault(&place, format!("{port} is in the list already"));
                }
            }
        }
    }

    fn http(&mut self, model: &Model) {
        let root = self.root.clone();
        self.http_of(&root.key("http"), &model.http);
        // What is written there, with what it does not say from above: a fault there is found there.
        for (key, own) in [("outbound", &model.outbound.http), ("inbound", &model.inbound.http)] {
            self.http_of(&root.key(key).key("http"), &Http::default().with(own));
        }
    }

    fn http_of(&mut self, place: &Place<'_>, http: &Http) {
        let (least, most) = (Size(1 << 10), Size(1 << 20));
        if !(least..=most).contains(&http.max_header_bytes) {
            self.fault(&place.key("max_header_bytes"), format!("expected from {least} to {most}"));
        }
        if http.max_headers.get() > MOST_HEADERS {
            self.fault(&place.key("max_headers"), format!("expected at most {MOST_HEADERS}"));
        }
        self.not_zero(&place.key("header_timeout"), http.header_timeout);
        self.not_zero(&place.key("body_timeout"), http.body_timeout);
        self.not_zero(&place.key("idle_timeout"), http.idle_timeout);
        self.not_zero(&place.key("max_connection_age"), http.max_connection_age);
    }
}

/// Whether two listeners cannot be bound both: the same port, on the same address or on all.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0
        && a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}
