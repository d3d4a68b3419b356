"""What limits add to a request, in CPU and in time: a sidecar with and without them, by alternating slices of the
same load at the same rate.

Pannier: a few sidecars, of which one has all roles in a round (no limit, one, three, and one with `exact: true`, which
asks Redis for each request): it is reconfigured as it runs. Envoy: one
process with a listener for each role, its ratelimit filter and a rate-limit service of ours (`--example
ratelimit`: it does less than envoyproxy/ratelimit, and the same in Redis). Sidecars have one worker, on one core;
the load, the application, the service and Redis share the other. The limits are far from reached. Of three, two
are keyed by a header."""

import json
import os
import sys
import time
import urllib.request

import envoy
import load
from machine import core_ticks, free_port
from rig import MANY
from servers import Server

ROLES = ("none", "one", "three", "exact")
ENVOY_ROLES = ("none", "one")
BASE = "none"
# Of a block, of which each has a round.
SIDECARS = 5
CONNECTIONS = 64
# What every request says of itself.
FIELDS = ("x-tenant: tenant-1", "x-user: user-1")
# Of a limit that is never reached, and yet has leases of an ordinary length.
FAR = {"rate": "100000/s", "burst": 100_000, "without_redis": "closed"}
# The share of what the slowest answers when asked as fast as it can.
SHARE = 0.6
# Of a slice, before it is measured, and when it is.
WARM, SECONDS = 0.5, 2
PATIENCE = 10


class Cost(load.Meter):
    """CPU of each part by itself, for each request."""

    def __init__(self, rig, parts):
        self.parts = parts
        super().__init__(rig, [])

    def read(self):
        spent = {name: process.cpu_seconds() for name, process in self.parts.items()}
        return spent, core_ticks(self.rig.proxy_core), core_ticks(self.rig.load_core)

    def spent(self, units):
        (cpu, *cores), (before, *cores_before) = self.read(), self.started
        busy = [(after[0] - first[0]) / max(after[1] - first[1], 1) for first, after in zip(cores_before, cores)]
        each = {name: (cpu[name] - before[name]) * 1e6 / max(units, 1) for name in self.parts}
        return {**each, "together": sum(each.values()), "proxy_core_busy": busy[0], "load_core_busy": busy[1]}


