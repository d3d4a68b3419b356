//! A mesh that runs anywhere: sidecars with listeners on loopback that are dialled, a DNS server of
//! our own, and limits counted in each sidecar. Names, certificates, mTLS and balancing are the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::runtime::Handle;

use super::app::App;
use super::config::{self, CALLER, ENDPOINTS, Ground, HOST, ORDERS, PORT, WIDE};
use super::directory::Directory;
use super::ended::{Result, Stop, cannot};
use super::mesh::{Caller, Mesh, PODS, Pod, Registry};
use super::place::{Place, Running};
use super::process;
use super::sidecar::Maker;
use super::traffic::Way;
use crate::dns;
use crate::identity::ca::Authority;

/// How long each record is valid.
const TTL: Duration = Duration::from_secs(2);

/// Ports that are tried until one is free on all addresses.
const TRIES: usize = 100;

/// The first pod's address; the others follow. All of 127.0.0.0/8 is this machine.
const FIRST: u8 = 11;

/// Builds the mesh.
pub(super) fn build(
    directory: Directory,
    authority: &Authority,
    program: PathBuf,
    stop: &Stop,
) -> Result<Mesh> {
    let place = Place::Here;
    let ips: Vec<_> = PODS.iter().zip(FIRST..).map(|(_, n)| Ipv4Addr::new(127, 0, 0, n)).collect();
    let port = free_port(&ips).map_err(cannot("find a port that is free on 127.0.0.11 and its next"))?;
    let zone = Zone::serve()?;
    let ground = Ground { dns: zone.address, redis: None, port, explicit: true };
    let maker = Maker { directory: &directory, authority, redirected: false, program, stop };
    let mut pods = Vec::new();
    for ((name, work), ip) in PODS.into_iter().zip(ips) {
        let address = SocketAddr::new(ip.into(), port);
        let app = App::start(&place, name, SocketAddr::new(ip.into(), 0), work)?;
        let explicit = Some((address, app.address()));
        let sidecar = maker.start(&place, name, ORDERS, |identity| config::endpoint(identity, explicit))?;
        pods.push(Pod { name, address, app: Some(app), sidecar });
    }
    zone.publish(&pods.iter().map(|pod| pod.address).collect::<Vec<_>>());
    let sidecar = maker.start(&place, "web", CALLER, |identity| config::caller(&ground, identity, WIDE))?;
    let way = Way::Explicit(sidecar.outbound);
    Ok(Mesh {
        caller: Caller { sidecar, place, way },
        pods,
        registry: Registry::Zone(zone),
        ground,
        about: "on loopback, mTLS, DNS and limits of its own",
        _redis: None,
        directory,
    })
}

/// A DNS server with the service's names.
pub(super) struct Zone {
    zone: Arc<dns::Zone>,
    address: SocketAddr,
    _server: Running,
}

impl Zone {
    fn serve() -> Result<Self> {
        let zone = dns::Zone::new();
        let (say, said) = mpsc::channel();
        let served = zone.clone();
        let server = Place::Here.start("DNS server", move || async move {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let responder = dns::Responder::start(address, served, &Handle::current());
            let _ = say.send(responder.as_ref().map(dns::Responder::address).map_err(io::Error::to_string));
            if responder.is_ok() {
                std::future::pending().await
            }
        })?;
        let bound = said.recv().unwrap_or_else(|gone| Err(gone.to_string()));
        Ok(Self { zone, address: bound.map_err(cannot("start the DNS server"))?, _server: server })
    }

    /// Says where the service's pods are.
    pub(super) fn publish(&self, endpoints: &[SocketAddr]) {
        let local = [IpAddr::from(Ipv4Addr::LOCALHOST)];
        self.zone.set(HOST, TTL, local);
        self.zone.set(ENDPOINTS, TTL, endpoints.iter().map(SocketAddr::ip));
    }
}

/// A port that nobody listens on at any of `ips`.
fn free_port(ips: &[Ipv4Addr]) -> io::Result<u16> {
    let mut tries = 0;
    loop {
        tries += 1;
        let first = TcpListener::bind((ips[0], 0))?;
        let port = first.local_addr()?.port();
        match ips[1..].iter().map(|ip| TcpListener::bind((*ip, port))).collect::<io::Result<Vec<_>>>() {
            Ok(_) => return Ok(port),
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => {}
        }
    }
}

impl Mesh {
    /// Commands that can be tried while such a mesh is up.
    pub(super) fn commands_on_loopback(&self) -> Vec<(String, &'static str)> {
        let (outbound, admin, dns) =
            (self.caller.sidecar.outbound, self.caller.sidecar.admin, self.ground.dns);
        let host = format!("-H 'Host: {HOST}:{PORT}' http://{outbound}");
        let mut commands = vec![
            (format!("curl -si {host}/hello"), "a request, as the application sends it"),
            (format!("curl -si -X PUT {host}/writes/1"), "one that the limit may refuse"),
            (format!("curl -s http://{admin}/upstreams"), "endpoints, and how full they are"),
            (format!("curl -s http://{admin}/limits"), "limits and decisions"),
            (format!("curl -s http://{admin}/metrics"), "metrics"),
        ];
        if process::installed("dig") {
            let dig = format!("dig +noall +answer -p {} @{} {ENDPOINTS}", dns.port(), dns.ip());
            commands.push((dig, "the endpoints, by DNS"));
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_port_is_free_on_every_address() {
        let ips = [Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(127, 0, 0, 12)];
        let port = free_port(&ips).expect("a port");
        let held: io::Result<Vec<_>> = ips.iter().map(|ip| TcpListener::bind((*ip, port))).collect();
        assert_eq!(held.expect("free").len(), ips.len());
    }
}
