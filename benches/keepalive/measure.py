"""The steps of a run. Each is for all systems and rows at once, so that whatever else the machine
does meets all of them alike.

learn  pauses after which the connection has ended, for a proxy to see that it does
edge   requests that meet the connection's end
half   pauses of half the timeout: whether connections are reused at all
under  pauses just below what Pannier says it has learned, where it says so
fresh  as edge, at endpoints that nobody has ever sent to, POST alone
"""

import math
import sys
import time
from dataclasses import dataclass, field

import edge
from rows import METHODS, Row
from system import address

# Requests a second for all systems together: so few that no one is late.
RATE = 1400

FRESH_ROUNDS = 6

# Where `under` sends, of what has been learned: that ends before the timeout by a margin already.
UNDER = (0.85, 0.97)


@dataclass
class Figures:
    """How much is measured of a row, for Pannier and for each of the others."""

    edge: tuple
    half: tuple
    fresh: tuple

    def of(self, what, system):
        ours, theirs = getattr(self, what)
        return ours if system == "pannier" else theirs


FULL = Figures(edge=(2400, 600), half=(1000, 200), fresh=(200, 40))
QUICK = Figures(edge=(200, 100), half=(100, 50), fresh=(20, 10))


@dataclass
class Lanes:
    """The lanes of one row through one system."""

    system: str
    row: Row
    method: str
    endpoints: list
    fresh: bool = False
    counts: dict = field(default_factory=dict)

    def name(self, step):
        return f"{self.system}.{self.row.name}.{self.method}.{step}"


def plan(systems, rows, figures):
    """All lanes. There are as many of a row as make every row of a system take the same time, so
    that requests come evenly."""
    pairs = len(rows) * len(METHODS)
    trials = sum(pairs * figures.of("edge", system) for system in systems)
    milliseconds = max(trials / RATE * 1000, 10_000)
    lanes = []
    for system in systems:
        endpoints = iter(range(1, 60_000))
        take = lambda count: [next(endpoints) for _ in range(count)]
        for row in rows:
            pause = max(row.edge[1], 1) if row.reusable < 1 else row.idle
            count = max(2, math.ceil(figures.of("edge", system) * pause / milliseconds))
            lanes += [Lanes(system, row, method, take(count)) for method in METHODS]
        lanes += [Lanes(system, row, "POST", take(figures.of("fresh", system)), fresh=True)
                  for row in rows if row.fresh]
    return lanes


class Run:
    """The systems that run, and what is done with them."""

    def __init__(self, bench, lanes, figures):
        self.bench, self.lanes, self.figures = bench, lanes, figures
        # Where each system is, and Pannier's admin port.
        self.to = {}
        # How exact the bench was in each step.
        self.exact = {}

    def begin(self, rig, systems, rows):
        """Starts upstreams and systems."""
        served = [row.behaviour for row in rows if row.behaviour]
        ports = self.bench.do(serve=served)["ports"]
        self.nodes = {row.name: edge.start_node(rig, row.node) for row in rows if row.node}
        ports |= self.nodes
        for name, start in systems.items():
            endpoints = {number: ports[lanes.row.name] for lanes in self.lanes if lanes.system == name
                         for number in lanes.endpoints}
            self.to[name] = start(rig, name, endpoints)
        self.ports = ports
        # Their start is to be behind them.
        time.sleep(1)

    def steps(self, learned):
        """All steps. `learned` asks Pannier's admin port."""
        old, fresh = ([lanes for lanes in self.lanes if lanes.fresh is is_fresh] for is_fresh in (False, True))
        self.step("learn", [self.order("learn", lanes, lanes.row.learning_rounds(), exactly(lanes.row.pause))
                            for lanes in old])
        self.step("edge", [self.order("edge", lanes, self.rounds("edge", lanes), at_edge(lanes.row)) for lanes in old])
        # Twice as often as at the edge, so with half of the lanes.
        self.step("half", [self.order("half", lanes, self.rounds("half", lanes, 2), exactly(lanes.row.half), share=2)
                           for lanes in old])
        self.step("under", list(self.under(old, learned)))
        self.step("fresh", [self.order("fresh", lanes, FRESH_ROUNDS, at_edge(lanes.row), spread=self.calm(fresh))
                            for lanes in fresh])

    def rounds(self, what, lanes, share=1):
        """How many requests each lane sends, where one of `share` lanes is used."""
        count = math.ceil(len(lanes.endpoints) / share)
        return math.ceil(self.figures.of(what, lanes.system) / count)

    def calm(self, fresh):
        """The time over which so many lanes may begin."""
        requests = sum(len(lanes.endpoints) for lanes in fresh) * (FRESH_ROUNDS + 1)
        return requests / RATE * 1000

    def under(self, old, learned):
        """Each lane just under what has been learned of its endpoint."""
        if "pannier" not in self.to:
            return
        limits = learned(self.to["pannier"][1])
        for lanes in old:
            if lanes.system != "pannier" or lanes.row.reusable < 1:
                continue
            own = {number: limits.get(f"{address(number)}:{self.ports[lanes.row.name]}", {}).get(lanes.method)
                   for number in lanes.endpoints}
            known = {number: limit for number, limit in own.items() if limit}
            if known:
                rounds = math.ceil(self.figures.of("half", "pannier") / len(lanes.endpoints))
                lanes.counts["limit"] = sorted(known.values())[len(known) // 2]
                # A limit far beyond the timeout is wrong whatever is sent: it is not waited for.
                known = {number: min(limit, 2 * lanes.row.idle) for number, limit in known.items()}
                gaps = {number: {"from": limit * UNDER[0], "to": limit * UNDER[1]} for number, limit in known.items()}
                yield self.order("under", lanes, rounds, gaps=gaps)

    def order(self, step, lanes, rounds, gap=None, share=1, spread=None, gaps=None):
        """What `edge` is to do with these lanes."""
        used = lanes.endpoints[:math.ceil(len(lanes.endpoints) / share)]
        gaps = gaps or {number: gap for number in used}
        return lanes, {
            "name": lanes.name(step), "to": f"127.0.0.1:{self.to[lanes.system][0]}", "method": lanes.method,
            "rounds": rounds, "spread": spread or min(lanes.row.idle, 5000),
            "lanes": [{"endpoint": number, "gap": gap} for number, gap in gaps.items()],
        }

    def step(self, step, orders):
        """Has them done at once, and keeps what came of them with the lanes."""
        if not orders:
            return
        lasts = max(order["spread"] + order["rounds"] * max(lane["gap"]["to"] for lane in order["lanes"])
                    for _, order in orders)
        print(f"{step}: {len(orders)} rows, about {lasts / 1000:.0f} s", file=sys.stderr)
        done = self.bench.do(run=[order for _, order in orders])
        elsewhere = {name: number for port in self.nodes.values() for name, number in edge.acted_twice(port).items()}
        for lanes, order in orders:
            counts = done["rows"][order["name"]]
            counts["twice"] += elsewhere.get(order["name"], 0)
            lanes.counts[step] = counts
        self.exact[step] = {"late_us": done["late_us"], "overdue_us": done["overdue_us"]}


def exactly(pause):
    return {"from": pause, "to": pause}


def at_edge(row):
    """A pause that ends where the connection does."""
    if row.changes:
        return {"from": row.edge[0], "to": row.edge[1], "beyond": row.name}
    base = 0 if row.reusable < 1 else row.idle
    return {"from": base + row.edge[0], "to": base + row.edge[1]}
