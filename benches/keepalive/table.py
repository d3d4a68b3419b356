"""The tables that people read: every row, and the few lines of the README."""

import judge
import markers
from rows import METHODS

BEGIN, END = "<!-- keepalive -->", "<!-- /keepalive -->"
ALL = "docs/keepalive-bench.md"

NAMES = {"pannier": "**Pannier**", "nginx": "nginx", "nginx-retry": "nginx, retries", "haproxy": "HAProxy",
         "haproxy-retry": "HAProxy, retries", "envoy": "Envoy", "envoy-retry": "Envoy, retries"}


def of(rows, **fields):
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def systems(rows):
    return list(dict.fromkeys(row["system"] for row in rows))


def per_10_000(counts):
    return judge.failures(counts) / max(counts["trials"], 1) * 10_000


def failed(counts):
    """Failures of 10,000, and how many were acted on twice."""
    twice = counts["twice"] / max(counts["trials"], 1) * 10_000
    return f"{per_10_000(counts):,.0f}" + (f" ({twice:,.0f} twice)" if twice else "")


def table(head, body):
    return ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1),
            *("| " + " | ".join(line) + " |" for line in body)]


def percent(counts):
    return f"{judge.reused(counts):.1%}" if counts else ""


def whole(result):
    """Every row: failures at the edge, reuse at half of it, endpoints that are new."""
    aged, fresh = of(result["rows"], new=False), of(result["rows"], new=True)
    heads = ["upstream", *(NAMES[name] for name in systems(aged))]
    yield "At the edge, failures of 10,000 requests (and those that the upstream acted on twice):"
    yield from ("", *table(heads, lines(aged, lambda row: failed(row["edge"]))), "")
    yield "Requests that rode a reused connection, after half of the timeout; and just under what Pannier has learned:"
    reused = lines(aged, lambda row: percent(row["half"]), own=lambda row: [percent(row.get("under")), learned(row)])
    yield from ("", *table([*heads, "Pannier, under", "learned"], reused), "")
    if fresh:
        yield "POST at endpoints that are new: failures of all requests, and the most at one endpoint:"
        yield from ("", *table(heads, lines(fresh, new)), "")
    yield from (*learning(aged), "", *exactness(result["exact"]))


def lines(rows, cell, own=None):
    """A line for each upstream and method, with a cell for each system and what only Pannier has."""
    for title, method in dict.fromkeys((row["title"], row["method"]) for row in rows):
        cells = {row["system"]: row for row in of(rows, title=title, method=method)}
        # Of a run without Pannier those stay empty.
        more = own(cells.get("pannier", {})) if own else []
        yield [f"{title}, {method}", *(cell(cells[name]) for name in systems(rows)), *more]


def learned(row):
    return f"{row['limit']:,.0f} ms" if "limit" in row else ""


def learning(aged):
    """What failed before the rest was measured."""
    found = []
    for method in METHODS:
        line = [method]
        for name in systems(aged):
            counts = [row["learn"] for row in of(aged, system=name, method=method)]
            line.append(f"{sum(map(judge.failures, counts)):,} of {sum(one['trials'] for one in counts):,}")
        found.append(line)
    yield "Before that, six pauses for each lane that outlast its connection, for a proxy to learn from; failures:"
    yield from ("", *table(["method", *(NAMES[name] for name in systems(aged))], found))


def new(row):
    return f"{judge.failures(row['fresh'])} of {row['fresh']['trials']:,}, {judge.most(row['fresh'])} at one"


def exactness(exact):
    """How far the bench itself was from what it meant."""
    for step, found in exact.items():
        late = found["late_us"]
        ended = [one for one in found["overdue_us"].values() if one]
        if late and ended:
            yield (f"{step}: requests left {late['p50']:,.0f} µs (p99 {late['p99']:,.0f}) after they were meant to;"
                   f" connections ended at most {max(one['p50'] for one in ended):,.0f} µs"
                   f" (p99 {max(one['p99'] for one in ended):,.0f}) after their timeout")


def promises(missed):
    return ["Pannier misses:", *(f"- {what}" for what in missed)] if missed else ["Pannier misses nothing."]


def readme(result):
    """What stands between the README's markers: a line for each system."""
    rows, found = result["rows"], []
    for name in systems(rows):
        own = of(rows, system=name, new=False)
        line = [NAMES[name]]
        for method in METHODS:
            edges = [row["edge"] for row in of(own, method=method)]
            line += [f"{total(edges):,.0f}", f"{max(map(per_10_000, edges)):,.0f}"]
        posts = [row["edge"] for row in of(own, method="POST")]
        line.append(f"{sum(one['twice'] for one in posts) / sum(one['trials'] for one in posts) * 10_000:,.0f}")
        halves = [row["half"] for row in own if row["reusable"] == 1]
        line.append(f"{sum(one['reused'] for one in halves) / max(sum(one['answered'] for one in halves), 1):.1%}"
                    if halves else "")
        found.append(line)
    head = ["system", "GET failed", "worst row", "POST failed", "worst row", "POST acted on twice", "reused at half"]
    trials = sum(row["edge"]["trials"] for row in of(rows, system="pannier", new=False))
    return "\n".join([
        *table(head, found), "",
        f"Of 10,000 requests each, sent around the moment at which the upstream ends the connection; {trials:,} of them through Pannier."
        f" [Every row]({ALL})."])


def total(edges):
    return sum(map(judge.failures, edges)) / max(sum(one["trials"] for one in edges), 1) * 10_000


def page(result, missed):
    """The page with every row."""
    return "\n".join([
        "# Keep-alive at the edge", "",
        "Written by `benches/keepalive/bench.py`, which says what is measured; "
        f"[README](../README.md) has the short of it. {result['machine']}.", "",
        *whole(result), "", *promises(missed), ""])


def publish(path, result):
    """Puts the table between its markers in the README."""
    markers.publish(path, BEGIN, END, readme(result))
