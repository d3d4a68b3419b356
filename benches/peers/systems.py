"""The systems that the bench compares, each with one worker, in each of the shapes that it knows.

Pannier runs with all its policy on; the peers have their routing and retries, and neither limits nor
authorization: the comparison leans towards them.
"""

from functools import partial

import envoy
import haproxy
import nginx
import pannier
from machine import free_port
from rig import Running


def floor(rig, name, endpoint):
    port = free_port()
    return port, rig.start(name, [rig.floor, f"127.0.0.1:{port}", f"127.0.0.1:{endpoint}"], port)


def floor_hop(rig):
    port, process = floor(rig, "floor", rig.upstream)
    return Running(port, [process])


def floor_pair(rig):
    """Two relays in a row: what the kernel costs where there are two sidecars. In plaintext."""
    inner, second = floor(rig, "floor-in", rig.upstream)
    port, first = floor(rig, "floor-out", inner)
    return Running(port, [first, second])


HOP = {"pannier": pannier.hop, "nginx": nginx.hop, "haproxy": haproxy.hop, "envoy": envoy.hop, "floor": floor_hop}

# nginx speaks no HTTP/2 to an upstream, and Pannier nothing else to its peers.
PAIR_H1 = {
    "nginx": partial(nginx.pair, name="nginx-h1"),
    "haproxy": partial(haproxy.pair, name="haproxy-h1"),
    "envoy": partial(envoy.pair, name="envoy-h1"),
}
PAIR_H2 = {
    "pannier": pannier.pair,
    "haproxy": partial(haproxy.pair, name="haproxy-h2", h2=True),
    "envoy": partial(envoy.pair, name="envoy-h2", h2=True),
}
PAIR_GRPC = {
    "pannier": pannier.pair,
    "nginx": partial(nginx.pair, name="nginx-grpc", grpc=True),
    "haproxy": partial(haproxy.pair, name="haproxy-grpc", h2=True, grpc=True),
    "envoy": partial(envoy.pair, name="envoy-grpc", h2=True, grpc=True),
}
PAIR_TCP = {
    "pannier": pannier.tcp_pair,
    "nginx": partial(nginx.pair, name="nginx-tcp", tcp=True),
    "haproxy": partial(haproxy.pair, name="haproxy-tcp", tcp=True),
    "envoy": partial(envoy.pair, name="envoy-tcp", tcp=True),
    "floor": floor_pair,
}
# As shipped, Pannier agrees by X25519MLKEM768, which OpenSSL 3.0 lacks.
HANDSHAKES = PAIR_TCP | {
    "pannier": partial(pannier.tcp_pair, name="pannier-x25519", key_exchange="x25519"),
    "pannier-mlkem": pannier.tcp_pair,
}
