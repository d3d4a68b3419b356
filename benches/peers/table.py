"""The tables that people read: every case, the chosen ones of the README, and the targets."""

import markers
from machine import cpu_model

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
ALL = "docs/peers.md"
PICTURE = "docs/peers.svg"

NAMES = {"pannier": "**Pannier**", "pannier-mlkem": "**Pannier**, X25519MLKEM768", "nginx": "nginx", "haproxy": "HAProxy",
         "envoy": "Envoy", "floor": "a relay that only copies bytes"}
BETWEEN = {"pair-h1": ", HTTP/1.1 between the sidecars", "pair-h2": ", one connection for all between the sidecars (HTTP/2; Pannier's own frames)"}

# What the README shows; the rest is a click away.
CHOSEN = ("hop/64", "pair-h1/64", "pair-h2/64", "pair-h1/64KiB", "pair-h2/64KiB", "app-h2/1", "tcp", "handshakes",
          "idle/4000", "idle-pair/4000")

COLUMNS = (
    ("CPU µs", lambda row: shown(row["us_per_request"], ".1f")),
    ("a second", lambda row: shown(row["rps"], ",d")),
    ("p50 µs", lambda row: shown(row["p50_us"], ",d")),
    ("p99 µs", lambda row: shown(row["p99_us"], ",d")),
    ("p99.9 µs", lambda row: shown(row.get("p999_us"), ",d")),
    ("MiB", lambda row: shown(row["mib"], ".1f")),
    ("cores busy", lambda row: busy(row)),
    ("Pannier's CPU against it", lambda row: against(row)),
)


def titles(groups):
    """The caption of each case."""
    found = {case: group.title + next((how for kind, how in BETWEEN.items() if kind in case), "")
             for group in groups for case, _ in group.entries}
    return found | {"one-worker": "One worker, for the comparison with two"}


def rows_of(rows, captions, cases=None):
    """A table with a block of rows for each case."""
    lines = ["| system | " + " | ".join(name for name, _ in COLUMNS) + " |",
             "|---|" + "--:|" * len(COLUMNS)]
    for case in dict.fromkeys(row["case"] for row in rows if cases is None or row["case"] in cases):
        own = [row for row in rows if row["case"] == case]
        lines.append(f"| *{caption(captions[case], own)}* |" + " |" * len(COLUMNS))
        for row in own:
            name = NAMES[row["system"]] + (f" ({row['failures']:,} failed)" if row["failures"] else "")
            lines.append(f"| {name} | " + " | ".join(cell(row) for _, cell in COLUMNS) + " |")
            lines += [f"| &nbsp;&nbsp;{note} |" + " |" * len(COLUMNS) for note in notes(row)]
    return lines


def caption(title, rows):
    """With what the numbers count, where it is not requests, and the rate where it was fixed."""
    per = rows[0].get("per", "request")
    rate = rows[0].get("rate")
    return title + (f", {rate:,} a second" if rate else "") + (f"; for each {per}" if per != "request" else "")


def notes(row):
    """What a case has to say that no column does."""
    if "up_mib_per_second" in row:
        yield f"{row['up_mib_per_second']:,} MiB/s up, {row['down_mib_per_second']:,} MiB/s down"
    if "against_one_worker" in row:
        yield f"CPU against one worker {spread(row['against_one_worker'])}"
    if "busiest_worker_share" in row:
        share = row["busiest_worker_share"]
        yield f"share of the busier worker {share['median']:.0%} ({share['q1']:.0%} to {share['q3']:.0%})"
    if "connections_per_worker" in row:
        yield f"connections of each worker: {' and '.join(map(str, row['connections_per_worker']))}"
    if "against_alone" in row:
        with_them = spread(row["against_alone"]) if row["against_alone"] else "no answer"
        yield f"p99 {row['alone_p99_us']:,} µs without slow readers; with them {with_them}"
        yield (f"grew by {row['receiver_growth_mib']:.1f} MiB at the application and"
               f" {row['caller_growth_mib']:.1f} MiB at the most loaded caller")


def busy(row):
    if row.get("proxy_core_busy") is None:
        return ""
    return f"{row['proxy_core_busy']:.0%}, {row['load_core_busy']:.0%}"


def against(row):
    ratio = row.get("pannier_ratio", {}).get("us_per_request")
    return spread(ratio) if ratio else ""


def spread(ratio):
    return f"{ratio['median']:.2f}x ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def shown(value, form):
    return "" if value is None else format(value, form)


def targets(found):
    """The targets, and whether they are met."""
    lines = ["| target | at most | measured (quartiles) | |", "|---|--:|--:|---|"]
    for one in found:
        quartiles = f" ({one.q1:.2f} to {one.q3:.2f})" if one.q1 != one.q3 else ""
        verdict = one.verdict if one.verdict == "met" else f"**{one.verdict}**"
        lines.append(f"| {one.what} | {one.shown(one.limit)} | {one.shown(one.median)}{quartiles} | {verdict} |")
    return lines


def method(rows):
    """How it was measured, from the rows."""
    rounds = sorted({row["rounds"] for row in rows if "rounds" in row})
    span = " to ".join(str(end) for end in dict.fromkeys((rounds[0], rounds[-1]))) if rounds else "no"
    return (f"Medians of {span} alternating rounds; {cpu_model()}; one core for the proxy, one for load and application "
            "(how busy each was: in that order); 100-byte bodies unless said. A pair is both sidecars summed, over "
            "TLS 1.3 with AES-128-GCM for all. Ratios are of each round, with quartiles. nginx speaks no HTTP/2 to an "
            "upstream but gRPC's.")


REMARKS = """
- At a fixed rate, which is 70 % of what the slowest system can do, a latency counts from when the request was
  meant to be sent. Without one, the next is sent when an answer is there, and the load's core is often the ceiling of
  the rate: compare CPU.
- The relay in a pair's place is two relays in a row, in plaintext.
- New connections are full handshakes with both certificates, by X25519 for all (`identity.key_exchange: x25519`), and
  for Pannier as shipped, by X25519MLKEM768, which nginx and HAProxy do not know with OpenSSL 3.0.
- For opaque TCP the kernel redirects the connection to Pannier, as in a pod, and tracks the connections of all.
- Memory is the proportional set size, after the load or while the connections idle.
""".strip()


def readme(rows, captions, found):
    """What stands between the README's markers."""
    lines = [f"![CPU per request through Pannier, nginx, HAProxy and Envoy: the numbers are in the table]({PICTURE})", ""]
    lines += rows_of(rows, captions, CHOSEN)
    lines += ["", f"{method(rows)} [Every case]({ALL})."]
    if found:
        lines += ["", "What it is held to:", "", *targets(found)]
    return "\n".join(lines)


def whole(rows, captions, found):
    """The page with every case."""
    return "\n".join([
        "# Beside its peers", "",
        "Written by `make bench`; [README](../README.md#what-it-costs) says what is compared.", "",
        *targets(found), "", *rows_of(rows, captions), "", method(rows), "", REMARKS, ""])


def replace(path, text):
    """Puts the text between its markers in a file."""
    markers.publish(path, BEGIN, END, text)
