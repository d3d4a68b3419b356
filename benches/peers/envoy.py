"""Envoy, with its circuit breakers out of the way. It routes and retries, and has neither limits nor
authorization."""

import json

from machine import free_port
from rig import CURVE, MANY, TRUST_DOMAIN, Running

EXTENSIONS = "type.googleapis.com/envoy.extensions."


def tls(rig, kind, who, alpn, resumes):
    """A TLS 1.3 context that requires a certificate of the trust domain from the peer. BoringSSL
    chooses the cipher: the common one, on a processor with AES."""
    context = {
        "@type": EXTENSIONS + f"transport_sockets.tls.v3.{kind}TlsContext",
        "common_tls_context": {
            # Envoy's own default for a client ends at 1.2.
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
                           "ecdh_curves": [CURVE]},
            "alpn_protocols": alpn,
            "tls_certificates": [{
                "certificate_chain": {"filename": f"{rig.certs}/{who}.pem"},
                "private_key": {"filename": f"{rig.certs}/{who}.key"},
            }],
            "validation_context": {
                "trusted_ca": {"filename": f"{rig.certs}/ca.pem"},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": TRUST_DOMAIN}}],
            },
        },
    }
    if kind == "Downstream":
        context["require_client_certificate"] = True
        if not resumes:
            context |= {"disable_stateless_session_resumption": True, "disable_stateful_session_resumption": True}
    elif not resumes:
        context["max_session_keys"] = 0
    return {"name": "tls", "typed_config": context}


def http_filter():
    return {"name": "http", "typed_config": {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"},
             "route": {"cluster": "orders", "timeout": "10s",
                       "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2}}}]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"}}],
    }}


def tcp_filter():
    return {"name": "tcp", "typed_config": {
        "@type": EXTENSIONS + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "in", "cluster": "orders"}}


def start(rig, name, endpoints, down_tls=False, up_tls=False, h2=False, tcp=False, grpc=False, cluster_more=None):
    """One process, to ports of loopback. `h2`: between sidecars; `grpc`: HTTP/2 on the plain side, too."""
    port = free_port()
    chain = {"filters": [tcp_filter() if tcp else http_filter()]}
    thresholds = {"max_connections": MANY, "max_pending_requests": MANY, "max_requests": MANY, "max_retries": MANY}
    cluster = {
        "name": "orders", "type": "STATIC", "connect_timeout": "2s", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {"cluster_name": "orders", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": endpoint}}}}
            for endpoint in endpoints]}]},
    } | (cluster_more or {})
    if down_tls:
        chain["transport_socket"] = tls(rig, "Downstream", "server", [] if tcp else ["h2", "http/1.1"], not tcp)
    if up_tls:
        alpn = [] if tcp else ["h2"] if h2 else ["http/1.1"]
        cluster["transport_socket"] = tls(rig, "Upstream", "client", alpn, not tcp)
    if (h2 and up_tls) or grpc:
        options = EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": options, "explicit_http_config": {"http2_protocol_options": {}}}}
    config = rig.write(f"{name}.json", json.dumps({"static_resources": {
        "listeners": [{"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                       "filter_chains": [chain]}],
        "clusters": [cluster]}}, indent=1))
    command = [rig.envoy, "-c", config, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    return port, rig.start(name, command, port)


def hop(rig):
    port, process = start(rig, "envoy", [rig.upstream])
    return Running(port, [process])


def pair(rig, name, **kind):
    inner, inbound = start(rig, f"{name}-in", [rig.upstream], down_tls=True, **kind)
    port, outbound = start(rig, f"{name}-out", [inner], up_tls=True, **kind)
    return Running(port, [outbound, inbound])
