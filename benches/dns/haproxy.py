"""HAProxy with a `resolvers` section and a template of servers, which its manual gives for names whose
addresses come and go. It has no regard for TTLs: it asks every `timeout resolve`. With `held` it keeps
what it knew for an hour through whatever a DNS server says or does not say. With `kept` it keeps its
connections to servers, as it does by default; it then uses those to an old address on and on."""

from machine import free_port
from server import NAME

SAYS = ("`server-template` of 4 with `check`, `resolve-prefer ipv4`, `init-addr none`; a `resolvers` section with its "
        "defaults written out: `timeout resolve 1s`, `timeout retry 1s`, `resolve_retries 3`, and 30 s for each `hold` "
        "that decides how long a server outlives an answer that is none; `accepted_payload_size 4096`; `option http-server-close`, a new connection "
        "for each request, without which it does not leave an old address.")
SAYS_HELD = "the same with `hold nx`, `other`, `refused` and `timeout` of 1 h. A name that is gone stays for as long."
SAYS_KEPT = "as the first, with `http-reuse always` for `option http-server-close`; only for what a change does."


def start(rig, name, resolver, upstream, held=False, kept=False):
    port, hold = free_port(), "1h" if held else "30s"
    reuse = "http-reuse always" if kept else "option http-server-close"
    config = rig.write(f"{name}.cfg", f"""global
  nbthread 1
  maxconn 1000
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  {reuse}
  retries 3
  option redispatch
resolvers bench
  nameserver one 127.0.0.1:{resolver}
  accepted_payload_size 4096
  resolve_retries 3
  timeout resolve 1s
  timeout retry 1s
  hold nx {hold}
  hold other {hold}
  hold refused {hold}
  hold timeout {hold}
frontend application
  bind 127.0.0.1:{port}
  default_backend orders
backend orders
  balance leastconn
  server-template orders 4 {NAME}:{upstream} check resolvers bench resolve-prefer ipv4 init-addr none
""")
    return port, rig.start(name, ["haproxy", "-db", "-f", config], port)
