"""The systems that the bench compares, each as one plain hop and as a pair of sidecars.

Every system gets one worker and what its own manual asks for keep-alive on both sides. Pannier
runs with all its policy on: a route, a limit that never trips, retries, a timeout, and, in the
pair, the caller's identity checked against an allow list. The peers have their routing and
retries, and neither limits nor authorization: the comparison leans towards them.
"""

import glob
import json
import os
import shutil

from machine import Process, free_port

TRUST_DOMAIN = "spiffe://cluster.local/"
CLIENT = TRUST_DOMAIN + "ns/default/sa/client"
SERVER = TRUST_DOMAIN + "ns/default/sa/server"

# A pool large enough for every case; no system is to be measured at its limits.
MANY = 100_000


class Bench:
    """Where things are: the working folder, certificates, cores and the upstream's address."""

    def __init__(self, folder, certs, proxy_core, load_core, pannier, floor):
        self.folder, self.certs = folder, certs
        self.proxy_core, self.load_core = proxy_core, load_core
        self.pannier, self.floor, self.envoy = pannier, floor, find_envoy(folder)
        self.processes = []
        self.upstream = None

    def start(self, name, command, port, core=None):
        """Starts a program on the proxy's core and waits until it listens."""
        process = Process(command, self.proxy_core if core is None else core, f"{self.folder}/{name}.log")
        self.processes.append(process)
        return process.wait_for(port)

    def write(self, name, text):
        """Writes a configuration file."""
        path = f"{self.folder}/{name}"
        with open(path, "w") as file:
            file.write(text)
        return path

    def stop(self, processes=None):
        """Stops these processes, or all."""
        for process in list(self.processes if processes is None else processes):
            process.stop()
            self.processes.remove(process)

    def start_upstream(self, body_bytes=100):
        """The application: nginx on the load's core, answering from memory."""
        port = free_port()
        config = self.write("upstream.conf", nginx_config(f"{self.folder}/upstream", f"""
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{"x" * body_bytes}"; }}
  }}"""))
        self.start("upstream", ["nginx", "-e", "stderr", "-c", config], port, self.load_core)
        self.upstream = port


def find_envoy(folder):
    """Envoy from the bench's own environment, else from the path."""
    bundled = glob.glob(f"{folder}/venv/lib/python3*/site-packages/envoy/_bin/envoy")
    return bundled[0] if bundled else shutil.which("envoy")


# ------------------------------------------------------------------------------------- pannier


def pannier(bench, name, listens, document):
    """One sidecar, in explicit mode: `listens` is the listener that is measured."""
    port = free_port()
    listen = {door: "127.0.0.1:0" for door in ("outbound", "inbound", "dns", "admin", "probes")}
    listen[listens] = f"127.0.0.1:{port}"
    # JSON is YAML.
    config = bench.write(f"{name}.yaml", json.dumps({"listen": listen, "workers": 1, **document}, indent=2))
    return port, bench.start(name, [bench.pannier, "proxy", "--config", config], port)


def pannier_outbound(bench, name, endpoint, **more):
    """The sidecar beside the caller, with the policy of an ordinary route."""
    address = f"127.0.0.1:{endpoint}"
    mtls = more.pop("mtls", {"mode": "off"})
    return pannier(bench, name, "outbound", {
        "upstreams": {"orders": {"address": address, "endpoints": [address], "mtls": mtls, "capacity": MANY}},
        "routes": [{"host": "*", "path": "/", "upstream": "orders", "timeout": "10s", "retries": 2}],
        "limits": [{"name": "never-trips", "rate": "10000000/s", "burst": 1_000_000, "scope": "pod"}],
        **more,
    })


def pannier_identity(bench, who):
    return {"certificate": f"{bench.certs}/{who}.pem", "key": f"{bench.certs}/{who}.key", "bundle": f"{bench.certs}/ca.pem"}


def pannier_hop(bench):
    port, process = pannier_outbound(bench, "pannier", bench.upstream)
    return port, [process]


def pannier_pair(bench):
    inner, inbound = pannier(bench, "pannier-in", "inbound", {
        "application": f"127.0.0.1:{bench.upstream}",
        "identity": pannier_identity(bench, "server"),
        "inbound": {"mtls": "strict", "allow": [{"caller": CLIENT, "path": "/"}]},
    })
    port, outbound = pannier_outbound(
        bench, "pannier-out", inner, identity=pannier_identity(bench, "client"),
        mtls={"mode": "require", "peer": SERVER})
    return port, [outbound, inbound]


# --------------------------------------------------------------------------------------- nginx


