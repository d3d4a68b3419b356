#!/usr/bin/env python3
"""What clients see of a name: how soon a change of its record is followed, what that costs in queries,
and what fails while DNS does; through Pannier, nginx, HAProxy and Envoy in one run.

Each system has, in each row, a process, a DNS server that it alone asks, and a few clients. Two
backends answer with their address throughout, so that whatever fails does so for a name's sake.

Prints a table and the promises that Pannier misses, and writes target/bench/dns.json. With --publish
the README's table and docs/dns-bench.md are written from it. Ends with 1 if Pannier misses a promise.
"""

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# What the benches have in common is of the peers' bench. Behind our own files: some names are the same.
sys.path.append(str(HERE.parent / "peers"))

import envoy
import haproxy
import judge
import nginx
import pannier
import rows as known
import table
from backend import Backends
from machine import machine, two_cores
from rig import find_envoy
from world import Bench, World

SYSTEMS = {
    "pannier": pannier.start,
    "nginx": nginx.start,
    "haproxy": haproxy.start,
    "haproxy-held": partial(haproxy.start, held=True),
    "haproxy-kept": partial(haproxy.start, kept=True),
    "envoy": envoy.start,
}
# Systems that are measured only in rows whose name begins so.
ONLY = {"haproxy-kept": "follow"}
ENDS = (signal.SIGTERM, signal.SIGINT)
TICK = 0.01


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in known.full()]
    parser.add_argument("--pannier", type=Path, default=ROOT / "target/release/pannier", help="the program to measure")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench", help="where files and results go")
    parser.add_argument("--quick", action="store_true", help="TTLs of 1 s, and DNS is down for 20 s: some minute")
    parser.add_argument("--row", action="append", metavar="ROW", help="only this row; may repeat: " + ", ".join(names))
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="only this system; may repeat")
    parser.add_argument("--publish", action="store_true", help="writes the README's part, and docs/dns-bench.md")
    return parser.parse_args()


def main():
    asked = arguments()
    every = known.quick() if asked.quick else known.full()
    if unknown := set(asked.row or ()) - {row.name for row in every}:
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are {', '.join(row.name for row in every)}")
    rows = [row for row in every if not asked.row or row.name in asked.row]
    bench = prepare(asked)
    systems = {name: start for name, start in SYSTEMS.items() if not asked.system or name in asked.system}
    if not bench.envoy and systems.pop("envoy", None):
        print("envoy is left out: not installed; `tests/support/install bench` does", file=sys.stderr)
    try:
        result = asyncio.run(run(bench, systems, rows))
    finally:
        bench.stop()
    missed = judge.missed(result)
    (Path(bench.folder) / "dns.json").write_text(json.dumps(result | {"missed": missed}, indent=1) + "\n")
    print("\n".join([*table.lines(result["rows"]), "", table.method(result), "", *table.kinds(result), "",
                     *table.promises(missed)]))
    if asked.publish:
        (ROOT / table.ALL).write_text(table.page(result, missed))
        table.publish(ROOT / "README.md", result)
    return 1 if missed else 0


def prepare(asked):
    """Where things are."""
    proxy_core, load_core = two_cores()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not asked.pannier.exists():
        raise SystemExit(f"{asked.pannier} is not there: `cargo build --release --bin pannier` builds it")
    return Bench(str(folder), "", proxy_core, load_core, pannier=str(asked.pannier.resolve()), floor="", load="",
                 envoy=find_envoy(folder) or find_envoy(ROOT / "target/bench"))


async def run(bench, systems, rows):
    """Every row, for all systems at once, so that whatever else the machine does meets all of them."""
    backends, late = await Backends().start(), []
    clock = asyncio.create_task(tick(late))
    lanes = {}
    for row in rows:
        lanes.setdefault(row.lane, []).append(row)
    try:
        async with asyncio.TaskGroup() as group:
            done = [group.create_task(run_lane(bench, backends, systems, own)) for own in lanes.values()]
    finally:
        clock.cancel()
        backends.stop()
    order = [row.name for row in rows]
    found = [one for lane in done for one in lane.result()]
    found.sort(key=lambda one: order.index(one["row"]))
    return {"machine": machine(), "versions": versions(bench, systems), "late_ms": quantiles(late), "rows": found}


async def run_lane(bench, backends, systems, rows):
    """One row after the other."""
    found = []
    for row in rows:
        print(f"{row.title}: begins", file=sys.stderr)
        worlds = [World(bench, backends, name, start, row) for name, start in systems.items()
                  if row.name.startswith(ONLY.get(name, ""))]
        found += await asyncio.gather(*(world.run() for world in worlds))
    return found


async def tick(late):
    """How late the bench's own timers are, in milliseconds."""
    while True:
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        late.append((time.monotonic() - due) * 1000)


def quantiles(values):
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(values), 1)}


def versions(bench, systems):
    """What was measured."""
    commands = {"pannier": [bench.pannier, "--version"], "nginx": ["nginx", "-v"], "haproxy": ["haproxy", "-v"],
                "haproxy-held": ["haproxy", "-v"], "haproxy-kept": ["haproxy", "-v"], "envoy": [bench.envoy, "--version"]}
    return {name: version(commands[name]) for name in systems}


def version(command):
    """The first word that looks like one."""
    done = subprocess.run(command, capture_output=True, text=True)
    words = (done.stdout + done.stderr).replace("/", " ").split()
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 2), "")


def end(*_):
    """Whoever ends the bench ends what it started, too. Once: a second signal is not to stop that."""
    for sign in ENDS:
        signal.signal(sign, signal.SIG_IGN)
    sys.exit("ended")


if __name__ == "__main__":
    for sign in ENDS:
        signal.signal(sign, end)
    sys.exit(main())
