"""The tables that people read: every load of every scenario, and the README's."""

import markers
from book import COMPARED, LATENCIES
from meshes import KINDS, SYSTEMS
from meshes import __doc__ as configured
from scenarios import WORK, WORKERS

BEGIN, END = "<!-- unequal -->", "<!-- /unequal -->"
ALL = "docs/balance-real.md"

NAMES = {"pannier": "**Pannier**", "envoy": "Envoy", "haproxy": "HAProxy"}
KIND_NAMES = {"hop": "one hop", "pair": "mTLS pair"}
# What the README shows of scenarios that have many loads.
SHORT = (50, 80, 95)
MANY = 4
# Of a core; beyond that it is in the way of what is measured.
BUSY = 0.6


def milliseconds(micros):
    return f"{micros / 1000:,.0f}" if micros >= 9950 else f"{micros / 1000:.1f}"


def percent(share):
    """Of what is not nothing, no figure reads as if it were."""
    if share == 0:
        return "0"
    return f"{share:.1%}" if share >= 0.001 else f"{share:.3%}"


def whole(rows):
    """A line for each system, under a heading for each load."""
    yield ("| | p50 ms | p99 ms | p99.9 ms | failed | answered a second | shares of the eight, % | sidecars' cores "
           "| Pannier's p50 | p99 | p99.9 | answers |")
    yield "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|"
    before = None
    for row in rows:
        if before != (row["scenario"], row["load"]):
            before = (row["scenario"], row["load"])
            yield f"| *{row['scenario'].title}: {row['load']} %, {row['rate']:,.0f} a second* | | | | | | | | | | | |"
        cells = [f"{NAMES[row['system']]}, {KIND_NAMES[row['kind']]}",
                 *(milliseconds(row[name]) for name in LATENCIES), failed(row),
                 f"{row['rate'] * (1 - row['failed']):,.0f}", " ".join(f"{share * 100:.0f}" for share in row["shares"]),
                 f"{row['sidecars_busy']:.2f}",
                 *(ratio(row["against"].get(name)) for name in COMPARED)]
        yield "| " + " | ".join(cells) + " |"


def failed(row):
    kinds = ", ".join(kind for kind, _ in sorted(row["kinds"].items(), key=lambda item: -item[1]))
    return percent(row["failed"]) + (f" ({kinds})" if kinds else "")


def ratio(found):
    return f"{found['median']:.2f}x ({found['q1']:.2f} to {found['q3']:.2f})" if found else ""


def short(rows):
    """A line for each load, with a cell for each system."""
    keys = [(kind, system) for kind in KINDS for system in SYSTEMS
            if any((row["kind"], row["system"]) == (kind, system) for row in rows)]
    yield "| p50, p99 ms | " + " | ".join(f"{NAMES[system]}, {KIND_NAMES[kind]}" for kind, system in keys) + " |"
    yield "|---|" + "--:|" * len(keys)
    for scenario, share in dict.fromkeys((row["scenario"], row["load"]) for row in rows):
        if len(scenario.loads) >= MANY and share not in SHORT:
            continue
        cells = {(row["kind"], row["system"]): cell(row) for row in rows
                 if (row["scenario"], row["load"]) == (scenario, share)}
        yield f"| {scenario.title}: {share} % | " + " | ".join(cells.get(key, "") for key in keys) + " |"


def cell(row):
    return (f"{milliseconds(row['p50_us'])}, {milliseconds(row['p99_us'])}"
            + (f"; {percent(row['failed'])} failed" if row["failed"] else ""))


def method(rows, here):
    """How it was measured, and whether the machine was in the way."""
    rounds = [row["rounds"] for row in rows]
    most = f"{max(rounds)}" if min(rounds) == max(rounds) else f"{min(rounds)} to {max(rounds)}"
    yield (f"Eight applications, with {WORKERS} workers and one queue each; work is exponentially distributed, "
           f"{WORK:g} ms on average at a speed of 1, and takes no CPU. Requests come at random, as they do from many "
           f"clients (Poisson), and a latency counts from when one was meant to be sent. {most} rounds of slices of "
           f"{here['seconds']:g} s, after {here['warm']:g} s that do not count; all systems meet the same requests. "
           "A load is of what the eight can do together.")
    sidecars, late = (max(row[name] for row in rows) for name in ("sidecars_busy", "late_p99_us"))
    cores = [max(row[f"{core}_core_busy"] for row in rows) for core in ("proxy", "load")]
    yield (f"The sidecars took at most {sidecars:.0%} of their core, which was busy for at most {cores[0]:.0%} of a slice with "
           f"whatever else ran there, and that of clients and applications for {cores[1]:.0%}. Requests left at most "
           f"{late / 1000:.1f} ms late (p99 of a slice)."
           + (" Cores that busy are in the way of what is measured." if max(cores) > BUSY else ""))


def readme(rows, here):
    """What stands between the README's markers."""
    said = " ".join(method(rows, here))
    return "\n".join([*short(rows), "", f"{said} [Every load, and how each is configured]({ALL})."])


def page(rows, here, versions):
    """The page with every figure."""
    named = ", ".join(f"{NAMES[system].strip('*')} {version}" for system, version in versions.items())
    return "\n".join([
        "# Endpoints of unequal speed", "",
        "Written by `benches/balance/real/bench.py`, which says what is measured; [README](../README.md) has the short of it. "
        f"{here['machine']}. {named}.", "",
        *method(rows, here), "", configured.strip().replace("\n\n", "\n"), "",
        "`failed` names the kinds of failures, most frequent first: `status` is an answer that was not 2xx, `unanswered` is "
        "none in time. Ratios are Pannier's over that system's in the same shape: the median over the rounds, and quartiles.",
        "",
        *whole(rows), ""])


def publish(path, rows, here):
    """Puts the table between its markers in the README."""
    markers.publish(path, BEGIN, END, readme(rows, here))
