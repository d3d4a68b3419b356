"""What is measured: the rows, and the steps of each for one system. Rows of one lane come one after the
other, lanes run side by side. Times are in seconds."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from backend import ONE, SIX, TWO

# A change is at least so long after the last, or four TTLs: a name that is seen to flap is another case.
CALM = 8
# How long after DNS has come back a system may take to answer.
BACK = 60


@dataclass
class Row:
    """What a DNS server does, and what is seen of it."""

    name: str
    title: str
    lane: int
    ttl: int
    # What is done with one system, and returns what came of it.
    steps: Callable
    records: dict = field(default_factory=lambda: {"A": [ONE]})
    silent_from_start: tuple = ()
    # The steps begin with the system's start.
    cold: bool = False
    # Between an answer and the next request of a connection.
    pause: float = 0.04


def follow(ttl, changes, lane):
    """The record moves to the other backend just after the system has asked: the worst moment for it.
    What counts is the last request that still reached the old one."""
    calm = max(4 * ttl, CALM)

    async def steps(world):
        took, zone = [], world.zone
        for old, new in itertools.islice(itertools.cycle(((ONE, TWO), (TWO, ONE))), changes):
            await zone.answered("A", 2 * ttl + 5)
            moved = time.monotonic()
            was_there = world.backends.reached(world.tag, old) > moved - 1
            zone.records["A"] = [new]
            await asyncio.sleep(calm)
            # Who never followed the last change has nothing to leave now.
            if was_there:
                took.append(round(max(world.backends.reached(world.tag, old) - moved, 0), 3))
        return {"seconds": took, "calm": calm, **world.counts()}

    return Row(f"follow-{ttl}", f"a change, TTL {ttl} s", lane, ttl, steps, pause=0.02)


def queries(ttl, seconds, lane):
    """What is asked for one name in use."""

    async def steps(world):
        await asyncio.sleep(2 * ttl)
        begin = time.monotonic()
        await asyncio.sleep(seconds)
        asked = world.zone.count(begin, begin + seconds)
        return {"asked": asked, "minutes": seconds / 60, **world.counts()}

    return Row(f"queries-{ttl}", f"queries a minute, TTL {ttl} s", lane, ttl, steps)


def outage(mode, title, ttl, seconds, lane, back=BACK):
    """DNS is silent, or fails, and comes back."""

    async def steps(world):
        await asyncio.sleep(3 * ttl)
        down = time.monotonic()
        world.zone.mode = mode
        await asyncio.sleep(seconds)
        returned = time.monotonic()
        world.zone.mode = "answer"
        await asyncio.sleep(back)
        client, counts = world.client, world.counts(down)
        first, success = client.first(True, down), client.first(False, returned)
        return {"down": seconds, "back": back, "first_failure": first, "asked": world.zone.count(down, returned),
                "first_success": success if counts["failed"] else None, **counts}

    return Row(mode, f"{title} for {said(seconds)}, TTL {ttl} s", lane, ttl, steps)


def denied(kinds, ttl, times, lane):
    """The next question of each of these types is answered with NXDOMAIN, once."""
    calm = max(4 * ttl, CALM)

    async def steps(world):
        zone = world.zone
        for _ in range(times):
            await asyncio.sleep(calm)
            zone.denials.update(kinds)
            await asyncio.sleep(calm)
            # Whoever did not ask is not to be denied later.
            zone.denials.clear()
        return {"times": times, **world.counts()}

    title = f"one NXDOMAIN for {' and for '.join(kinds)}" + (f", {times} times" if times > 1 else "")
    return Row("denied-" + "-".join(kinds).lower(), title, lane, ttl, steps)


def family(silent, cold, ttl, seconds, lane):
    """Questions of one type are never answered, from the system's start or later. The other type has
    an address; where the silent one was known once, it had one, too."""
    answered, address = ("A", ONE) if silent == "AAAA" else ("AAAA", SIX)
    records = {answered: [address]}
    if silent == "A" and not cold:
        records["A"] = [ONE]

    async def steps(world):
        if cold:
            await asyncio.sleep(seconds)
            began, client = world.began, world.client
            listens = client.listens - began if client.listens else None
            return {"listens": listens, "first_success": client.first(False, began), "cold": True, "for": seconds,
                    **world.counts(began)}
        await asyncio.sleep(3 * ttl)
        since = time.monotonic()
        world.zone.silent.add(silent)
        await asyncio.sleep(seconds)
        return {"first_failure": world.client.first(True, since), "for": seconds, **world.counts(since)}

    name = f"{silent.lower()}-silent-{'cold' if cold else 'running'}"
    title = f"{silent} never answered, {'at the start' if cold else 'while it runs'}"
    return Row(name, title, lane, ttl, steps, records, silent_from_start=(silent,) if cold else (), cold=cold)


def said(seconds):
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


SILENT, FAILING = "DNS silent", "SERVFAIL to everything"


def full():
    """In the order in which they are shown; some 12 minutes."""
    return [
        follow(1, 5, lane=2), follow(5, 5, lane=2), follow(30, 3, lane=1),
        queries(5, 240, lane=3), queries(30, 240, lane=2),
        outage("silent", SILENT, 5, 600, lane=0), outage("servfail", FAILING, 5, 120, lane=1),
        denied(("A", "AAAA"), 2, 3, lane=2), denied(("A",), 2, 3, lane=2),
        family("AAAA", False, 2, 45, lane=3), family("AAAA", True, 2, 75, lane=3),
        family("A", False, 2, 45, lane=3), family("A", True, 2, 75, lane=3),
    ]


def quick():
    """A taste of each; some minute."""
    return [
        follow(1, 2, lane=1),
        queries(1, 20, lane=2),
        outage("silent", SILENT, 1, 20, lane=0, back=15), outage("servfail", FAILING, 1, 10, lane=1, back=8),
        denied(("A", "AAAA"), 1, 1, lane=2), denied(("A",), 1, 1, lane=2),
        family("AAAA", False, 1, 8, lane=3), family("AAAA", True, 1, 12, lane=3),
        family("A", False, 1, 8, lane=3), family("A", True, 1, 12, lane=3),
    ]
