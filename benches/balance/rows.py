"""The simulation's results: a row for each case, with every policy and seed that it has."""

import json
import math
import statistics
from dataclasses import dataclass, field

OURS, BOUND, COMMON = "pannier", "oracle", "least-request"
# In the order of their columns.
POLICIES = ("pannier", "random", "round-robin", "least-request", "least-connections", "peak-ewma", "prequal", "oracle")
SCENARIOS = ("alike", "heterogeneous", "antagonists", "slow-starts", "pauses", "one-slow", "failing-fast", "dead", "overload")
# What fails so much more of its requests is not better for answering others soon.
ALLOWANCE = 0.005
# Student's t for 95 %, by the degrees of freedom that few seeds leave.
T = {1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 12: 2.18, 15: 2.13, 19: 2.09, 29: 2.05}


@dataclass
class Ratio:
    """How one compares to another over the same seeds: the mean, and where it is with 95 % confidence."""

    mean: float
    low: float
    high: float

    def __str__(self):
        return f"{self.mean:.2f}" if math.isnan(self.low) else f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass
class Row:
    """A case: what happens, how many clients and servers, how full."""

    scenario: str
    work: str
    clients: int
    servers: int
    load: int
    # Of each policy, what was measured, by seed.
    runs: dict = field(default_factory=dict)

    @property
    def size(self):
        return f"{self.clients}x{self.servers}"

    @property
    def title(self):
        return self.scenario if self.work == "exponential" else f"{self.scenario}, {self.work}"

    def policies(self):
        return [policy for policy in POLICIES if policy in self.runs]

    def all(self, policy, name):
        return [run[name] for run in self.runs[policy].values() if name in run]

    def mean(self, policy, name):
        """Over the seeds. Of times the geometric mean, as ratios are of it."""
        values = self.all(policy, name)
        if name.endswith("_us"):
            return statistics.geometric_mean(max(value, 1) for value in values)
        return statistics.fmean(values)

    def ratio(self, policy, other, name="p99_us"):
        """Of two policies, seed by seed."""
        seeds = sorted(self.runs[policy].keys() & self.runs[other].keys())
        logs = [math.log(max(self.runs[policy][seed][name], 1) / max(self.runs[other][seed][name], 1)) for seed in seeds]
        if not logs:
            return None
        mean, wide = statistics.fmean(logs), interval(logs)
        return Ratio(math.exp(mean), math.exp(mean - wide), math.exp(mean + wide))

    def rivals(self):
        """Who can be compared: not the bound, and nobody who fails more requests."""
        most = self.mean(OURS, "errors") + ALLOWANCE if OURS in self.runs else ALLOWANCE
        return [policy for policy in self.policies() if policy not in (OURS, BOUND) and self.mean(policy, "errors") <= most]

    def best_rival(self, name="p99_us"):
        return min(self.rivals(), key=lambda policy: self.mean(policy, name), default=None)


def interval(values):
    """Half of the 95 % interval of their mean."""
    if len(values) < 2:
        return math.nan
    freedom = len(values) - 1
    t = T[max(known for known in T if known <= freedom)]
    return t * statistics.stdev(values) / math.sqrt(len(values))


def load(path):
    """All rows, in order; lines that were cut off are none."""
    rows = {}
    for line in path.read_text().splitlines():
        if not line.endswith("}"):
            continue
        run = json.loads(line)
        key = (run["scenario"], run["work"], run["clients"], run["servers"], run["load"])
        rows.setdefault(key, Row(*key)).runs.setdefault(run["policy"], {})[run["seed"]] = run

    def order(row):
        return (SCENARIOS.index(row.scenario), row.work, row.clients * row.servers, row.clients, row.load)
    return sorted(rows.values(), key=order)