def nginx_config(prefix, http):
    os.makedirs(prefix, exist_ok=True)
    temporary = "\n".join(f"  {kind}_temp_path {prefix}/{kind};"
                          for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""daemon off; worker_processes 1; pid {prefix}/pid;
events {{ worker_connections 9000; }}
http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000000;
{temporary}
{http}
}}
"""


def nginx(bench, name, endpoint, down_tls=False, up_tls=False):
    port, certs = free_port(), bench.certs
    listen = f"listen 127.0.0.1:{port}"
    if down_tls:
        listen += (f" ssl; ssl_certificate {certs}/server.pem; ssl_certificate_key {certs}/server.key;"
                   f" ssl_client_certificate {certs}/ca.pem; ssl_verify_client on")
    target = "proxy_pass http://orders;"
    if up_tls:
        target = f"""proxy_pass https://orders; proxy_ssl_protocols TLSv1.3;
      proxy_ssl_certificate {certs}/client.pem; proxy_ssl_certificate_key {certs}/client.key;
      proxy_ssl_trusted_certificate {certs}/ca.pem; proxy_ssl_verify on; proxy_ssl_name localhost;
      proxy_ssl_server_name on;"""
    config = bench.write(f"{name}.conf", nginx_config(f"{bench.folder}/{name}", f"""  ssl_protocols TLSv1.3;
  upstream orders {{ server 127.0.0.1:{endpoint}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    {listen};
    location / {{
      proxy_http_version 1.1; proxy_set_header Connection "";
      {target}
    }}
  }}"""))
    return port, bench.start(name, ["nginx", "-e", "stderr", "-c", config], port)


def nginx_hop(bench):
    port, process = nginx(bench, "nginx", bench.upstream)
    return port, [process]


def nginx_pair(bench):
    inner, inbound = nginx(bench, "nginx-in", bench.upstream, down_tls=True)
    port, outbound = nginx(bench, "nginx-out", inner, up_tls=True)
    return port, [outbound, inbound]


# ------------------------------------------------------------------------------------- haproxy


def haproxy(bench, name, endpoint, down_tls=False, up_tls=False, h2=False):
    port, certs = free_port(), bench.certs
    bind = f"bind 127.0.0.1:{port}"
    server = f"server orders 127.0.0.1:{endpoint}"
    if down_tls:
        bind += f" ssl crt {certs}/server.both.pem ca-file {certs}/ca.pem verify required ssl-min-ver TLSv1.3 alpn h2,http/1.1"
    if up_tls:
        server += (f" ssl crt {certs}/client.both.pem ca-file {certs}/ca.pem verify required verifyhost localhost"
                   f" ssl-min-ver TLSv1.3 alpn {'h2' if h2 else 'http/1.1'}")
    config = bench.write(f"{name}.cfg", f"""global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  http-reuse always
  retries 2
frontend application
  {bind}
  default_backend orders
backend orders
  balance leastconn
  {server} maxconn 4000 pool-max-conn -1
""")
    return port, bench.start(name, ["haproxy", "-db", "-f", config], port)


def haproxy_hop(bench):
    port, process = haproxy(bench, "haproxy", bench.upstream)
    return port, [process]


def haproxy_pair(bench, h2=False):
    inner, inbound = haproxy(bench, "haproxy-in", bench.upstream, down_tls=True)
    port, outbound = haproxy(bench, "haproxy-out", inner, up_tls=True, h2=h2)
    return port, [outbound, inbound]


# --------------------------------------------------------------------------------------- envoy

EXTENSIONS = "type.googleapis.com/envoy.extensions."


def envoy_tls(bench, kind, who, alpn):
    """A TLS 1.3 context that requires a certificate of the trust domain from the peer."""
    context = {
        "@type": EXTENSIONS + f"transport_sockets.tls.v3.{kind}TlsContext",
        "common_tls_context": {
            # Envoy's own default for a client ends at 1.2.
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": alpn,
            "tls_certificates": [{
                "certificate_chain": {"filename": f"{bench.certs}/{who}.pem"},
                "private_key": {"filename": f"{bench.certs}/{who}.key"},
            }],
            "validation_context": {
                "trusted_ca": {"filename": f"{bench.certs}/ca.pem"},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": TRUST_DOMAIN}}],
            },
        },
    }
    if kind == "Downstream":
        context["require_client_certificate"] = True
    return {"name": "tls", "typed_config": context}


def envoy(bench, name, endpoint, down_tls=False, up_tls=False, h2=False):
    port = free_port()
    chain = {"filters": [{"name": "http", "typed_config": {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"},
             "route": {"cluster": "orders", "timeout": "10s",
                       "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2}}}]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"}}],
    }}]}
    thresholds = {"max_connections": MANY, "max_pending_requests": MANY, "max_requests": MANY, "max_retries": MANY}
    cluster = {
        "name": "orders", "type": "STATIC", "connect_timeout": "2s", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {"cluster_name": "orders", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": endpoint}}}}]}]},
    }
    if down_tls:
        chain["transport_socket"] = envoy_tls(bench, "Downstream", "server", ["h2", "http/1.1"])
    if up_tls:
        cluster["transport_socket"] = envoy_tls(bench, "Upstream", "client", ["h2"] if h2 else ["http/1.1"])
    if h2:
        options = EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": options, "explicit_http_config": {"http2_protocol_options": {}}}}
    config = bench.write(f"{name}.json", json.dumps({"static_resources": {
        "listeners": [{"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                       "filter_chains": [chain]}],
        "clusters": [cluster]}}, indent=1))
    command = [bench.envoy, "-c", config, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    return port, bench.start(name, command, port)


def envoy_hop(bench):
    port, process = envoy(bench, "envoy", bench.upstream)
    return port, [process]


def envoy_pair(bench, h2=False):
    inner, inbound = envoy(bench, "envoy-in", bench.upstream, down_tls=True)
    port, outbound = envoy(bench, "envoy-out", inner, up_tls=True, h2=h2)
    return port, [outbound, inbound]


# --------------------------------------------------------------------------------------- floor


def floor_hop(bench):
    port = free_port()
    command = [bench.floor, f"127.0.0.1:{port}", f"127.0.0.1:{bench.upstream}"]
    return port, [bench.start("floor", command, port)]


HOP = {"pannier": pannier_hop, "nginx": nginx_hop, "haproxy": haproxy_hop, "envoy": envoy_hop, "floor": floor_hop}

# nginx speaks no HTTP/2 to an upstream, and Pannier nothing else to its peers.
PAIR_H1 = {"nginx": nginx_pair, "haproxy": haproxy_pair, "envoy": envoy_pair}
PAIR_H2 = {
    "pannier": pannier_pair,
    "haproxy": lambda bench: haproxy_pair(bench, h2=True),
    "envoy": lambda bench: envoy_pair(bench, h2=True),
}
