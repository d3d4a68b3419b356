"""The tables that people read: all figures, and the README's part."""

import markers
from cases import CLOSED, EVEN, FAULTS, OPEN, SHARE, SKEWED
from cost import __doc__ as compared
from judge import added, cost_rounds, script_calls, worst_ratio

BEGIN, END = "<!-- limits -->", "<!-- /limits -->"
ALL = "docs/limits-bench.md"

SYSTEMS = {
    ("pannier", "one"): "**Pannier**, one limit", ("pannier", "three"): "**Pannier**, three limits",
    ("pannier", "exact"): "one call of Redis for each request, one limit",
    ("envoy", "one"): "Envoy and a rate-limit service, one limit",
}
COST = ("sidecar", "service", "redis", "together", "p50_us", "p99_us")
STAGES = {"none": "no limit: the loop, and the machine", "one": "one limit without a key",
          "keyed": "one limit, keyed by a field", "three": "three limits, two keyed"}
WINDOWS = ("1", "10", "60")


def whole(book, known, found):
    """All there is."""
    runs = [(case, book.runs[name]) for name, case in known.items() if name in book.runs]
    of = lambda *parts: [(case, run) for case, run in runs if case.part in parts]
    blocks = (
        ("What is promised", promises(found)),
        ("What a limit adds to a request", costs(book)),
        ("What a decision takes", stages(book)),
        ("How often Redis is asked", calls(of("calls"))),
        ("What is admitted", admitted(of("steady"))),
        ("While Redis fares ill", admitted(of("faults"))),
        ("`open` and `share`, without Redis", policies(of("policies"))),
    )
    for title, lines in blocks:
        lines = list(lines)
        if len(lines) > 2:
            yield from (f"## {title}", "", *lines, "")


def promises(found):
    yield "| promise | cases | | the worst |"
    yield "|---|--:|---|---|"
    for one in found:
        verdict = one.verdict if one.verdict == "met" else f"**{one.verdict}**"
        yield f"| {one.what} | {one.cases} | {verdict} | {one.worst} |"


def costs(book):
    """A line for each system and load."""
    yield "| added to a request | sidecar, CPU µs | service | Redis | together | p50 µs | p99 µs |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    rounds = [one for block in cost_rounds(book) for one in block]
    if not rounds:
        return
    for load, title in (("rate", f"at {book.rate:,} requests a second"), ("full", "as fast as answers come")):
        yield f"| *{title}* | | | | | | |"
        for (system, role), name in SYSTEMS.items():
            cells = [added(rounds, system, role, load, field) for field in COST]
            if cells[0]:
                yield f"| {name} | " + " | ".join(interval(cell, column) for cell, column in zip(cells, COST)) + " |"


def interval(cell, column):
    if cell is None:
        return ""
    digits = 0 if abs(cell["median"]) >= 100 else 1 if abs(cell["median"]) >= 10 else 2
    return f"{cell['median']:.{digits}f} ({cell['low']:.{digits}f} to {cell['high']:.{digits}f})"


def stages(book):
    yield "| a decision, ns | keys | threads | | p50 | p99 | p99.9 | CPU, refills included | without a lease |"
    yield "|---|--:|--:|---|--:|--:|--:|--:|--:|"
    for one in book.stage:
        cpu = f"{one['cpu_ns']:.0f}" if "cpu_ns" in one else ""
        share = one["others"] / max(one["decisions"] + one["others"], 1)
        yield (f"| {STAGES[one['case']]} | {one['keys']:,} | {one['threads']} | {'paced' if one['paced'] else 'tight'} | "
               f"{one['p50_ns']:,} | {one['p99_ns']:,} | {one['p999_ns']:,} | {cpu} | {share:.2%} |")


def calls(runs):
    yield "| R, B | keys | sidecars | calls for 1,000 requests | as leases come to | commands within | requests that waited |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for case, run in runs:
        within = 1000 * run["commands"]["within"] / max(run["offered"], 1)
        yield (f"| {case.rate:,}/s, {case.burst:,} | {case.keys:,} | {case.sidecars} | {script_calls(run):.2f} | "
               f"{case.calls:.2f} | {within:.1f} | {run['waited'] / run['offered']:.2%} |")


