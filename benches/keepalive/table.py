"""The tables that people read: every row, and the few lines of the README."""

import sys

import judge

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
    twice = per_10_000 and counts["twice"] / max(counts["trials"], 1) * 10_000
    return f"{per_10_000(counts):,.0f}" + (f" ({twice:,.0f} twice)" if twice else "")


def table(head, lines):
    return ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1),
            *("| " + " | ".join(line) + " |" for line in lines)]


def percent(counts):
    return f"{judge.reused(counts):.1%}" if counts else ""


def whole(result):
    """Every row: failures at the edge, reuse at half of it, endpoints that are new."""
    rows, lines = result["rows"], []
    names = systems(rows)
    aged, fresh = of(rows, new=False), of(rows, new=True)
    heads = [NAMES[name] for name in names]
    for title, method in dict.fromkeys((row["title"], row["method"]) for row in aged):
        cells = {row["system"]: row for row in of(aged, title=title, method=method)}
        lines.append([f"{title}, {method}", *(failed(cells[name]["edge"]) for name in names)])
    yield "At the edge, failures of 10,000 requests (and those that the upstream acted on twice):"
    yield from ("", *table(["upstream", *heads], lines), "")
    lines = []
    for title, method in dict.fromkeys((row["title"], row["method"]) for row in aged):
        cells = {row["system"]: row for row in of(aged, title=title, method=method)}
        own = cells.get("pannier", {})
        lines.append([f"{title}, {method}", *(percent(cells[name]["half"]) for name in names),
                      percent(own.get("under")), f"{own['limit']:,.0f} ms" if "limit" in own else ""])
    yield "Requests that rode a reused connection, after half of the timeout; and just under what Pannier has learned:"
    yield from ("", *table(["upstream", *heads, "Pannier, under", "learned"], lines), "")
    if fresh:
        lines = []
        for title in dict.fromkeys(row["title"] for row in fresh):
            cells = {row["system"]: row for row in of(fresh, title=title)}
            lines.append([title, *(new(cells[name]) for name in names)])
        yield f"POST at endpoints that are new: failures of all requests, and the most at one endpoint:"
        yield from ("", *table(["upstream", *heads], lines))
    yield from ("", *exactness(result["exact"]))


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
                   f" (p99 {max(one['p99'] for one in ended):,.0f}) after their timeout, none before it"
                   if min(one["least"] for one in ended) >= 0 else "a connection ended before its timeout")


def promises(missed):
    return ["Pannier misses:", *(f"- {what}" for what in missed)] if missed else ["Pannier misses nothing."]


def readme(result):
    """What stands between the README's markers: a line for each system."""
    rows, lines = result["rows"], []
    for name in systems(rows):
        own = of(rows, system=name, new=False)
        line = [NAMES[name]]
        for method in ("GET", "POST"):
            edges = [row["edge"] for row in of(own, method=method)]
            line += [f"{total(edges):,.0f}", f"{max(map(per_10_000, edges)):,.0f}"]
        posts = [row["edge"] for row in of(own, method="POST")]
        line.append(f"{sum(one['twice'] for one in posts) / sum(one['trials'] for one in posts) * 10_000:,.0f}")
        halves = [row["half"] for row in own if row["reusable"] == 1]
        line.append(f"{sum(one['reused'] for one in halves) / max(sum(one['answered'] for one in halves), 1):.1%}"
                    if halves else "")
        lines.append(line)
    head = ["system", "GET failed", "worst row", "POST failed", "worst row", "POST acted on twice", "reused at half"]
    trials = sum(row["edge"]["trials"] for row in of(rows, system="pannier", new=False))
    return "\n".join([
        *table(head, lines), "",
        f"Of 10,000 requests each, sent within a millisecond of the upstream's timeout; {trials:,} of them through Pannier."
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
    """Puts the table between the markers of a file; prints it where there are none."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        print(f"{path} has no {BEGIN} and {END}:\n{readme(result)}", file=sys.stderr)
        return
    before, rest = text.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{readme(result)}\n{END}{rest.split(END, 1)[1]}")
