"""Pannier with its defaults, in explicit mode: one upstream, by name."""

import json

from machine import free_port
from server import NAME

SAYS = "defaults; one upstream whose `address` is the name, `dns.servers` is the bench's server."


def start(rig, name, resolver, upstream):
    port = free_port()
    listen = {door: "127.0.0.1:0" for door in ("inbound", "dns", "admin", "probes")}
    document = {
        "listen": listen | {"outbound": f"127.0.0.1:{port}"},
        "workers": 1,
        "dns": {"servers": [f"127.0.0.1:{resolver}"]},
        "upstreams": {"orders": {"address": f"{NAME}:{upstream}"}},
    }
    # JSON is YAML.
    config = rig.write(f"{name}.yaml", json.dumps(document, indent=1))
    return port, rig.start(name, [rig.pannier, "proxy", "--config", config], port)
