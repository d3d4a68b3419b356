"""Envoy with a STRICT_DNS cluster that respects TTLs, of both families, through c-ares; and retries of
connections that fail."""

import json

from machine import free_port
from server import NAME

EXTENSIONS = "type.googleapis.com/envoy.extensions."
RETRIES = {"retry_on": "connect-failure,refused-stream,reset", "num_retries": 2}
SAYS = ("a `STRICT_DNS` cluster with `respect_dns_ttl: true`, `dns_lookup_family: ALL`, `dns_refresh_rate` and "
        "`dns_failure_refresh_rate` as they are (5 s), c-ares as it is; retries of connections that fail.")


def start(rig, name, resolver, upstream):
    port = free_port()
    manager = {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "orders", "retry_policy": RETRIES}}]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"}}],
    }
    listener = {"address": socket("127.0.0.1", port),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}
    cluster = {
        "name": "orders", "type": "STRICT_DNS", "connect_timeout": "2s",
        "respect_dns_ttl": True, "dns_lookup_family": "ALL",
        "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": {
            "@type": EXTENSIONS + "network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [socket("127.0.0.1", resolver)],
            "dns_resolver_options": {"no_default_search_domain": True}}},
        "load_assignment": {"cluster_name": "orders", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": socket(NAME, upstream)}}]}]},
    }
    config = rig.write(f"{name}.json", json.dumps(
        {"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1))
    command = [rig.envoy, "-c", config, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    return port, rig.start(name, command, port)


def socket(at, port):
    return {"socket_address": {"address": at, "port_value": port}}
