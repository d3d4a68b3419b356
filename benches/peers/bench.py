#!/usr/bin/env python3
"""The same work through Pannier, nginx, HAProxy and Envoy, and what it costs each of them.

Every system has one worker on one core; the load and the application share the other. Short slices
alternate between the systems, so that whatever else the machine does meets all of them alike, and a
comparison is the median of the ratios of each round.

Prints every case and how the targets stand, and writes target/bench/peers.json. With --case only the
groups of those cases are measured; what the file has of others stays, if it is of this machine and
this program. With --publish the README's table, docs/peers.md and docs/peers.svg are written from
what the file then has. Ends with 1 if any request failed.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import cases
import idle
import kept
import measure
import picture
import report
import table
import targets
from machine import own_network, raise_file_limit, two_cores
from rig import Rig, find_envoy

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GROUPS = [*cases.loads(), *cases.idles(), *cases.owns()]
CASES = list(dict.fromkeys(case for group in GROUPS for case, _ in group.entries))
SYSTEMS = ("pannier", "nginx", "haproxy", "envoy", "floor")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target/release"
    parser.add_argument("--pannier", type=Path, default=built / "pannier", help="the program to measure")
    parser.add_argument("--examples", type=Path, default=built / "examples", help="where `load` and `floor` are")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench", help="where files and results go")
    parser.add_argument("--rounds", type=int, default=12, help="slices per system (default 12)")
    parser.add_argument("--seconds", type=float, default=2, help="length of a slice (default 2)")
    parser.add_argument("--case", action="append", choices=CASES, metavar="CASE",
                        help="only this case and those measured with it; may repeat: " + ", ".join(CASES))
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="only this system; may repeat")
    parser.add_argument("--publish", action="store_true", help="writes the README's part, and docs/peers.*")
    return parser.parse_args()


def main():
    asked = arguments()
    rig = prepare(asked)
    absent = missing(rig, asked)
    here, results = kept.source(rig), Path(rig.folder) / "peers.json"
    measured = []
    for group in GROUPS:
        wanted = not asked.case or any(case in asked.case for case, _ in group.entries)
        entries = {(case, system): start for (case, system), start in group.entries.items()
                   if wanted and system.split("-")[0] not in absent}
        if not entries:
            continue
        rows = [row | {"rounds": asked.rounds} | here for row in of_group(rig, group, entries, asked)]
        # After each, so that a run that is cut short has not been for nothing.
        kept.write(results, kept.merge(results, rows, CASES, here))
        measured += rows
    rows = kept.read(results)
    show(measured, rows, asked)
    failed = [row for row in measured if row["failures"]]
    for row in failed:
        print(f"{row['case']} {row['system']}: {row['failures']} failed", file=sys.stderr)
    return 1 if failed or not measured else 0


def prepare(asked):
    """The rig, and the certificates of its sidecars."""
    proxy_core, load_core = two_cores()
    raise_file_limit()
    folder = asked.folder.resolve()
    certs = folder / "certs"
    certs.mkdir(parents=True, exist_ok=True)
    subprocess.run(["bash", HERE / "certs.sh", certs], check=True, capture_output=True)
    examples = asked.examples.resolve()
    return Rig(str(folder), str(certs), proxy_core, load_core, pannier=str(asked.pannier.resolve()),
               floor=str(examples / "floor"), load=str(examples / "load"), envoy=find_envoy(folder))


def missing(rig, asked):
    """The systems that are not measured; says aloud which of them should have been."""
    for program in (rig.pannier, rig.floor, rig.load):
        if not Path(program).exists():
            raise SystemExit(f"{program} is not there: `make bench` builds it")
    absent = {system for system in SYSTEMS if asked.system and system not in asked.system}
    if not rig.envoy and "envoy" not in absent:
        print("envoy is left out: not installed; `tests/support/install bench` does", file=sys.stderr)
        absent.add("envoy")
    return absent


def of_group(rig, group, entries, asked):
    """Measures a group, in a network of its own."""
    if not own_network() and getattr(group, "redirects", False):
        print(f"{group.name}: Pannier is left out: only root may redirect connections to it", file=sys.stderr)
        entries = {key: start for key, start in entries.items() if not key[1].startswith("pannier")}
    rig.start_upstream(getattr(group, "upstream", "http"))
    try:
        if isinstance(group, cases.Idle):
            return [of_idle(rig, group, key, start) for key, start in entries.items()]
        if isinstance(group, cases.Own):
            return group.measure(rig, asked)
        slices, memory = measure.alternate(rig, group, entries, asked)
        return report.load_rows(slices, memory, group.per)
    finally:
        rig.stop()


def of_idle(rig, group, key, start):
    """Memory with many keep-alive connections that have each made one request."""
    system = start(rig)
    held, failures = idle.hold(system.port, group.connections)
    mib = sum(process.memory_mib() for process in system.processes)
    idle.release(held)
    rig.stop(system.processes)
    print(f"{group.name}: {key[1]}", file=sys.stderr)
    return report.idle_row(*key, mib, failures)


def show(measured, rows, asked):
    """Prints what was measured and how the targets stand; publishes it where asked to."""
    captions, found = table.titles(GROUPS), targets.judge(rows)
    print("\n".join([*table.rows_of(measured, captions), "", *table.targets(found)]))
    if not asked.publish:
        return
    table.replace(ROOT / "README.md", table.readme(rows, captions, found))
    (ROOT / table.ALL).write_text(table.whole(rows, captions, found))
    drawn = picture.draw(rows)
    if drawn:
        (ROOT / table.PICTURE).write_text(drawn)


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C"
    # Whoever ends the bench ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    sys.exit(main())
