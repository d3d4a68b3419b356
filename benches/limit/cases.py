"""Runs of sidecars that share a limit: how many, what they are sent, and what happens to Redis meanwhile."""

from dataclasses import dataclass, replace

import servers

SIDECARS = (1, 3, 20, 50)
EVEN, BURSTY, SKEWED = "even", "bursty", "skewed"
SHAPES = (EVEN, BURSTY, SKEWED)
CLOSED, OPEN, SHARE = "closed", "open", "share"


@dataclass(frozen=True)
class Fault:
    """What happens to Redis: at which second, and what."""

    title: str
    script: tuple = ()
    kind: type = servers.Alone
    # The times in which Redis is away, in seconds.
    away: tuple = ()
    # Beyond what the bound is promised for.
    outside: bool = False


@dataclass(frozen=True)
class Case:
    """One run."""

    part: str
    rate: int
    burst: int
    sidecars: int
    shape: str = EVEN
    # Of R, for each key.
    demand: float = 2.0
    keys: int = 1
    seconds: float = 30
    # From when on it counts as the steady state.
    warm: float = 5
    policy: str = CLOSED
    fault: str = "nothing"

    @property
    def name(self):
        return (f"{self.part}/{self.rate}/{self.burst}/{self.keys}/{self.sidecars}/{self.shape}/{self.demand:g}/"
                f"{self.policy}/{self.fault}/{self.seconds:g}")

    @property
    def promised(self):
        """Whether 99 % of R is to be admitted: with demand above it, of a burst that is not too small."""
        return (self.fault == "nothing" and self.demand > 1 and self.shape != BURSTY
                and self.burst >= edge(self.rate, self.sidecars))

    @property
    def calls(self):
        """How often Redis is asked for 1,000 requests, as leases that last tau come to: 1000 N / (R tau)."""
        return 2000 * self.sidecars / self.burst


def edge(rate, sidecars):
    """The least burst for which 99 % of R is promised."""
    return max(2 * sidecars, rate // 10)


def paused(at, seconds):
    return (at, "pause"), (at + seconds, "resume")


def killed(at, seconds):
    """Ended without notice, and started empty."""
    return (at, "kill"), (at + seconds, "start")


NOTHING = Fault("nothing happens")
FAULTS = {
    "nothing": NOTHING,
    "paused": Fault("Redis is stopped for 0.3 s, 1 s and 3 s", paused(8, 0.3) + paused(12, 1) + paused(18, 3),
                    away=((8, 8.3), (12, 13), (18, 21))),
    "killed": Fault("Redis is killed, and started empty: at once three times, after 1 s",
                    killed(8, 0) + killed(12, 0) + killed(12.3, 0) + killed(18, 1), away=((18, 19),)),
    "away": Fault("Redis is away for 5 s", killed(8, 5), away=((8, 13),)),
    "stopped": Fault("Redis is stopped for 5 s", paused(8, 5), away=((8, 13),)),
    "flushed": Fault("Redis loses all that it knows, three times", ((8, "flush"), (8.2, "flush"), (8.4, "flush"))),
    "failover": Fault("the primary is killed, and a Sentinel's replica takes over; later again on request",
                      ((8, "kill"), (16, "start"), (24, "failover")), servers.Sentinels),
    "two-primaries": Fault("the primary is stopped for 5 s, and does not know that a replica has taken over",
                           paused(8, 5), servers.Sentinels, outside=True),
    "reshard": Fault("the limit's slot moves to another primary of the Cluster, twice", ((8, "reshard"), (16, "reshard")),
                     servers.Cluster),
}

# R and B of most cases.
USUAL = (1000, 200)
LIMITS = ((10_000, 10_000), USUAL, (1000, 1000), (100, 100))


def full():
    """All there is: more than two hours."""
    for sidecars in SIDECARS:
        edges = tuple((rate, edge(rate, sidecars)) for rate in (1000, 100))
        for rate, burst in dict.fromkeys(LIMITS + edges):
            for shape in (EVEN, SKEWED):
                # Long enough that what is held at its beginning and its end is little of what is admitted.
                seconds = 70 if (rate, burst) in LIMITS else 30
                yield Case("steady", rate, burst, sidecars, shape, seconds=seconds)
        yield Case("steady", *USUAL, sidecars, BURSTY, seconds=70)
        yield Case("steady", 10_000, 10_000, sidecars, BURSTY)
        yield Case("steady", *USUAL, sidecars, demand=1.1)
    yield from calls(SECONDS_OF_CALLS)
    for fault in ("paused", "killed", "flushed", "failover", "two-primaries", "reshard"):
        for sidecars in SIDECARS:
            for shape in SHAPES:
                yield Case("faults", *USUAL, sidecars, shape, fault=fault, seconds=32)
            # What is lost at once is most here.
            yield Case("faults", 10_000, 10_000, sidecars, fault=fault, seconds=32)
    for fault in ("paused", "killed"):
        yield Case("faults", *USUAL, 3, fault=fault, seconds=70)
    for policy in (OPEN, SHARE):
        for fault in ("away", "stopped"):
            for sidecars in (3, 20):
                for shape in (EVEN, SKEWED):
                    yield Case("policies", *USUAL, sidecars, shape, policy=policy, fault=fault, seconds=20)


def quick():
    """Some of it, in short: a few minutes."""
    for sidecars in (3, 50):
        for shape in (EVEN, SKEWED):
            yield Case("steady", *USUAL, sidecars, shape, seconds=12, warm=2)
    yield Case("steady", *USUAL, 20, BURSTY, seconds=12, warm=2)
    for case in calls(6):
        if case.sidecars != 3:
            yield replace(case, warm=2)
    for fault in ("paused", "killed", "flushed", "failover", "reshard"):
        yield Case("faults", *USUAL, 3, fault=fault, seconds=28)
    for policy in (OPEN, SHARE):
        yield Case("policies", *USUAL, 3, policy=policy, fault="stopped", seconds=16)


# In its first lease a sidecar learns what a key needs, by some ten calls; those are a small part of a minute's.
SECONDS_OF_CALLS = 60


def calls(seconds):
    """Far enough below the limit that nobody is refused."""
    for rate, burst, keys in ((10_000, 10_000, 1), (1000, 200, 1), (100, 100, 1), (20, 20, 1000)):
        for sidecars in (1, 3, 10):
            yield Case("calls", rate, burst, sidecars, demand=0.9, keys=keys, seconds=seconds)
