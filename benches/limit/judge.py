"""What is promised, and whether it was kept."""

from dataclasses import dataclass

import pairs
from cases import CLOSED, FAULTS

# What a mesh-wide limit may add to a request's CPU, in microseconds, and how much less that is than others add.
ADDED, TIMES = 0.5, 20
# p99 of a decision with a lease at hand, in nanoseconds.
STAGE = 5000
# Of R, with demand above it.
UTILISED = 0.99
# Calls for 1,000 requests: of one hot key, and as leases come to.
CALLS, OF_LEASES = 5, 1.5
HOT = 10_000
# What is no more than that is nothing, in microseconds.
NOTHING = 0.01


@dataclass
class Found:
    """A promise, how many cases there are of it, how many broke it, and the worst."""

    what: str
    cases: int
    missed: int
    worst: str
    # It is the bound itself.
    bound: bool = False
    # The interval of what was measured holds both: the rounds do not tell.
    open: bool = False

    @property
    def verdict(self):
        if self.open:
            return "the rounds do not tell"
        return f"missed in {self.missed}" if self.missed else "met"

    @property
    def broken(self):
        return self.bound and self.missed > 0


def judge(book, known):
    """All that can be said of what was measured."""
    runs = [(case, book.runs[name]) for name, case in known.items() if name in book.runs]
    found = [of_bound(runs), of_utilisation(runs), *of_calls(runs), of_stage(book), *of_cost(book)]
    return [one for one in found if one]


def worst_ratio(run):
    """The most that any window held, of R·T + B."""
    return max([run["every"]["ratio"], *run["bound"].values()])


def of_bound(runs):
    closed = [(worst_ratio(run), case) for case, run in runs
              if case.policy == CLOSED and not FAULTS[case.fault].outside]
    return of_all("`closed`: no window holds more than R·T + B", closed, lambda ratio: ratio <= 1,
                  lambda ratio: f"{ratio:.4f} of it", max, bound=True)


def of_utilisation(runs):
    promised = [(run["utilisation"], case) for case, run in runs if case.promised]
    return of_all("demand above R: at least 99 % of R is admitted, where B >= max(2N, R·100 ms)", promised,
                  lambda share: share >= UTILISED, lambda share: f"{share:.1%}", min)


def of_calls(runs):
    calls = [(script_calls(run), case) for case, run in runs if case.part == "calls"]
    hot = [(count, case) for count, case in calls if case.rate >= HOT and case.burst >= case.rate and case.keys == 1]
    rest = [(count / case.calls, case) for count, case in calls if (count, case) not in hot]
    yield of_all("one hot key, R >= 10,000/s, B >= R, up to 10 sidecars: calls of Redis for 1,000 requests under 5", hot,
                 lambda count: count < CALLS, lambda count: f"{count:.2f}", max)
    yield of_all("else: within 1.5 of what leases come to, 1000·N/(R·tau)", rest, lambda ratio: ratio <= OF_LEASES,
                 lambda ratio: f"{ratio:.2f} of it", max)


def script_calls(run):
    """How often the script was called for 1,000 requests."""
    return 1000 * run["commands"]["script"] / max(run["offered"], 1)


def of_all(what, values, holds, shown, worst, bound=False):
    """A promise over cases: of each a value."""
    if not values:
        return None
    value, case = worst(values, key=lambda one: one[0])
    missed = sum(not holds(value) for value, _ in values)
    return Found(what, len(values), missed, f"{shown(value)} ({described(case)})", bound)


def described(case):
    keys = f", {case.keys:,} keys" if case.keys > 1 else ""
    fault = f", {case.fault}" if case.fault != "nothing" else ""
    return f"R {case.rate:,}/s, B {case.burst:,}{keys}, {case.sidecars} sidecars, {case.shape}{fault}"


def of_stage(book):
    cases = [one for one in book.stage if one["case"] != "none" and not one["paced"]]
    if not cases:
        return None
    worst = max(cases, key=lambda one: one["p99_ns"])
    which = f"{worst['case']}, {worst['keys']:,} keys, {worst['threads']} threads"
    missed = sum(one["p99_ns"] >= STAGE for one in cases)
    return Found("a decision with a lease at hand, warm: p99 under 5 µs", len(cases), missed,
                 f"{worst['p99_ns'] / 1000:.2f} µs ({which})")


def of_cost(book):
    """One limit is judged; with three it is as the table says."""
    rounds = [one for block in cost_rounds(book) for one in block]
    if not rounds:
        return
    ours = {load: added(rounds, "pannier", "one", load) for load in ("rate", "full")}
    for load, what in (("full", "as fast as answers come"), ("rate", "at a fixed rate")):
        one = ours[load]
        if one:
            yield Found(f"CPU added to a request by one limit, all processes, {what}: under 0.5 µs", 1,
                        int(one["low"] >= ADDED), f"{one['median']:.2f} µs ({one['low']:.2f} to {one['high']:.2f})",
                        open=one["low"] < ADDED <= one["high"])
    for (system, role), what in {("pannier", "exact"): "one call of Redis for each request",
                                 ("envoy", "one"): "Envoy with a rate-limit service"}.items():
        theirs = added(rounds, system, role, "rate")
        if theirs and ours["rate"]:
            least, times, most = (theirs[end] / max(ours["rate"][other], NOTHING) for end, other in
                                  (("low", "high"), ("median", "median"), ("high", "low")))
            yield Found(f"{what} adds at least 20 times as much CPU", 1, int(most < TIMES),
                        f"{shown_times(times)} (at least {shown_times(least)})", open=least < TIMES <= most)


def shown_times(times):
    return "more than 1,000" if times > 1000 else f"{times:.0f}"


def cost_rounds(book):
    """Blocks of rounds; a process of one block is none of another."""
    for number, block in enumerate(book.blocks):
        yield [{key: one | {"process": f"{number} {one['process']}"} for key, one in of.items()} for of in block]


def added(rounds, system, role, load, field="together"):
    """What a role adds, with its interval; none where it was not measured."""
    keep = f" {load}"
    of_load = [{key.removesuffix(keep).removeprefix(f"{system} "): one for key, one in of.items()
                if key.endswith(keep) and key.startswith(f"{system} ")} for of in rounds]
    values = pairs.added(of_load, field, role, "none")
    return pairs.interval(values) if values else None
