"""What is measured: how upstreams treat their connections, and the lanes that are sent on.

A lane is one client connection with an endpoint of its own; the lanes of a row are alike. All times
are in milliseconds."""

from dataclasses import dataclass

METHODS = ("GET", "POST")

# A round trip here takes less than a millisecond, so both sides of the edge are within one of it.
EDGE = (-1.0, 1.0)
# What a relay adds each way. The last request that finds its connection open leaves twice that before
# the end: one way for the answer that began the pause, one for the request.
DELAY = 2.0
RELAYED_EDGE = (-2 * DELAY - 1, 1.0)
# Node's timers count in milliseconds.
NODE_EDGE = (-2.0, 3.0)
# A connection that is closed in a moment after its last answer, whatever its age, has its edge there.
COUNTED_EDGE = (0.0, 1.0)

REQUESTS_OF_A_CONNECTION = 5
# How long each of two timeouts is in force, where it changes.
PERIOD = 4_000.0


@dataclass
class Row:
    """A behaviour of upstreams."""

    name: str
    title: str
    # After which idle time its connections end; the longest, where it changes.
    idle: float
    edge: tuple = EDGE
    # What `edge`, the program, is told; nothing where something else is the upstream.
    behaviour: dict | None = None
    # The `keepAliveTimeout` of a Node server that is the upstream.
    node: int | None = None
    hint: bool = False
    # The lanes' edge moves with what the behaviour has in force.
    changes: bool = False
    # Whether an endpoint that nobody has sent to yet is met at the edge, too.
    fresh: bool = False
    # Of connections that have idled for half of the timeout, how many the behaviour lets be reused.
    reusable: float = 1.0

    @property
    def half(self):
        """A pause that every one of its timeouts allows twice. Of Node's, that which it hints: nobody
        is to know that it adds a second."""
        shortest = min(self.behaviour["idle"]) if self.changes else self.node or self.idle
        return COUNTED_EDGE[1] if self.reusable < 1 else shortest / 2

    @property
    def pause(self):
        """One after which its connection has ended."""
        return 10.0 if self.reusable < 1 else self.idle * 1.2 + 10

    def learning_rounds(self):
        """How many of those pauses show a proxy six ends."""
        return 6 * REQUESTS_OF_A_CONNECTION if self.reusable < 1 else 6


def said(milliseconds):
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 else f"{milliseconds:g} ms"


def own(kind, title, idle, end="fin", edge=EDGE, fresh=False, name=None, **more):
    """A row of upstreams that `edge` is."""
    name = name or f"{kind}-{said(idle).replace(' ', '')}"
    behaviour = {"name": name, "idle": [idle], "end": end} | more
    return Row(name, title.format(said(idle)), idle, edge, behaviour, hint="hint" in more, fresh=fresh)


def node(timeout):
    """Node's HTTP server: from 20.19 on it closes a second after its timeout, and hints the timeout."""
    return Row(f"node-{said(timeout).replace(' ', '')}", f"Node, `keepAliveTimeout` {said(timeout)}",
               timeout + 1000, NODE_EDGE, node=timeout, hint=True)


def counted(kind, title, announced):
    row = own(kind, title, 60_000, name=kind, edge=COUNTED_EDGE, after=REQUESTS_OF_A_CONNECTION, announced=announced)
    row.reusable = 1 - 1 / REQUESTS_OF_A_CONNECTION
    return row


def changing():
    row = own("changing", f"FIN after 1 s and after 200 ms, each for {said(PERIOD)} in turn", 1000, name="changing",
              period=PERIOD)
    row.behaviour["idle"] = [1000, 200]
    row.changes = True
    return row


def rows():
    times = (50, 200, 1000, 5000)
    return [
        *(own("fin", "FIN after {}", idle, fresh=True) for idle in times),
        *(own("rst", "RST after {}", idle, end="rst", fresh=True) for idle in times),
        *(own("half", "half-closed after {}, still acts", idle, end="half", fresh=True) for idle in times),
        *(own("relay", "FIN after {}, behind 2 ms", idle, edge=RELAYED_EDGE, delay=DELAY) for idle in times),
        *(own("hint", "FIN after {}, hinted", idle, hint=idle // 1000, fresh=True) for idle in (1000, 5000)),
        *(node(timeout) for timeout in (1000, 5000)),
        counted("count", "closed after 5 requests, silently", announced=False),
        counted("count-said", "closed after 5 requests, announced", announced=True),
        changing(),
    ]
