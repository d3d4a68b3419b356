"""What Pannier is held to, and whether the rows show it. A target that is missed by the median, but
met at the first quartile, is a tie: the rounds do not tell."""

from dataclasses import dataclass

# What a process may hold of bodies: a quarter of a sidecar's usual memory limit of 512 MiB.
BODY_BUDGET_MIB = 128

# Of what should have been measured, and got no answer.
NEVER = float("inf")


@dataclass
class Found:
    """A target beside what was measured."""

    what: str
    limit: float
    unit: str
    median: float
    q1: float
    q3: float

    @property
    def verdict(self):
        if self.median <= self.limit:
            return "met"
        return "tie" if self.q1 <= self.limit else "missed"

    def shown(self, value):
        if value == NEVER:
            return "no answer"
        return f"{value:.2f}x" if self.unit == "x" else f"{value:.1f} {self.unit}".strip()


def judge(rows):
    """Every target that these rows tell of."""
    return [found for found in check(Rows(rows)) if found]


class Rows:
    def __init__(self, rows):
        self.rows = {(row["case"], row["system"]): row for row in rows}

    def ratio(self, what, limit, case, system, field="us_per_request"):
        """Pannier's over a peer's, in the peer's case."""
        row = self.rows.get((case, system), {})
        return self.spread(what, limit, row.get("pannier_ratio", {}).get(field))

    def best(self, what, limit, cases, field):
        """Pannier's over that of the peer that does best."""
        peers = [row for (case, system), row in self.rows.items()
                 if case in cases and system not in ("pannier", "floor") and row.get(field)]
        best = min(peers, key=lambda row: row[field], default=None)
        return best and self.ratio(f"{what}, {best['system']}", limit, best["case"], best["system"], field)

    def spread(self, what, limit, ratio):
        return ratio and Found(what, limit, "x", ratio["median"], ratio["q1"], ratio["q3"])

    def own(self, what, limit, case, field, unit="x"):
        """A measure of Pannier's own: a number, or a ratio with its quartiles."""
        row = self.rows.get((case, "pannier"), {})
        if field not in row:
            return None
        if isinstance(row[field], dict):
            return self.spread(what, limit, row[field])
        value = NEVER if row[field] is None else row[field]
        return Found(what, limit, unit, value, value, value)

    def memory(self, what, limit, case, system):
        ours, theirs = self.rows.get((case, "pannier")), self.rows.get((case, system))
        if not ours or not theirs:
            return None
        ratio = ours["mib"] / theirs["mib"]
        return Found(what, limit, "x", ratio, ratio, ratio)


def check(rows):
    cpu = "CPU per request"
    pair_rates = ("rate/pair-h1", "rate/pair-h2")
    yield rows.ratio(f"one plain hop: {cpu} against nginx", 0.95, "hop/64", "nginx")
    yield rows.ratio(f"one plain hop: {cpu} against Envoy", 0.42, "hop/64", "envoy")
    yield rows.ratio(f"one plain hop at a fixed rate: {cpu} against nginx", 0.95, "rate/hop", "nginx")
    yield rows.ratio(f"one plain hop at a fixed rate: {cpu} against Envoy", 0.42, "rate/hop", "envoy")
    yield rows.ratio(f"mTLS pair: {cpu} against HAProxy over HTTP/2", 1.0, "pair-h2/64", "haproxy")
    yield rows.ratio(f"beyond it: {cpu} against HAProxy over HTTP/2", 0.90, "pair-h2/64", "haproxy")
    yield rows.ratio(f"mTLS pair: {cpu} against nginx over HTTP/1.1", 0.55, "pair-h1/64", "nginx")
    yield rows.ratio(f"mTLS pair: {cpu} against Envoy over HTTP/2", 0.40, "pair-h2/64", "envoy")
    yield rows.ratio("64 KiB through the pair: CPU against HAProxy over HTTP/1.1", 0.75, "pair-h1/64KiB", "haproxy")
    yield rows.ratio("uploads of 1 MiB: CPU against HAProxy over HTTP/1.1", 0.75, "pair-h1/upload1MiB", "haproxy")
    yield rows.ratio("one connection: p50 through the pair against nginx", 1.05, "pair-h1/1", "nginx", "p50_us")
    yield rows.best("one plain hop at a fixed rate: p99 against the best peer", 1.05, ("rate/hop",), "p99_us")
    yield rows.best("mTLS pair at a fixed rate: p99 against the best peer", 1.05, pair_rates, "p99_us")
    yield rows.own("memory: one hop, one worker", 12, "hop/64", "mib", "MiB")
    yield rows.own("memory: one hop, 4,000 idle connections", 16, "idle/4000", "mib", "MiB")
    yield rows.memory("memory: mTLS pair, 4,000 idle connections, against HAProxy", 1.0, "idle-pair/4000", "haproxy")
    yield rows.own("two workers: connections apart", 1, "two-workers", "most_apart", "")
    yield rows.own(f"two workers: {cpu} against one", 1.05, "two-workers", "against_one_worker")
    growth = "slow readers: growth of the"
    yield rows.own(f"{growth} receiving sidecar", BODY_BUDGET_MIB, "slow-readers", "receiver_growth_mib", "MiB")
    yield rows.own(f"{growth} most loaded caller", BODY_BUDGET_MIB, "slow-readers", "caller_growth_mib", "MiB")
    yield rows.own("slow readers: p99 of one that reads, against none beside it", 2.0, "slow-readers", "against_alone")
