#!/usr/bin/env python3
"""Whether a proxy's keep-alive connections to its upstream ever go stale: requests that are sent just
when the upstream ends the connection, through Pannier, nginx, HAProxy and Envoy in one run.

Each client connection has an endpoint of its own, so that the proxy's connection to it has idled
exactly since the last answer. What counts is what clients see: anything but the right answer is a
failure. And what upstreams see: a request that they acted on twice.

Prints what each system failed and the promises that Pannier misses, and writes
target/bench/keepalive.json. With --publish the README's table and docs/keepalive-bench.md are written
from it. Ends with 1 if Pannier misses a promise.
"""

import argparse
import json
import signal
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# What the benches have in common is of the peers' bench. Behind our own files: some names are the same.
sys.path.append(str(HERE.parent / "peers"))

import envoy
import haproxy
import judge
import measure
import nginx
import pannier
import rows as known
import table
from edge import Edge
from machine import machine, raise_file_limit, two_cores
from rig import Rig, find_envoy

SYSTEMS = {
    "pannier": pannier.start,
    "nginx": nginx.start,
    "nginx-retry": partial(nginx.start, retries=True),
    "haproxy": haproxy.start,
    "haproxy-retry": partial(haproxy.start, retries=True),
    "envoy": envoy.start,
    "envoy-retry": partial(envoy.start, retries=True),
}
ROWS = {row.name: row for row in known.rows()}
# The longest timeout of a quick run; Node adds a second to its own.
QUICK = 2000
ENDS = (signal.SIGTERM, signal.SIGINT)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target/release"
    parser.add_argument("--pannier", type=Path, default=built / "pannier", help="the program to measure")
    parser.add_argument("--examples", type=Path, default=built / "examples", help="where `edge` is")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench", help="where files and results go")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, and no timeout of 5 s: some minute")
    parser.add_argument("--row", action="append", choices=ROWS, metavar="ROW",
                        help="only this row; may repeat: " + ", ".join(ROWS))
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="only this system; may repeat")
    parser.add_argument("--publish", action="store_true", help="writes the README's part, and docs/keepalive-bench.md")
    return parser.parse_args()


def main():
    asked = arguments()
    rows = [row for row in ROWS.values() if chosen(row, asked)]
    rig, program = prepare(asked)
    systems = {name: start for name, start in SYSTEMS.items() if not asked.system or name in asked.system}
    if not rig.envoy:
        print("envoy is left out: not installed; `tests/support/install bench` does", file=sys.stderr)
        systems = {name: start for name, start in systems.items() if not name.startswith("envoy")}
    figures = measure.QUICK if asked.quick else measure.FULL
    result = run(rig, program, systems, rows, figures)
    missed = judge.missed(result, whole=not (asked.quick or asked.row))
    (Path(rig.folder) / "keepalive.json").write_text(json.dumps(result | {"missed": missed}, indent=1) + "\n")
    show(result, missed, asked.publish)
    return 1 if missed else 0


def chosen(row, asked):
    if asked.row:
        return row.name in asked.row
    return not asked.quick or row.idle <= QUICK or row.reusable < 1


def prepare(asked):
    """Where things are, and the program `edge`."""
    proxy_core, load_core = two_cores()
    raise_file_limit()
    folder, program = asked.folder.resolve(), asked.examples.resolve() / "edge"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (asked.pannier, program):
        if not path.exists():
            raise SystemExit(f"{path} is not there: `cargo build --release --bin pannier --example edge` builds it")
    # Of what the other bench needs nothing but the programs to compare.
    rig = Rig(str(folder), "", proxy_core, load_core, pannier=str(asked.pannier.resolve()), floor="", load="",
              envoy=find_envoy(folder) or find_envoy(ROOT / "target/bench"))
    return rig, program


def run(rig, program, systems, rows, figures):
    """Everything, from the start of what it takes to its end."""
    bench = Edge(program, rig.load_core)
    try:
        lanes = measure.plan(systems, rows, figures)
        steps = measure.Run(bench, lanes, figures)
        steps.begin(rig, systems, rows)
        steps.steps(pannier.learned)
    finally:
        bench.stop()
        rig.stop()
    return {"machine": machine(), "exact": steps.exact, "rows": [
        {"system": one.system, "row": one.row.name, "title": one.row.title, "method": one.method, "new": one.fresh,
         "hint": one.row.hint, "idle_ms": one.row.idle, "reusable": one.row.reusable, "lanes": len(one.endpoints), **one.counts}
        for one in lanes]}


def show(result, missed, publish):
    print("\n".join([*table.whole(result), "", *table.promises(missed)]))
    if publish:
        (ROOT / table.ALL).write_text(table.page(result, missed))
        table.publish(ROOT / "README.md", result)


def end(*_):
    """Whoever ends the bench ends what it started, too. Once: a second signal is not to stop that."""
    for sign in ENDS:
        signal.signal(sign, signal.SIG_IGN)
    sys.exit("ended")


if __name__ == "__main__":
    for sign in ENDS:
        signal.signal(sign, end)
    sys.exit(main())
