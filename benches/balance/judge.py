"""What Pannier is held to, and which of it the results miss."""

from dataclasses import dataclass

from rows import BOUND, COMMON, OURS

OF_THE_BEST = 1.03
FAR = 1.10
CLOSED = 0.5
BELOW = 0.70
UNEVEN, BUSY = ("heterogeneous", "antagonists"), 80
GOODPUT = 0.95
AGAIN = 5
SHARE, CLIENT_RATE, FEW = 0.01, 20, 16

FAULTS = ("failing-fast", "dead")


@dataclass
class Verdict:
    """A promise, the cases that it is about, and those that miss it, the worst first."""

    promise: str
    cases: int
    # (how bad, the case, in words)
    missed: list

    def word(self):
        if not self.cases:
            return "not simulated"
        return "met" if not self.missed else f"missed in {len(self.missed)} of {self.cases}"

    def worst(self):
        return self.missed[0][2] if self.missed else ""


def verdicts(rows):
    rows = [row for row in rows if OURS in row.runs and row.runs.keys() - {OURS}]
    timed = [row for row in rows if row.scenario != "overload" and row.best_rival()]
    faults = [row for row in rows if row.scenario in FAULTS]
    return [
        verdict(f"p99 at most {OF_THE_BEST} of the best rival's, everywhere", timed, against_best),
        verdict(f"where two choices are more than {FAR - 1:.0%} from the oracle, half of that closed",
                [row for row in timed if is_far(row)], gap),
        verdict(f"at least {1 - BELOW:.0%} below two choices with servers that differ, from {BUSY} % on",
                [row for row in timed if row.scenario in UNEVEN and row.load >= BUSY and COMMON in row.runs], below),
        verdict(f"more than {GOODPUT:.0%} of what servers can do, at 110 %",
                [row for row in rows if row.scenario == "overload" and row.load > 100], goodput),
        verdict(f"a client sends at most {AGAIN} to a server that failed it", faults, again),
        verdict(f"from a second on less than {SHARE:.0%} of all for it", [row for row in faults if is_busy(row)], share),
    ]


def verdict(promise, rows, judged):
    found = [(bad, row, f"{row.title} {row.size} at {row.load} %: {words}") for row in rows for bad, words in [judged(row)]]
    missed = sorted((one for one in found if one[0] > 0), key=lambda one: -one[0])
    return Verdict(promise, len(rows), missed)


def against_best(row):
    best = row.best_rival()
    ratio = row.ratio(OURS, best)
    return ratio.mean - OF_THE_BEST, f"{ratio} of {best}"


def is_far(row):
    known = COMMON in row.rivals() and BOUND in row.runs
    return known and row.mean(COMMON, "p99_us") > FAR * row.mean(BOUND, "p99_us")


def closed(row):
    """Which share of the gap between two choices and the oracle is closed."""
    ours, common, bound = (row.mean(policy, "p99_us") for policy in (OURS, COMMON, BOUND))
    return (common - ours) / (common - bound)


def gap(row):
    return CLOSED - closed(row), f"{closed(row):.0%} closed"


def below(row):
    ratio = row.ratio(OURS, COMMON)
    return ratio.mean - BELOW, f"{ratio} of two choices"


def goodput(row):
    share = row.mean(OURS, "goodput")
    return GOODPUT - share, f"{share:.1%}"


def again(row):
    most = max(row.all(OURS, "again_most"))
    return most - AGAIN, f"{most}, and {row.mean(OURS, 'again_mean'):.1f} on average"


def is_busy(row):
    """Whether its clients hear enough of few enough servers."""
    rate = min(row.all(OURS, "rate")) / row.clients
    return rate >= CLIENT_RATE and row.servers <= FEW


def share(row):
    most = max(row.all(OURS, "share_later"))
    return most - SHARE, f"{most:.2%} of all"
