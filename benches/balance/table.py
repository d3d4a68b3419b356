"""The tables that people read: every case, and the few lines of the README."""

import judge
import markers
import picture
from rows import ALLOWANCE, COMMON, OURS, POLICIES, SCENARIOS

BEGIN, END = "<!-- balance -->", "<!-- /balance -->"
PAGE, FOLDER = "docs/balance-bench.md", "docs/balance"

NAMES = {**picture.NAMES, OURS: "**Pannier**"}

ABOUT = {
    "alike": "All servers have four workers of the same speed.",
    "heterogeneous": "Servers have 2, 4 or 8 workers, of speed 0.6, 1 or 1.6.",
    "antagonists": "Something takes 20 to 50 % of a server's speed, for 2 s of every 4 s on average.",
    "slow-starts": "Every server is replaced once a minute. A new one begins at a tenth of its speed, and has all of it after 5 s; then the old one leaves.",
    "pauses": "Each server stands still for 50 to 150 ms, every 2 s on average.",
    "one-slow": "One server has a tenth of the others' speed.",
    "failing-fast": "One server begins to answer everything with an error, after 0.2 ms.",
    "dead": "One server dies: what it has is lost, and it refuses connections.",
    "overload": "Clients ask for 110 % of what the servers can do, and give up after 500 ms.",
}

HOW = {
    "random": "any server.",
    "round-robin": "each client in turn, from a place of its own.",
    "least-request": "Envoy's LEAST_REQUEST as Istio configures it: of two random servers the one with fewer requests of this client. Outlier detection is off, as it is by default; two more attempts follow a connection that failed.",
    "least-connections": "HAProxy's `leastconn`: the server with the fewest requests of this client, and of equals the one whose number has not changed for longest. Health checks are off, as they are by default, and so is `redispatch`.",
    "peak-ewma": "linkerd2-proxy's balancer: of two random servers the one with the lesser product of peak EWMA latency (decay 10 s, 30 ms for one that is new) and its requests. Failure accrual and retries are off, as they are by default; a server that takes no connection is no choice.",
    "prequal": "as its paper has it (NSDI 2024): three probes for each request, a pool of 16, reuse by its formula, one removed for each request, hot from the quantile 2^-0.25 on; clients take no answers of a server that has just failed them.",
    "oracle": "no contender: one queue for all, which knows the speed of each server at each moment, and what fails. What comes is not known to it either.",
}


def table(head, body, words=1):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * words + "--:|" * (len(head) - words),
            *("| " + " | ".join(line) + " |" for line in body)]


def time(micros):
    """Milliseconds, or seconds where nobody would count them as such."""
    if micros <= 1:
        return "no answer"
    if micros >= 10_000_000:
        return "> 10 s"
    return f"{micros / 1_000_000:.1f} s" if micros >= 1_000_000 else f"{micros / 1000:.0f}" if micros >= 99_500 else f"{micros / 1000:.1f}"


def titles(rows):
    """Scenarios that were simulated, in order."""
    return list(dict.fromkeys(row.title for row in rows))


def known(rows):
    return [policy for policy in POLICIES if any(policy in row.runs for row in rows)]


def promises(rows):
    """What is promised, and what became of it."""
    body = [[one.promise, f"{one.cases}", one.word(), one.worst()] for one in judge.verdicts(rows)]
    return table(["promise", "cases", "", "the worst"], body)


def times(rows):
    """p99 of all cases and policies, and how ours compares."""
    policies = known(rows)
    head = ["clients x servers", "load", *(NAMES[policy] for policy in policies), "against two choices", "against the best rival"]
    body = []
    for row in rows:
        cells = [time(row.mean(policy, "p99_us")) if policy in row.runs else "" for policy in policies]
        body.append([row.size, f"{row.load} %", *cells, against(row, COMMON), against(row, row.best_rival())])
    return table(head, body, 2)


def against(row, rival):
    if rival is None or not row.runs.keys() >= {OURS, rival}:
        return ""
    return f"{row.ratio(OURS, rival)}" + ("" if rival == COMMON else f" {rival}")


def faults(rows):
    """What a server that has failed still gets."""
    policies = known(rows)
    cells = {
        "of all, in the first second": lambda row, policy: f"{row.mean(policy, 'share_within'):.1%}",
        "of all, later": lambda row, policy: f"{row.mean(policy, 'share_later'):.2%}",
        "by a client, after its first failure": lambda row, policy: f"{row.mean(policy, 'again_mean'):,.1f}, most {max(row.all(policy, 'again_most')):,}",
        "errors": lambda row, policy: f"{row.mean(policy, 'errors'):.2%}",
    }
    body = [[row.size, f"{row.load} %", name, *(cell(row, policy) if policy in row.runs else "" for policy in policies)]
            for row in rows for name, cell in cells.items()]
    return table(["clients x servers", "load", "requests to it", *(NAMES[policy] for policy in policies)], body, 3)


