"""nginx as its manual has it follow a name: a `resolver`, and a variable in `proxy_pass`, without
which the name is resolved once, at the start."""

import os

from machine import free_port
from server import NAME

SAYS = ("`resolver` without `valid=`, so that the TTL decides; the name in a variable of `proxy_pass`, so that it is "
        "resolved while it runs; HTTP/1.1 to the upstream. This version keeps no connections to a name in a "
        "variable. With `ipv6=off`, where there is none, it would not ask for AAAA.")


def start(rig, name, resolver, upstream):
    port, prefix = free_port(), f"{rig.folder}/{name}"
    os.makedirs(prefix, exist_ok=True)
    temporary = "\n".join(f"  {what}_temp_path {prefix}/{what};"
                          for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = rig.write(f"{name}.conf", f"""daemon off; worker_processes 1; pid {prefix}/pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000000;
{temporary}
  resolver 127.0.0.1:{resolver};
  server {{
    listen 127.0.0.1:{port};
    location / {{
      set $orders {NAME}:{upstream};
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_pass http://$orders;
    }}
  }}
}}
""")
    return port, rig.start(name, ["nginx", "-e", "stderr", "-c", config], port)
