"""nginx, with what its manual asks for keep-alive to an upstream, and its defaults for how long. It
sends again to another server of the upstream only; so where it is to, each endpoint is there twice."""

import os

from machine import free_port
from system import address, host


def start(rig, name, endpoints, retries=False):
    port, prefix = free_port(), f"{rig.folder}/{name}"
    os.makedirs(prefix, exist_ok=True)
    temporary = "\n".join(f"  {what}_temp_path {prefix}/{what};"
                          for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    # A failure is not to take an endpoint out for ten seconds: it has no other.
    servers = "server {0} max_fails=0; server {0} max_fails=0;" if retries else "server {0};"
    upstreams = "\n".join(f"  upstream {host(number)} {{ {servers.format(f'{address(number)}:{to}')} keepalive 16; }}"
                          for number, to in endpoints.items())
    config = rig.write(f"{name}.conf", f"""daemon off; worker_processes 1; pid {prefix}/pid;
events {{ worker_connections 16000; }}
http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000000;
{temporary}
{upstreams}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_pass http://$host;
    }}
  }}
}}
""")
    rig.start(name, ["nginx", "-e", "stderr", "-c", config], port)
    return port, None
