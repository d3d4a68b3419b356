"""The tables that people read: every row, and the README's."""

import statistics

import envoy
import haproxy
import markers
import nginx
import pannier
import remarks
from client import CONNECTIONS, PATIENCE

BEGIN, END = "<!-- dns -->", "<!-- /dns -->"
ALL = "docs/dns-bench.md"

NAMES = {"pannier": "**Pannier**", "nginx": "nginx", "haproxy": "HAProxy", "haproxy-held": "HAProxy, `hold` 1 h",
         "haproxy-kept": "HAProxy, connections kept", "envoy": "Envoy"}
SAYS = {"pannier": pannier.SAYS, "nginx": nginx.SAYS, "haproxy": haproxy.SAYS, "haproxy-held": haproxy.SAYS_HELD,
        "haproxy-kept": haproxy.SAYS_KEPT, "envoy": envoy.SAYS}
# What only some rows are measured of is not in the README.
PARTIAL = ("haproxy-kept",)


def lines(rows):
    """A line for each figure, with a cell for each system."""
    systems = [name for name in NAMES if any(row["system"] == name for row in rows)]
    yield "| | " + " | ".join(NAMES[name] for name in systems) + " |"
    yield "|---|" + "--:|" * len(systems)
    for name in dict.fromkeys(row["row"] for row in rows):
        own = {row["system"]: row for row in rows if row["row"] == name}
        title, cell = figure(next(iter(own.values())))
        yield f"| {title} | " + " | ".join(cell(own[one]) if one in own else "" for one in systems) + " |"


def figure(row):
    """What a row is called, and what stands in its cells."""
    if "seconds" in row:
        return f"{row['title']}: the old address is used for, median and worst", followed
    if "asked" in row and "minutes" in row:
        return f"{row['title']}: A and AAAA", asked
    if "back" in row:
        return f"{row['title']}: failed; first failure after; first success after the return", outage
    if row.get("cold"):
        return f"{row['title']}: failed; first success after", cold
    return f"{row['title']}: failed", failed


def followed(row):
    """Median and worst. Who was at the old address just before the next change has not followed."""
    if not row["seconds"]:
        return f"unseen ({failed(row)} failed)"
    median, worst = (f"over {row['calm']} s" if value >= row["calm"] - 1 else f"{value:.1f} s"
                     for value in (statistics.median(row["seconds"]), max(row["seconds"])))
    return f"{median}, {worst}" + (f" ({failed(row)} failed)" if row["failed"] else "")


def asked(row):
    return " and ".join(f"{row['asked'][kind] / row['minutes']:.1f}" for kind in ("A", "AAAA"))


def failed(row):
    return f"{row['failed']:,} of {row['requests']:,}" if row["failed"] else "0"


def outage(row):
    if not row["failed"]:
        return "0"
    back = f"{row['first_success']:.1f} s" if row["first_success"] is not None else f"not in {row['back']} s"
    return f"{failed(row)}; {row['first_failure']:.1f} s; {back}"


def cold(row):
    back = f"{row['first_success']:.1f} s" if row["first_success"] is not None else f"not in {row['for']} s"
    return f"{failed(row)}; {back}"


def kinds(result):
    """How requests failed."""
    for row in result["rows"]:
        if row["failed"]:
            found = ", ".join(f"{count:,} {kind}" for kind, count in sorted(row["failures"].items()))
            yield f"- {row['title']}, {NAMES[row['system']]}: {found}"


def promises(missed):
    return ["Pannier misses:", *(f"- {what}" for what in missed)] if missed else ["Pannier misses nothing."]


def method(result):
    late = result["late_ms"]
    return (f"A system has {CONNECTIONS} client connections, kept alive, which pause between requests; a request fails "
            f"if it has no 200 in {PATIENCE:g} s. At a start nothing counts before the system listens. Records change just "
            "after the system has asked for them, which is the worst moment. The bench's own timers were "
            f"{late['p50']:.1f} ms late (p99 {late['p99']:.1f}, at most {late['max']:.0f}).")


def readme(result):
    """What stands between the README's markers."""
    rows = [row for row in result["rows"] if row["system"] not in PARTIAL]
    return "\n".join([*lines(rows), "", f"{method(result)} [Every figure, and how each is configured]({ALL})."])


def page(result, missed):
    """The page with every figure."""
    rows = result["rows"]
    systems = [name for name in NAMES if any(row["system"] == name for row in rows)]
    return "\n".join([
        "# Names that change, and DNS that fails", "",
        "Written by `benches/dns/bench.py`, which says what is measured; "
        f"[README](../README.md) has the short of it. {result['machine']}.", "",
        *lines(rows), "", method(result), "", *promises(missed), "",
        "## How each is configured", "",
        *(f"- {NAMES[name]} ({result['versions'].get(name, '')}): {SAYS[name]}" for name in systems), "",
        "## What each does", "", remarks.WHY, "",
        "## How requests failed", "", *(list(kinds(result)) or ["None did."]), ""])


def publish(path, result):
    """Puts the table between its markers in the README."""
    markers.publish(path, BEGIN, END, readme(result))
