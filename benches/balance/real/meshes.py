"""The systems: a caller's sidecar that knows eight endpoints, which are applications (a hop), or their
sidecars, over mTLS (a pair). Each process has one worker.

Each has what its makers have for endpoints that fare ill. Envoy: LEAST_REQUEST, outlier detection
as it is by default, two retries of requests that reached nobody. HAProxy: leastconn, servers that
are marked down after five errors in a row and checked every 2 s, redispatch. Pannier: its defaults."""

import envoy
import haproxy
import pannier
from rig import CLIENT, SERVER

OBSERVED = "check observe layer7 error-limit 5 on-error mark-down"


def pannier_outbound(rig, endpoints, secure):
    """The configuration of a caller's sidecar."""
    mtls = {"mode": "require", "peer": SERVER} if secure else {"mode": "off"}
    addresses = [f"127.0.0.1:{port}" for port in endpoints]
    document = {
        "upstreams": {"orders": {"address": addresses[0], "endpoints": addresses, "mtls": mtls}},
        "routes": [{"host": "*", "path": "/", "upstream": "orders", "timeout": "10s", "retries": 2}],
    }
    return document | ({"identity": pannier.identity(rig, "client")} if secure else {})


def pannier_inbound(rig, application):
    """The configuration of a sidecar beside an application."""
    return {
        "application": f"127.0.0.1:{application}",
        "identity": pannier.identity(rig, "server"),
        "inbound": {"mtls": "strict", "allow": [{"caller": CLIENT, "path": "/"}]},
    }


class Pannier:
    @staticmethod
    def outbound(rig, name, endpoints, secure):
        return pannier.sidecar(rig, name, "outbound", pannier_outbound(rig, endpoints, secure))[:2]

    @staticmethod
    def inbound(rig, name, application):
        return pannier.sidecar(rig, name, "inbound", pannier_inbound(rig, application))[:2]


class Envoy:
    @staticmethod
    def outbound(rig, name, endpoints, secure):
        return envoy.start(rig, name, endpoints, up_tls=secure, h2=secure, cluster_more={"outlier_detection": {}})

    @staticmethod
    def inbound(rig, name, application):
        return envoy.start(rig, name, [application], down_tls=True, h2=True)


class HAProxy:
    @staticmethod
    def outbound(rig, name, endpoints, secure):
        return haproxy.start(rig, name, endpoints, up_tls=secure, h2=secure, server_more=OBSERVED,
                             backend_more="option redispatch 1")

    @staticmethod
    def inbound(rig, name, application):
        return haproxy.start(rig, name, [application], down_tls=True, h2=True)


KINDS = ("hop", "pair")
SYSTEMS = {"pannier": Pannier, "envoy": Envoy, "haproxy": HAProxy}


class Mesh:
    """One system in one shape, while it runs."""

    def __init__(self, rig, kind, name, applications):
        self.rig, self.kind, self.system, self.name = rig, kind, SYSTEMS[name], f"balance-{name}-{kind}"
        self.inbounds = [self.system.inbound(rig, f"{self.name}-in-{number}", application)
                         for number, application in enumerate(applications)] if kind == "pair" else []
        self.endpoints = [port for port, _ in self.inbounds] or applications
        self.begin()

    def begin(self):
        """A caller's sidecar that knows nothing yet."""
        secure = self.kind == "pair"
        self.port, self.outbound = self.system.outbound(self.rig, f"{self.name}-out", self.endpoints, secure)

    def renew(self):
        self.rig.kill([self.outbound])
        self.begin()

    def processes(self, but=None):
        """All, or all but that beside one application."""
        return [self.outbound, *(process for number, (_, process) in enumerate(self.inbounds) if number != but)]

    def kill(self, number):
        """The sidecar beside an application is gone."""
        if self.inbounds:
            self.rig.kill([self.inbounds[number][1]])

    def revive(self, number):
        if self.inbounds:
            port, dead = self.inbounds[number]
            self.inbounds[number] = port, self.rig.start(f"{self.name}-in-{number}", dead.command, port)

    def stop(self):
        self.rig.kill(self.processes())
