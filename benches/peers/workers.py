"""What only Pannier is asked: how two workers share the work, and how it holds against readers that
do not read. Each function returns rows as `report` makes them."""

import sys
from functools import partial

import load
import pannier
import report
from machine import metrics
from slow import SlowReaders

# Callers, each a sidecar of its own, and slow readers behind each.
CALLERS, READERS = 100, 10
# Nobody reads this to its end.
ENDLESS = 2**40
FAST_BODY = 64 * 2**10


def two(rig, asked):
    """64 connections through one worker on its core, and through two on both, in turns. The load's
    core is one of the two, so only CPU per request is compared."""
    both = f"{rig.proxy_core},{rig.load_core}"
    running = {"one-worker": pannier.hop(rig), "two-workers": pannier.hop(rig, workers=2, core=both)}
    slices, held = {case: [] for case in running}, []
    for number in range(asked.rounds + 1):
        for case, system in running.items():
            look = partial(look_at, system, held) if case == "two-workers" else None
            one = load.http(rig, system.port, system.processes, asked.seconds if number else 1, 64, at_start=look)
            slices[case] += [one] if number else []
        print(f"two-workers: round {number} of {asked.rounds}", file=sys.stderr)
    rows = []
    for case, system in running.items():
        row = report.row((case, "pannier"), slices[case], sum(p.memory_mib() for p in system.processes))
        rows.append(row)
        rig.stop(system.processes)
    ours, theirs = slices["two-workers"], slices["one-worker"]
    rows[1]["against_one_worker"] = report.ratios(ours, theirs)["us_per_request"]
    rows[1]["connections_per_worker"] = held[-1]
    rows[1]["most_apart"] = max(max(each) - min(each) for each in held)
    return rows


def look_at(system, held):
    """Notes how many connections each worker has."""
    series = 'pannier_downstream_connections{direction="outbound",worker="%d"}'
    now = metrics(system.probes)
    held.append([int(now[series % worker]) for worker in range(2)])


def shares_h1(rig, asked):
    """Which share of the work each of two workers does, with four connections."""
    put_on = lambda system, look: load.http(rig, system.port, system.processes, asked.seconds, 4, at_start=look)
    return shares(rig, asked, "shares/h1-4", put_on)


def shares_h2(rig, asked):
    """As `shares_h1`, with one connection of HTTP/2 and 100 streams."""
    put_on = lambda system, look: load.grpc(rig, system.port, system.processes, asked.seconds, 1, 100)
    return shares(rig, asked, "shares/h2-1", put_on)


def shares(rig, asked, case, put_on):
    system = pannier.hop(rig, workers=2, core=f"{rig.proxy_core},{rig.load_core}")
    put_on(system, lambda: None)
    slices, held, parts = [], [], []
    for number in range(asked.rounds):
        print(f"{case}: round {number + 1} of {asked.rounds}", file=sys.stderr)
        before = system.processes[0].thread_seconds("worker-")
        slices.append(put_on(system, partial(look_at, system, held)))
        after = system.processes[0].thread_seconds("worker-")
        spent = sorted(after[name] - before[name] for name in after)
        parts.append(spent[-1] / max(sum(spent), 1e-9))
    row = report.row((case, "pannier"), slices, system.processes[0].memory_mib())
    row["busiest_worker_share"] = report.quartiles(parts)
    if held:
        row["connections_per_worker"] = held[-1]
        row["most_apart"] = max(max(each) - min(each) for each in held)
    rig.stop(system.processes)
    return [row]


def slow_readers(rig, asked):
    """1,000 answers without end that are hardly read, through 100 callers' sidecars and that of one
    application; and beside them a caller that does read. In turns: without, and with."""
    inner, receiver, _ = pannier.inbound(rig, "pannier-slow-in")
    callers = []
    for number in range(CALLERS):
        # The route's timeout would end the slow answers, and hide what they hold.
        port, process, _ = pannier.outbound(rig, f"pannier-slow-{number}", inner, timeout="1h")
        callers.append((port, process))
    port, first = callers[0]
    def fast():
        return load.tried("slow-readers", load.http, rig, port, [first, receiver], asked.seconds, 1, body=FAST_BODY)
    fast()
    before = [process.memory_mib() for process in (receiver, *(process for _, process in callers))]
    alone, beside, failures = [], [], 0
    # Ten alternations of thousands of connections would take longer than they tell.
    for number in range(min(asked.rounds, 5)):
        print(f"slow-readers: round {number + 1} of {min(asked.rounds, 5)}", file=sys.stderr)
        alone.append(fast())
        with SlowReaders([port for port, _ in callers], READERS, f"/{ENDLESS}") as readers:
            beside.append(fast())
            failures += readers.failures()
            after = [process.memory_mib() for process in (receiver, *(process for _, process in callers))]
    row = report.row(("slow-readers", "pannier"), beside, after[0])
    row["failures"] += failures
    row["alone_p99_us"] = report.median(alone, "p99_us", 0)
    # None, where the one that reads was starved: it has failed then.
    row["against_alone"] = report.ratios(beside, alone).get("p99_us")
    row["receiver_growth_mib"] = round(after[0] - before[0], 1)
    row["caller_growth_mib"] = round(max(one - two for one, two in zip(after[1:], before[1:])), 1)
    rig.stop([receiver, *(process for _, process in callers)])
    return [row]
