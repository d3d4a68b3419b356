"""What is measured: applications of unequal speed, and what happens to them. A slice is some seconds
of load that do not count, and some that do."""

from collections.abc import Callable
from dataclasses import dataclass

# Each application does so many things at a time, each of which takes so many milliseconds on average
# (exponentially distributed) at a speed of 1. There is one queue in front of its workers.
WORKERS, WORK = 4, 24.0

ALIKE = (1, 1, 1, 1, 1, 1, 1, 1)
UNEQUAL = (1, 1, 1, 1, 0.5, 0.5, 2, 0.1)
ONE_SLOW = (1, 1, 1, 1, 1, 1, 1, 0.1)

# How long a client waits, in milliseconds, where nobody asks how many get what they want in time.
PATIENCE = 5000
# The half that an antagonist is on has half its speed, for so long and every so often.
ANTAGONIST, EVERY = 2000, 4000
# Each application stops for so long, every so often, one after the other.
PAUSE, PAUSED_EVERY = 100, 2000


@dataclass(frozen=True)
class Span:
    """Seconds that do not count, and seconds that do."""

    warm: float
    seconds: float

    @property
    def end(self):
        """In milliseconds, as that of everything that happens."""
        return (self.warm + self.seconds) * 1000

    @property
    def middle(self):
        return (self.warm + self.seconds / 2) * 1000


def nothing(_number, _span):
    return []


@dataclass(frozen=True)
class Scenario:
    """Eight applications, and what happens to them."""

    name: str
    title: str
    # In percent of what the applications can do, all together and on average, before one is lost.
    loads: tuple
    speeds: tuple = ALIKE
    # What happens to an application in a slice, beside having its speed.
    happens: Callable = nothing
    # Of what their speeds come to, the part that is there on average.
    there: float = 1.0
    deadline: float = PATIENCE
    # The sidecar beside an application that dies goes with it.
    dies: int | None = None
    # What is remembered of a slice is not to meet the next one: callers' sidecars are started anew.
    scars: bool = False

    def capacity(self):
        """Requests a second."""
        return sum(self.speeds) * self.there * WORKERS * 1000 / WORK

    def changes(self, span):
        """What `queue` is told of each application."""
        return [[{"at": 0, "to": {"speed": speed}}, *self.happens(number, span)]
                for number, speed in enumerate(self.speeds)]


def times(first, every, until):
    while first < until:
        yield first
        first += every


def antagonist(number, span):
    if number >= len(ALIKE) // 2:
        return []
    return [{"at": at + after, "to": {"speed": speed}} for at in times(0, EVERY, span.end)
            for after, speed in ((0, 0.5), (ANTAGONIST, 1))]


def pauses(number, span):
    first = number * PAUSED_EVERY / len(ALIKE)
    return [{"at": at + after, "to": {"speed": speed}} for at in times(first, PAUSED_EVERY, span.end)
            for after, speed in ((0, 0), (PAUSE, 1))]


def first_one(turn):
    return lambda number, span: [{"at": span.middle, "to": turn}] if number == 0 else []


ALL = [
    Scenario("alike", "Eight alike", (50, 70, 80, 90, 95)),
    Scenario("unequal", "Speeds of 1 (four), 0.5 (two), 2 and 0.1", (50, 70, 80, 90, 95), UNEQUAL),
    Scenario("slow", "One at a tenth of the others' speed", (70, 90), ONE_SLOW),
    Scenario("antagonist", "Half of them at half their speed, for 2 s of 4", (70,), happens=antagonist,
             there=1 - ANTAGONIST / EVERY / 4),
    Scenario("pauses", "Each stops for 100 ms every 2 s, one after the other", (70, 90), happens=pauses,
             there=1 - PAUSE / PAUSED_EVERY),
    Scenario("failing", "One answers 503 at once, from the middle on", (70,), happens=first_one("fails"), scars=True),
    Scenario("dead", "One is killed in the middle", (70,), happens=first_one("dies"), dies=0, scars=True),
    Scenario("overload", "As unequal, and clients that wait for 400 ms", (110,), UNEQUAL, deadline=400),
]