def goodput(rows):
    policies = known(rows)
    body = [[row.size, f"{row.load} %", *(f"{row.mean(policy, 'goodput'):.1%}" if policy in row.runs else "" for policy in policies)]
            for row in rows]
    return table(["clients x servers", "load", *(NAMES[policy] for policy in policies)], body, 2)


def whole(rows):
    """Every figure of a scenario's rows."""
    head = ["clients x servers", "load", "policy", "mean", "p50", "p99", "p99.9", "errors", "goodput", "probes per request",
            "p99 against two choices", "against the best rival"]
    body = []
    for row in rows:
        best = row.best_rival()
        for policy in row.policies():
            ratios = [f"{row.ratio(policy, other)}" if other in row.runs and other != policy else "" for other in (COMMON, best)]
            body.append([row.size, f"{row.load} %", NAMES[policy],
                         *(time(row.mean(policy, name)) for name in ("mean_us", "p50_us", "p99_us", "p999_us")),
                         f"{row.mean(policy, 'errors'):.2%}", f"{row.mean(policy, 'goodput'):.1%}",
                         f"{row.mean(policy, 'probes'):.2f}", *ratios])
    return table(head, body, 3)


def file(title):
    return title.replace(", ", "-")


def page(rows, pictures):
    """The page of the bench."""
    seeds = {len(runs) for row in rows for runs in row.runs.values()}
    yield "# Choosing an endpoint"
    yield ""
    yield ("Written by `benches/balance/report.py` from what `benches/balance` has simulated; [README](../README.md) has the short of it. "
           "Clients ask at random times, each for itself; work is exponential, 20 ms on average; a way through the network takes 0.08 to "
           "0.12 ms. The load is in percent of what the servers can really do in the time that is measured. Two seconds come before that, and eight under overload; "
           "it is 110,000 requests long, and 2.5 s at least. A policy that does not notice that a server is slower than others sends more to it "
           "than it can ever do: its p99 is then as long as the run. Of two that are drawn at random the better one is no way out of that where servers differ much: "
           "however good a server is, of n it has at most 2/n of all requests. "
           f"Every policy meets the same requests, servers and faults; seeds of each case: {span(seeds)}. Times are in milliseconds, "
           "and geometric means over the seeds. Ratios are between p99s of the same seed, with 95 % confidence; below 1 is better. The best rival is the one "
           f"with the least p99 of those that fail no more than {ALLOWANCE:.1%} of requests more than Pannier does.")
    yield from ("", *promises(rows), "", "What is compared:", "")
    yield from (f"- {NAMES[policy]}: {HOW[policy]}" for policy in POLICIES if policy in HOW)
    for title in titles(rows):
        own = [row for row in rows if row.title == title]
        yield from ("", f"## {title[0].upper()}{title[1:]}", "", f"{ABOUT[own[0].scenario]} [Every figure](balance/{file(title)}.md).", "")
        if title in pictures:
            yield from (f"![p99 against load, {title}: the numbers are in the table](balance/{file(title)}.svg)", "")
        if own[0].scenario == "overload":
            yield from ("Answers in time, as a share of what the servers can do:", "", *goodput(own))
            continue
        if own[0].scenario in judge.FAULTS:
            yield from (*faults(own), "", "p99 of what is answered:", "")
        yield from times(own)
    yield ""


def span(numbers):
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


# What the README shows.
SHORT_SIZES, SHORT_LOAD = ("10x10", "100x100", "1000x1000"), 80


def short(rows):
    """The lines of the README."""
    policies = [policy for policy in known(rows) if policy != "random"]
    body = []
    for scenario in SCENARIOS:
        if scenario in (*judge.FAULTS, "overload"):
            continue
        for row in rows:
            if row.title == scenario and row.size in SHORT_SIZES and row.load == SHORT_LOAD:
                cells = [time(row.mean(policy, "p99_us")) if policy in row.runs else "" for policy in policies]
                body.append([f"{scenario.replace('-', ' ')}, {row.size}", *cells])
    yield from table([f"p99 in ms at {SHORT_LOAD} % load, clients x servers", *(NAMES[policy] for policy in policies)], body)
    yield ""
    yield from promises(rows)
    yield ""
    yield f"[Every case, with pictures, and how each is configured]({PAGE})."


def publish(root, rows):
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pictures = set()
    for title in titles(rows):
        own = [row for row in rows if row.title == title]
        drawn = picture.draw(title, own)
        if drawn:
            pictures.add(title)
            (folder / f"{file(title)}.svg").write_text(drawn)
        text = [f"# {title[0].upper()}{title[1:]}", "", f"{ABOUT[own[0].scenario]} [What this is](../balance-bench.md).", "", *whole(own), ""]
        (folder / f"{file(title)}.md").write_text("\n".join(text))
    (root / PAGE).write_text("\n".join(page(rows, pictures)))
    markers.publish(root / "README.md", BEGIN, END, "\n".join(short(rows)))
