"""nginx, with what its manual asks for keep-alive on both sides, and bodies streamed. It routes and
retries, and has neither limits nor authorization. It speaks no HTTP/2 to an upstream, except to a
gRPC server."""

import os

from machine import free_port
from rig import CIPHER, CURVE, Running

# Where Debian keeps what is not compiled in.
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"


def start(rig, name, endpoint, down_tls=False, up_tls=False, tcp=False, grpc=False):
    """One process. `grpc`: HTTP/2 on both its sides."""
    port, prefix = free_port(), f"{rig.folder}/{name}"
    os.makedirs(prefix, exist_ok=True)
    listen = f"listen 127.0.0.1:{port} backlog=4096{' ssl' if down_tls else ''}{' http2' if grpc else ''};"
    inner = stream(rig, listen, endpoint, down_tls, up_tls) if tcp else \
        http(rig, prefix, listen, endpoint, down_tls, up_tls, grpc)
    module = f"load_module {STREAM_MODULE};" if tcp and os.path.exists(STREAM_MODULE) else ""
    config = rig.write(f"{name}.conf", f"""{module}
daemon off; worker_processes 1; pid {prefix}/pid;
events {{ worker_connections 9000; }}
{inner}
""")
    return port, rig.start(name, ["nginx", "-e", "stderr", "-c", config], port)


def http(rig, prefix, listen, endpoint, down_tls, up_tls, grpc):
    kind = "grpc" if grpc else "proxy"
    keep_alive = "" if grpc else 'proxy_http_version 1.1; proxy_set_header Connection "";'
    temporary = "\n".join(f"  {what}_temp_path {prefix}/{what};"
                          for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000000; http2_max_concurrent_streams 1000;
  client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0;
{temporary}
  upstream orders {{ server 127.0.0.1:{endpoint}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    {listen}
    {server_tls(rig) if down_tls else ""}
    location / {{
      {keep_alive}
      {client_tls(rig, kind) if up_tls else ""}
      {kind}_pass {kind.replace("proxy", "http")}{"s" if up_tls else ""}://orders;
    }}
  }}
}}"""


def stream(rig, listen, endpoint, down_tls, up_tls):
    # Each opaque connection is to shake hands in full.
    receive = f"{server_tls(rig)} ssl_session_tickets off; ssl_session_cache off;" if down_tls else ""
    send = f"proxy_ssl on; {client_tls(rig, 'proxy')} proxy_ssl_session_reuse off;" if up_tls else ""
    return f"""stream {{
  upstream orders {{ server 127.0.0.1:{endpoint}; }}
  server {{
    {listen}
    {receive}
    {send}
    proxy_pass orders;
  }}
}}"""


def server_tls(rig):
    return (f"ssl_certificate {rig.certs}/server.pem; ssl_certificate_key {rig.certs}/server.key; ssl_protocols TLSv1.3;"
            f" ssl_client_certificate {rig.certs}/ca.pem; ssl_verify_client on; ssl_ecdh_curve {CURVE};"
            f" ssl_conf_command Ciphersuites {CIPHER};")


def client_tls(rig, kind):
    return "".join(f" {kind}_ssl_{line};" for line in (
        f"certificate {rig.certs}/client.pem", f"certificate_key {rig.certs}/client.key", "protocols TLSv1.3",
        f"trusted_certificate {rig.certs}/ca.pem", "verify on", "name localhost", "server_name on",
        f"conf_command Ciphersuites {CIPHER}"))


def hop(rig):
    port, process = start(rig, "nginx", rig.upstream)
    return Running(port, [process])


def pair(rig, name, **kind):
    inner, inbound = start(rig, f"{name}-in", rig.upstream, down_tls=True, **kind)
    port, outbound = start(rig, f"{name}-out", inner, up_tls=True, **kind)
    return Running(port, [outbound, inbound])
