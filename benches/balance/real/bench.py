#!/usr/bin/env python3
"""Eight endpoints of unequal speed behind one caller's sidecar: how long requests take through Pannier,
Envoy and HAProxy, as one plain hop and as pairs of sidecars over mTLS.

Slices of load alternate between the systems in one run, and all meet the same requests at the same
times. Clients wait for nobody: a request that is late because those before it are counts as late.

Prints a table, and writes target/bench/balance-real.json. --resume measures only what the file does
not have yet, of this machine and this program, and --minutes ends before the end. With --publish the
README's table and docs/balance-real.md are written from what the file then has. Ends with 1 if
clients were late, so that nothing of it counts.
"""

import argparse
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHES = HERE.parent.parent
ROOT = BENCHES.parent
# What the benches have in common is of these two. Behind our own files: some names are the same.
sys.path += [str(BENCHES / "peers"), str(BENCHES / "keepalive")]

import scenarios
import slices
import table
from book import Book
from edge import Edge
from machine import raise_file_limit, two_cores
from meshes import KINDS, SYSTEMS
from rig import Rig, find_envoy
from scenarios import Span

SCENARIOS = {scenario.name: scenario for scenario in scenarios.ALL}
ENDS = (signal.SIGTERM, signal.SIGINT)
# A client that is later than that, in milliseconds, at p99.
LATE = 5


@dataclass(frozen=True)
class Figures:
    """How much is measured of each load."""

    rounds: int
    span: Span


FULL = Figures(6, Span(1, 4))
# Some loads, in short slices.
QUICK, QUICK_LOADS = Figures(2, Span(0.5, 2)), {"unequal": (80,), "dead": (70,), "overload": (110,)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target/release"
    parser.add_argument("--pannier", type=Path, default=built / "pannier", help="the program to measure")
    parser.add_argument("--examples", type=Path, default=built / "examples", help="where `queue` is")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench", help="where files and results go")
    parser.add_argument("--rounds", type=int, default=FULL.rounds, help=f"slices per system (default {FULL.rounds})")
    parser.add_argument("--quick", action="store_true", help="two short rounds of three loads: two minutes")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this scenario; may repeat")
    parser.add_argument("--load", action="append", type=int, help="only this load, in percent; may repeat")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this shape; may repeat")
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="only this system; may repeat")
    parser.add_argument("--resume", action="store_true", help="only what the results do not have yet")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begins no load after so many minutes")
    parser.add_argument("--publish", action="store_true", help="writes the README's part, and docs/balance-real.md")
    return parser.parse_args()


def main():
    asked = arguments()
    figures = QUICK if asked.quick else Figures(asked.rounds, FULL.span)
    rig = prepare(asked)
    keys = [(kind, system) for kind in KINDS for system in SYSTEMS
            if kind in (asked.kind or KINDS) and system in (asked.system or SYSTEMS)]
    if not rig.envoy:
        print("envoy is left out: not installed; `tests/support/install bench` does", file=sys.stderr)
        keys = [(kind, system) for kind, system in keys if system != "envoy"]
    name = "balance-real-quick.json" if asked.quick else "balance-real.json"
    book = Book(Path(rig.folder) / name, rig, figures)
    run(rig, book, list(wanted(asked, book, keys, figures)), keys, figures, asked.minutes)
    rows = list(book.rows())
    if not rows:
        raise SystemExit("nothing was measured")
    print("\n".join([*table.whole(rows), "", *table.method(rows, book.here)]))
    if asked.publish:
        (ROOT / table.ALL).write_text(table.page(rows, book.here, versions(rig, keys)))
        table.publish(ROOT / "README.md", rows, book.here)
    late = [row for row in rows if row["late_p99_us"] > LATE * 1000]
    for row in late:
        print(f"{row['scenario'].name} at {row['load']} %, {row['system']} {row['kind']}: clients were late", file=sys.stderr)
    return 1 if late else 0


def prepare(asked):
    """Where things are, and the certificates of the sidecars."""
    proxy_core, load_core = two_cores()
    raise_file_limit()
    folder, program = asked.folder.resolve(), asked.examples.resolve() / "queue"
    certs = folder / "certs"
    certs.mkdir(parents=True, exist_ok=True)
    subprocess.run(["bash", BENCHES / "peers/certs.sh", certs], check=True, capture_output=True)
    for path in (asked.pannier, program):
        if not path.exists():
            raise SystemExit(f"{path} is not there: `cargo build --release --bin pannier --example queue` builds it")
    return Rig(str(folder), str(certs), proxy_core, load_core, pannier=str(asked.pannier.resolve()), floor="",
               load=str(program), envoy=find_envoy(folder) or find_envoy(ROOT / "target/bench"))


def wanted(asked, book, keys, figures):
    """Each scenario that is to be measured, with its loads."""
    for scenario in SCENARIOS.values():
        loads = QUICK_LOADS.get(scenario.name, ()) if asked.quick else scenario.loads
        loads = [share for share in loads if share in (asked.load or loads)
                 and not (asked.resume and book.has(scenario, share, keys, figures.rounds))]
        if loads and scenario.name in (asked.scenario or SCENARIOS):
            yield scenario, loads


def run(rig, book, chosen, keys, figures, minutes):
    """Scenario by scenario, each with sidecars of its own, which go on from one load to the next."""
    until = time.monotonic() + minutes * 60
    applications = Edge(Path(rig.load), rig.load_core, "serve", "--workers", scenarios.WORKERS)
    try:
        ports = applications.do(begin=[])["ports"]
        for scenario, loads in chosen:
            if time.monotonic() > until:
                break
            meshes = slices.start(rig, applications, ports, scenario, keys)
            for share in loads:
                if time.monotonic() > until:
                    break
                book.keep(scenario, share, slices.alternate(rig, applications, meshes, scenario, share, figures))
            for mesh in meshes.values():
                mesh.stop()
    finally:
        applications.stop()
        rig.kill(list(rig.started))


def versions(rig, keys):
    """What was measured."""
    commands = {"pannier": [rig.pannier, "--version"], "haproxy": ["haproxy", "-v"], "envoy": [rig.envoy, "--version"]}
    return {system: version(commands[system]) for system in dict.fromkeys(system for _, system in keys)}


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
