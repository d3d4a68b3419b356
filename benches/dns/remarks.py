"""What the figures come from: what each system does with a name, in words, for the page of all figures."""

WHY = """
- Pannier asks for a name a little ahead of its TTL's end, though not more than once a second, so an old address serves
  for no longer than the TTL. What it knew serves on while no server answers or all fail (`dns.stale`, 1 h). One NXDOMAIN
  is asked again before it is believed. A and AAAA never wait for each other. Its connections to an address that has
  left are not used again.
- nginx asks when a request comes and the TTL is over, which it counts in whole seconds, and the request waits. It keeps
  nothing beyond the TTL and remembers no failure: while DNS fails, requests fail, and each asks again. It waits for A
  and AAAA together, so one that is silent is as good as both. Clients that wait send less: where it does not answer,
  fewer requests fail than elsewhere, of fewer.
- HAProxy asks once a second whatever the TTL, so it follows as fast, and pays for it in queries. A `hold` decides for how
  long servers outlive failures. A long one covers an outage, and keeps what was truly taken away for as long. It asks
  for the family that it prefers, and for the other where that fails or is denied, not where it is silent. A connection to a
  server that it keeps is used on when the server gets another address.
- Envoy asks when the TTL is over, to the millisecond, and keeps its hosts while DNS is silent or fails. An NXDOMAIN is an
  answer without addresses: the cluster is empty until it asks again, after `dns_refresh_rate`. At its start it does
  not listen until its clusters have resolved, and c-ares waits for the family that is silent.
""".strip()
