"""HAProxy, with what its manual asks for keep-alive on both sides. It routes and retries, and has
neither limits nor authorization."""

from machine import free_port
from rig import CIPHER, CURVE, Running


def start(rig, name, endpoints, down_tls=False, up_tls=False, h2=False, tcp=False, grpc=False, server_more="",
          backend_more=""):
    """One process, to ports of loopback. `h2`: between sidecars; `grpc`: HTTP/2 on the plain side, too."""
    port, certs = free_port(), rig.certs
    bind, server = f"bind 127.0.0.1:{port}", f" {server_more}"
    if down_tls:
        bind += (f" ssl crt {certs}/server.both.pem ca-file {certs}/ca.pem verify required ssl-min-ver TLSv1.3"
                 f" ciphersuites {CIPHER} curves {CURVE}")
        bind += "" if tcp else " alpn h2,http/1.1"
    elif grpc:
        bind += " proto h2"
    if up_tls:
        server += (f" ssl crt {certs}/client.both.pem ca-file {certs}/ca.pem verify required verifyhost localhost"
                   f" ssl-min-ver TLSv1.3 ciphersuites {CIPHER}")
        server += "" if tcp else " alpn h2" if h2 else " alpn http/1.1"
    elif grpc:
        server += " proto h2"
    # Each opaque connection is to shake hands in full.
    resumption = ""
    if tcp:
        resumption = "tune.ssl.cachesize 0"
        bind += " no-tls-tickets" if down_tls else ""
        server += " no-ssl-reuse no-tls-tickets" if up_tls else ""
    server += " maxconn 4000" + ("" if tcp else " pool-max-conn -1")
    servers = "\n  ".join(f"server orders-{number} 127.0.0.1:{endpoint}{server}"
                          for number, endpoint in enumerate(endpoints, 1))
    config = rig.write(f"{name}.cfg", f"""global
  nbthread 1
  maxconn 8000
  {resumption}
defaults
  mode {"tcp" if tcp else "http"}
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  {"" if tcp else "timeout http-keep-alive 60s"}
  {"" if tcp else "http-reuse always"}
  retries 2
frontend application
  {bind}
  default_backend orders
backend orders
  balance leastconn
  {backend_more}
  {servers}
""")
    return port, rig.start(name, ["haproxy", "-db", "-f", config], port)


def hop(rig):
    port, process = start(rig, "haproxy", [rig.upstream])
    return Running(port, [process])


def pair(rig, name, **kind):
    inner, inbound = start(rig, f"{name}-in", [rig.upstream], down_tls=True, **kind)
    port, outbound = start(rig, f"{name}-out", [inner], up_tls=True, **kind)
    return Running(port, [outbound, inbound])
