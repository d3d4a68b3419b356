"""Pannier with its defaults: an upstream for each endpoint, and what it has learned of them."""

import json
import urllib.request

from machine import free_port
from system import address, host


def start(rig, name, endpoints):
    port, admin = free_port(), free_port()
    listen = {door: "127.0.0.1:0" for door in ("inbound", "dns", "probes")}
    listen |= {"outbound": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin}"}
    # An address that is none of DNS: nothing is asked there while the rest is measured.
    upstreams = {f"e{number}": {"address": f"{address(number)}:{to}", "mtls": {"mode": "off"}}
                 for number, to in endpoints.items()}
    routes = [{"host": host(number), "upstream": f"e{number}"} for number in endpoints]
    document = {"listen": listen, "workers": 1, "upstreams": upstreams, "routes": routes}
    # JSON is YAML.
    config = rig.write(f"{name}.yaml", json.dumps(document, indent=1))
    rig.start(name, [rig.pannier, "proxy", "--config", config], port)
    return port, admin


def learned(admin):
    """For how long each endpoint's connections are reused, in milliseconds: for idempotent requests,
    and for any. Nothing of an endpoint without a limit, or of a Pannier that learns none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/upstreams", timeout=10) as answer:
        found = {}
        for text, kept in kept_alive(json.load(answer)):
            ways = {"GET": kept.get("reuse_seconds"), "POST": kept.get("reuse_any_seconds")}
            found[text] = {method: seconds * 1000 for method, seconds in ways.items() if seconds is not None}
        return found


def kept_alive(page, at=""):
    """Whatever is said of a keep-alive, with the endpoint's address that it stands beside."""
    if isinstance(page, list):
        for part in page:
            yield from kept_alive(part, at)
    elif isinstance(page, dict):
        at = page.get("address", at) if isinstance(page.get("address", at), str) else at
        if isinstance(page.get("keep_alive"), dict):
            yield at, page["keep_alive"]
        for name, part in page.items():
            if name != "keep_alive":
                yield from kept_alive(part, at)
