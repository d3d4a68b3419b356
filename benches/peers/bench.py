#!/usr/bin/env python3
"""The same work through Pannier, nginx, HAProxy and Envoy, and what it costs each of them.

Every system has one worker on one core; the load (wrk) and the upstream (nginx) share the other.
Short slices alternate between the systems, so that whatever else the machine does meets all of
them alike, and a comparison is the median of the ratios of each round. Compare the rows of one
run only.

Prints a table, writes target/bench/peers.json, and with --readme puts the table between the
README's markers. Ends with 1 if any request failed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import idle
import load
import report
import systems
from machine import core_ticks, raise_file_limit, two_cores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# What is measured: the systems that can do it, and the connections of the load.
CASES = {
    "hop/64": (systems.HOP, 64),
    "pair-h1/64": (systems.PAIR_H1, 64),
    "pair-h2/64": (systems.PAIR_H2, 64),
}
IDLE_CASES = {
    "idle/4000": (systems.HOP, 4000),
    "idle-pair/4000": (systems.PAIR_H1 | systems.PAIR_H2, 4000),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pannier", type=Path, default=ROOT / "target/release/pannier", help="the binary to measure")
    parser.add_argument("--floor", type=Path, default=ROOT / "target/release/examples/floor",
                        help="the byte-copying relay")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench", help="where files and results go")
    parser.add_argument("--rounds", type=int, default=12, help="slices per system (default 12)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a slice (default 2)")
    parser.add_argument("--case", action="append", choices=[*CASES, *IDLE_CASES], help="only this case; may repeat")
    parser.add_argument("--system", action="append", choices=[*systems.HOP], help="only this system; may repeat")
    parser.add_argument("--readme", type=Path, help="the file whose table is replaced")
    return parser.parse_args()


def main():
    asked = arguments()
    present = available(asked)
    proxy_core, load_core = two_cores()
    raise_file_limit()
    folder = asked.folder.resolve()
    certs = folder / "certs"
    certs.mkdir(parents=True, exist_ok=True)
    subprocess.run(["bash", HERE / "certs.sh", certs], check=True, capture_output=True)

    bench = systems.Bench(folder, certs, proxy_core, load_core, asked.pannier.resolve(), asked.floor.resolve())
    rows = []
    try:
        bench.start_upstream()
        for case in asked.case or [*CASES, *IDLE_CASES]:
            starters, connections = CASES.get(case) or IDLE_CASES[case]
            starters = {system: start for system, start in starters.items() if system in present}
            measure = measure_load if case in CASES else measure_idle
            if starters:
                rows += measure(bench, case, starters, connections, asked)
    finally:
        bench.stop()
    return publish(rows, folder, asked)


def available(asked):
    """The systems asked for that are here; says aloud which are not."""
    missing = []
    if not asked.pannier.exists():
        missing.append(("pannier", f"no binary at {asked.pannier}"))
    if not asked.floor.exists():
        missing.append(("floor", f"no binary at {asked.floor}"))
    if not systems.find_envoy(asked.folder):
        missing.append(("envoy", "not installed; `tests/support/install bench` does"))
    for system, why in missing:
        print(f"{system} is left out: {why}", file=sys.stderr)
    absent = {system for system, _ in missing}
    return [system for system in asked.system or systems.HOP if system not in absent]


def measure_load(bench, case, starters, connections, asked):
    """Alternating slices of load through every system of a case."""
    running = {system: start(bench) for system, start in starters.items()}
    for system, (port, _) in running.items():
        load.slice(port, 1, connections, bench.load_core)
    slices = {system: [] for system in running}
    before = core_ticks(bench.load_core)
    for number in range(asked.rounds):
        print(f"{case}: round {number + 1} of {asked.rounds}", file=sys.stderr)
        for system, (port, processes) in running.items():
            cpu = sum(process.cpu_seconds() for process in processes)
            slice = load.slice(port, asked.seconds, connections, bench.load_core)
            cpu = sum(process.cpu_seconds() for process in processes) - cpu
            slices[system].append(slice | {"us_per_request": cpu * 1e6 / max(slice["requests"], 1)})
    after = core_ticks(bench.load_core)
    print(f"{case}: the load's core was {busy_share(before, after):.0%} busy", file=sys.stderr)
    memory = {system: sum(process.memory_mib() for process in processes)
              for system, (_, processes) in running.items()}
    for _, processes in running.values():
        bench.stop(processes)
    return report.load_rows(case, slices, memory)


def busy_share(before, after):
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


def measure_idle(bench, case, starters, connections, asked):
    """Memory with many keep-alive connections that have each made one request."""
    rows = []
    for system, start in starters.items():
        port, processes = start(bench)
        held, failures = idle.hold(port, connections)
        mib = sum(process.memory_mib() for process in processes)
        idle.release(held)
        bench.stop(processes)
        rows.append(report.idle_row(case, system, mib, failures))
    return rows


def publish(rows, folder, asked):
    """Writes the results, prints the table and every failure."""
    report.write_json(folder / "peers.json", rows)
    table = report.markdown(rows, asked.rounds, asked.seconds)
    print(table)
    if asked.readme:
        report.replace_table(asked.readme, table)
    failed = [row for row in rows if row["failures"]]
    for row in failed:
        print(f"{row['case']} {row['system']}: {row['failures']} requests failed", file=sys.stderr)
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C"
    sys.exit(main())
