"""Envoy with its defaults: a cluster for each endpoint. With `retries`, the policy that its manual
gives for connections that break."""

import json

from machine import free_port
from system import address, host

EXTENSIONS = "type.googleapis.com/envoy.extensions."
POLICY = {"retry_on": "reset,connect-failure,refused-stream", "num_retries": 2}


def start(rig, name, endpoints, retries=False):
    port = free_port()
    route = {"cluster_header": ":authority"} | ({"retry_policy": POLICY} if retries else {})
    manager = {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [
            {"name": "any", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"}}],
    }
    listener = {"address": socket("127.0.0.1", port),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}
    clusters = [cluster(number, to) for number, to in endpoints.items()]
    config = rig.write(f"{name}.json", json.dumps(
        {"static_resources": {"listeners": [listener], "clusters": clusters}}, indent=1))
    command = [rig.envoy, "-c", config, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    rig.start(name, command, port)
    return port, None


def cluster(number, to):
    endpoint = {"endpoint": {"address": socket(address(number), to)}}
    return {"name": host(number), "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": {"cluster_name": host(number), "endpoints": [{"lb_endpoints": [endpoint]}]}}


def socket(at, port):
    return {"socket_address": {"address": at, "port_value": port}}