def admitted(runs):
    """A line for each run, under a heading for each fault."""
    yield "| R, B | sidecars | sent | of R | of what one bucket admits | 1 s | 10 s | 60 s | every window | calls for 1,000 |"
    yield "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|"
    before = None
    for case, run in runs:
        if case.fault != before:
            before = case.fault
            beyond = "; beyond what is promised" if FAULTS[case.fault].outside else ""
            yield f"| *{FAULTS[case.fault].title}{beyond}* | | | | | | | | | |"
        windows = " | ".join(f"{run['bound'][window]:.3f}" if window in run["bound"] else "" for window in WINDOWS)
        # A server that is started again counts from nothing.
        asked = f"{script_calls(run):.1f}" if case.fault == "nothing" else ""
        yield (f"| {case.rate:,}/s, {case.burst:,} | {case.sidecars} | {case.shape}, {case.demand:g} R | "
               f"{run['utilisation']:.1%} | {run['of_one_bucket']:.1%} | {windows} | {run['every']['ratio']:.4f} | {asked} |")


def policies(runs):
    yield "| | R, B | sidecars | sent | while Redis was away, of R | every window, of R·T + B | decided without Redis |"
    yield "|---|---|--:|---|--:|--:|--:|"
    for case, run in runs:
        away = "" if run["away"] is None else f"{run['away']:.2f}"
        yield (f"| `{case.policy}`, {FAULTS[case.fault].title} | {case.rate:,}/s, {case.burst:,} | {case.sidecars} | "
               f"{case.shape}, {case.demand:g} R | {away} | {worst_ratio(run):.3f} | {run['without_redis']:,} |")


def short(runs):
    """Of many runs, the worst: a column for each number of sidecars."""
    sizes = sorted({case.sidecars for case, _ in runs if case.part == "steady"})
    yield "| sidecars | " + " | ".join(map(str, sizes)) + " |"
    yield "|---|" + "--:|" * len(sizes)
    least = lambda run: run["utilisation"]
    for shape, title in ((EVEN, "alike"), (SKEWED, "one has nine tenths of it")):
        yield from row(f"of R, where demand is above it, {title}: at least", sizes, runs, least, min, "{:.1%}",
                       lambda case, shape=shape: case.promised and case.shape == shape)
    for name, fault in FAULTS.items():
        if not fault.outside:
            yield from row(f"in any window, of R·T + B: {fault.title}", sizes, runs, worst_ratio, max, "{:.3f}",
                           lambda case, name=name: case.policy == CLOSED and case.fault == name)
    for policy in (OPEN, SHARE):
        yield from row(f"`{policy}`: of R, while Redis is away and demand is twice that", sizes, runs,
                       lambda run: run["away"], max, "{:.2f}", lambda case, policy=policy: case.policy == policy)


def row(title, sizes, runs, value, worst, form, holds):
    """A line, if there is anything on it."""
    found = {size: [value(run) for case, run in runs if case.sidecars == size and holds(case)] for size in sizes}
    if any(found.values()):
        cells = (form.format(worst(values)) if values else "" for values in found.values())
        yield f"| {title} | " + " | ".join(cells) + " |"


def method(book):
    rounds = sum(map(len, book.blocks))
    yield (f"{book.here['machine']}. What is added is the median of {rounds} pairs of alternating slices of the same load, "
           "with what holds it by 95 %; CPU is of all processes that are there for the limit.")


def readme(book, known, found):
    """What stands between the README's markers."""
    runs = [(case, book.runs[name]) for name, case in known.items() if name in book.runs]
    return "\n".join([*costs(book), "", *short(runs), "", *promises(found), "",
                      f"{' '.join(method(book))} [Every figure, and how it was measured]({ALL})."])


REMARKS = """
- A request counts for a window if it was sent and answered within it, by the clock of whoever sent it: nothing is
  allowed on top. `every window` is the one, of whatever length, that holds most of what it may.
- `of R` is what was admitted in the steady state, from the first seconds' end on, whatever happens to Redis in it;
  `one bucket` is GCRA with R and B, which all sidecars ask for each request, without delay.
- Requests come at random (Poisson), whatever becomes of those before: `even` to each sidecar as many; `skewed`: nine
  tenths to one; `bursty`: each is on or off for half a second at a time, by chance. Timers have a grain of a
  millisecond, so that some come together.
- The sidecars of a run are states of limits of their own, with a connection each, in one process of three threads;
  Redis and what is beside it run on the same two cores. Some such runs are under way at a time, but where calls of
  Redis are counted.
- A decision is paced where its thread sleeps in between: then what it reads has been displaced from the processor's
  caches, and its time includes what it takes to wake the thread that refills, where it is the one that does.
""".strip()


def page(book, known, found, versions):
    """The page with every figure."""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([
        "# Limits of a whole mesh", "",
        f"Written by `make limits`; [README](../README.md) has the short of it. {named}. {' '.join(method(book))}", "",
        compared.strip(), "", REMARKS, "", *whole(book, known, found)])


def publish(path, book, known, found):
    """Puts the tables between their markers in the README."""
    markers.publish(path, BEGIN, END, readme(book, known, found))
