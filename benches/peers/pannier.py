"""Pannier, with all its policy on: a route, a limit that never trips, retries, a timeout, and, in
the pair, the caller's identity checked against an allow list. Metrics cannot be switched off."""

import json

from machine import free_port, redirect
from rig import CLIENT, MANY, SERVER, Running


def sidecar(rig, name, listens, document, workers=1, core=None):
    """One sidecar, in explicit mode: `listens` is the listener that is measured. Returns its port,
    its process and where its metrics are."""
    port, probes = free_port(), free_port()
    listen = {door: "127.0.0.1:0" for door in ("outbound", "inbound", "dns", "admin")}
    listen |= {listens: f"127.0.0.1:{port}", "probes": f"127.0.0.1:{probes}"}
    # JSON is YAML.
    config = rig.write(f"{name}.yaml", json.dumps({"listen": listen, "workers": workers, **document}, indent=2))
    return port, rig.start(name, [rig.pannier, "proxy", "--config", config], port, core), probes


def identity(rig, who):
    return {"certificate": f"{rig.certs}/{who}.pem", "key": f"{rig.certs}/{who}.key", "bundle": f"{rig.certs}/ca.pem"}


def policy(address, endpoint, mtls, timeout="10s"):
    """The policy of an ordinary route."""
    return {
        "upstreams": {"orders": {"address": f"127.0.0.1:{address}", "endpoints": [f"127.0.0.1:{endpoint}"],
                                 "mtls": mtls, "capacity": MANY}},
        "routes": [{"host": "*", "path": "/", "upstream": "orders", "timeout": timeout, "retries": 2}],
        "limits": [{"name": "never-trips", "rate": "10000000/s", "burst": 1_000_000, "scope": "pod"}],
    }


def outbound(rig, name, endpoint, timeout="10s", **more):
    """The sidecar beside the caller, towards another."""
    document = policy(endpoint, endpoint, {"mode": "require", "peer": SERVER}, timeout)
    return sidecar(rig, name, "outbound", document | {"identity": identity(rig, "client")} | more)


def inbound(rig, name, **more):
    """The sidecar beside the application."""
    return sidecar(rig, name, "inbound", {
        "application": f"127.0.0.1:{rig.upstream}",
        "identity": identity(rig, "server"),
        "inbound": {"mtls": "strict", "allow": [{"caller": CLIENT, "path": "/"}]},
    } | more)


def hop(rig, workers=1, core=None):
    document = policy(rig.upstream, rig.upstream, {"mode": "off"})
    port, process, probes = sidecar(rig, f"pannier-{workers}", "outbound", document, workers, core)
    return Running(port, [process], probes)


def pair(rig):
    inner, receiver, _ = inbound(rig, "pannier-in")
    port, sender, _ = outbound(rig, "pannier-out", inner)
    return Running(port, [sender, receiver])


def tcp_pair(rig, name="pannier-tcp", **more):
    """Opaque connections: what the load dials is redirected to the sidecar, which carries that port
    as bytes. `more` is of the identities."""
    # A rule for a path would not let bytes in, which have none.
    rules = {"mtls": "strict", "allow": [{"caller": CLIENT}], "opaque_ports": [rig.upstream]}
    server, client = (identity(rig, who) | more for who in ("server", "client"))
    inner, receiver, _ = inbound(rig, f"{name}-in", inbound=rules, identity=server)
    service = free_port()
    document = policy(service, inner, {"mode": "require", "peer": SERVER})
    document |= {"identity": client, "outbound": {"opaque_ports": [service]}}
    port, sender, _ = sidecar(rig, f"{name}-out", "outbound", document)
    redirect(service, port)
    return Running(service, [sender, receiver])