class Pannier:
    """One sidecar, whose role changes."""

    def __init__(self, rig, number, redis):
        self.rig, self.redis, self.name = rig, redis, f"limit-pannier-{number}"
        self.port, self.admin = free_port(), free_port()
        self.configure(BASE)
        self.process = rig.start(self.name, [rig.pannier, "proxy", "--config", self.path], self.port)

    def configure(self, role):
        # JSON is YAML. A file is replaced as a whole, since it is followed.
        self.path = f"{self.rig.folder}/{self.name}.yaml"
        os.replace(self.rig.write(f"{self.name}.new", json.dumps(self.document(role), indent=1)), self.path)

    def document(self, role):
        listen = {door: "127.0.0.1:0" for door in ("inbound", "dns", "probes")}
        address = f"127.0.0.1:{self.rig.upstream}"
        return {
            "listen": listen | {"outbound": f"127.0.0.1:{self.port}", "admin": f"127.0.0.1:{self.admin}"},
            "workers": 1,
            "upstreams": {"orders": {"address": address, "endpoints": [address], "mtls": {"mode": "off"},
                                     "capacity": MANY}},
            "routes": [{"host": "*", "path": "/", "upstream": "orders", "timeout": "10s", "retries": 2}],
            "redis": {"url": f"redis://127.0.0.1:{self.redis.port}"},
            "limits": limits(role),
        }

    def take(self, role):
        """Takes a role, and waits until it has it."""
        self.configure(role)
        expected = [limit["name"] for limit in limits(role)]
        deadline = time.monotonic() + PATIENCE
        while [limit["name"] for limit in self.limits()] != expected:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not follow its configuration")
            time.sleep(0.02)

    def limits(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/limits", timeout=5) as answer:
            return json.load(answer)["limits"]


def limits(role):
    """What a role has of Pannier's limits; names tell roles apart."""
    if role == BASE:
        return []
    keys = [{}, {"key": ["header:x-tenant"]}, {"key": ["header:x-user"]}]
    exact = {"exact": True} if role == "exact" else {}
    count = 3 if role == "three" else 1
    return [{"name": f"{role}-{number}", **FAR, **key, **exact} for number, key in enumerate(keys[:count])]


def start_envoy(rig, service):
    """Envoy, with a listener for each role. Returns their ports, and the process."""
    cluster = lambda name, port, **more: {
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "circuit_breakers": {"thresholds": [dict.fromkeys(
            ("max_connections", "max_pending_requests", "max_requests", "max_retries"), MANY)]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]}, **more}
    http2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": envoy.EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}}
    ports = {role: free_port() for role in ENVOY_ROLES}
    listeners = [{"name": role, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                  "filter_chains": [{"filters": [envoy_filter(role)]}]} for role, port in ports.items()]
    config = rig.write("limit-envoy.json", json.dumps({"static_resources": {
        "listeners": listeners,
        "clusters": [cluster("orders", rig.upstream),
                     cluster("limits", service, typed_extension_protocol_options=http2)]}}, indent=1))
    command = [rig.envoy, "-c", config, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    return ports, rig.start("limit-envoy", command, ports[BASE])


def envoy_filter(role):
    """Its HTTP, with the limits of a role."""
    if role == BASE:
        return envoy.http_filter()
    http = envoy.http_filter()
    config = http["typed_config"]
    config["stat_prefix"] = role
    config["route_config"]["virtual_hosts"][0]["rate_limits"] = [
        {"actions": [{"generic_key": {"descriptor_value": "all"}}]}]
    config["http_filters"].insert(0, {"name": "limits", "typed_config": {
        "@type": envoy.EXTENSIONS + "filters.http.ratelimit.v3.RateLimit",
        "domain": "bench", "failure_mode_deny": True, "timeout": "1s",
        "rate_limit_service": {"transport_api_version": "V3",
                               "grpc_service": {"envoy_grpc": {"cluster_name": "limits"}}}}})
    return http


class Group:
    """All that takes turns in a block of rounds: as many rounds as there are sidecars, each of which has all roles
    in one of them."""

    def __init__(self, rig, rate=None):
        self.rig = rig
        rig.start_upstream("http")
        self.redis = Server(core=rig.load_core)
        try:
            self.sidecars = [Pannier(rig, number, self.redis) for number in range(SIDECARS)]
            self.envoy = self.with_service() if rig.envoy else None
            self.rate = rate or self.fixed_rate()
        except BaseException:
            self.stop()
            raise

    def with_service(self):
        port = free_port()
        self.service = self.rig.start(
            "ratelimit", [self.rig.service, "--listen", f"127.0.0.1:{port}", "--redis", f"redis://127.0.0.1:{self.redis.port}"],
            port, self.rig.load_core)
        return start_envoy(self.rig, port)

    def stop(self):
        self.rig.stop()
        self.redis.stop()

    def turns(self, number):
        """What is measured in a round: a system, its role, its port, its processes, and which it is."""
        # One sidecar has all roles of a round, one right after the other, in turn from either end.
        process = number % len(self.sidecars)
        sidecar = self.sidecars[process]
        for role in ROLES if number % 2 else reversed(ROLES):
            sidecar.take(role)
            yield "pannier", role, sidecar.port, {"sidecar": sidecar.process, "redis": self.redis}, process
        if self.envoy:
            ports, process = self.envoy
            for role, port in ports.items():
                yield "envoy", role, port, {"sidecar": process, "service": self.service, "redis": self.redis}, 0

    def fixed_rate(self):
        """A share of what the slowest role takes."""
        rates = [self.slice(port, parts, 1)["rps"] for _, _, port, parts, _ in self.turns(0)]
        return int(min(rates) * SHARE)

    def slice(self, port, parts, seconds, rate=None):
        arguments = ["http", "--to", f"127.0.0.1:{port}", "--connections", CONNECTIONS, "--seconds", seconds,
                     "--path", "/100"]
        for field in FIELDS:
            arguments += ["--field", field]
        arguments += ["--rate", rate] if rate else []
        return load.session(self.rig, Cost(self.rig, parts), arguments)

    def round(self, number):
        """A slice of each role at the rate, and of each of Pannier's without Redis in the way as fast as answers
        come: {"system role load": slice}."""
        found = {}
        for system, role, port, parts, process in self.turns(number):
            self.slice(port, parts, WARM, self.rate)
            found[f"{system} {role} rate"] = self.slice(port, parts, SECONDS, self.rate) | {"process": process}
            if system == "pannier" and role != "exact":
                found[f"{system} {role} full"] = self.slice(port, parts, SECONDS) | {"process": process}
        return found


def block(rig, rate):
    """One block of rounds; `rate` is None at first. Returns the rate, and the rounds."""
    group = Group(rig, rate)
    try:
        rounds = []
        for number in range(SIDECARS):
            print(f"cost at {group.rate:,} a second: round {number + 1} of {SIDECARS}", file=sys.stderr)
            rounds.append(group.round(number))
        return group.rate, rounds
    finally:
        group.stop()
