"""HAProxy, whose pool keeps what idles for less than a minute, and which reuses it for everybody, as
the others do. With `retries` it sends again whatever its manual calls retryable."""

from machine import free_port
from system import address, host


def start(rig, name, endpoints, retries=False):
    port = free_port()
    again = "retry-on all-retryable-errors\n  option redispatch" if retries else ""
    backends = "\n".join(f"backend {host(number)}\n  server s {address(number)}:{to} pool-purge-delay 60s"
                         for number, to in endpoints.items())
    config = rig.write(f"{name}.cfg", f"""global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  http-reuse always
  retries 3
  {again}
frontend application
  bind 127.0.0.1:{port} backlog 4096
  use_backend %[req.hdr(host),lower]
{backends}
""")
    rig.start(name, ["haproxy", "-db", "-f", config], port)
    return port, None
