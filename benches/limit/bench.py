#!/usr/bin/env python3
"""Limits that hold for a whole mesh: what they cost a request, beside others; how often Redis is asked; and what is
admitted, held against the bound, while Redis fares well and while it does not.

Parts: `stage` is what a decision takes; `cost` is what limits add to a request, of Pannier with leases, of Pannier
asking Redis for each, and of Envoy with a rate-limit service; `calls` is how often Redis is asked; `steady`,
`faults` and `policies` are runs of up to 50 sidecars that share a limit.

Prints the figures, and writes target/bench/limits.json. --resume measures only what the file does not have yet, of
this machine and these programs, and --minutes begins nothing more after so long. With --publish the README's part
and docs/limits-bench.md are written from what the file then has. Ends with 1 if the bound was broken in a run whose
limit is `closed`.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Behind our own files: some names are the same.
sys.path.append(str(HERE.parent / "peers"))

import admissions
import cases
import cost
import judge
import table
from book import Book
from machine import own_network, raise_file_limit, two_cores
from rig import Rig, find_envoy
from servers import Alone

PARTS = ("stage", "cost", "calls", "steady", "faults", "policies")
ENDS = (signal.SIGTERM, signal.SIGINT)
# Blocks of rounds; a block has a few sidecars of its own.
BLOCKS, QUICK_BLOCKS = 5, 1
STAGE, QUICK_STAGE = 3, 1
# Runs of sidecars at a time; those that count calls are alone.
AT_ONCE = 4


@dataclass
class Bench(Rig):
    """With the programs of this bench."""

    service: str = ""
    admissions: str = ""
    stage: str = ""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target/release"
    parser.add_argument("--pannier", type=Path, default=built / "pannier", help="the program to measure")
    parser.add_argument("--examples", type=Path, default=built / "examples", help="where the other programs are")
    parser.add_argument("--folder", type=Path, default=ROOT / "target/bench", help="where files and results go")
    parser.add_argument("--quick", action="store_true", help="some cases, in short: ten minutes")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may repeat")
    parser.add_argument("--resume", action="store_true", help="only what the results do not have yet")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begins nothing after so many minutes")
    parser.add_argument("--publish", action="store_true", help="writes the README's part, and docs/limits-bench.md")
    return parser.parse_args()


def main():
    asked = arguments()
    bench = prepare(asked)
    book = Book(Path(bench.folder) / ("limits-quick.json" if asked.quick else "limits.json"),
                (bench.pannier, bench.admissions))
    known = {case.name: case for case in (cases.quick() if asked.quick else cases.full())}
    try:
        for part in measured(bench, book, known, asked):
            book.keep()
    finally:
        bench.kill(list(bench.started))
    found = judge.judge(book, known)
    print("\n".join(table.whole(book, known, found)))
    if asked.publish:
        (ROOT / table.ALL).write_text(table.page(book, known, found, versions(bench)))
        table.publish(ROOT / "README.md", book, known, found)
    return 1 if any(one.broken for one in found) else 0


def prepare(asked):
    """Where things are."""
    proxy_core, load_core = two_cores()
    raise_file_limit()
    own_network()
    folder, examples = asked.folder.resolve(), asked.examples.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    programs = {name: examples / name for name in ("load", "ratelimit", "admissions", "stage")}
    for path in (asked.pannier, *programs.values()):
        if not path.exists():
            raise SystemExit(f"{path} is not there: `make limits` builds it")
    load, service, admissions, stage = map(str, programs.values())
    envoy = find_envoy(folder) or find_envoy(ROOT / "target/bench")
    if not envoy:
        print("envoy is left out: not installed; `tests/support/install limits` does", file=sys.stderr)
    return Bench(str(folder), "", proxy_core, load_core, pannier=str(asked.pannier.resolve()), floor="", load=load,
                 envoy=envoy, service=service, admissions=admissions, stage=stage)


def measured(bench, book, known, asked):
    """Measures what is wanted; yields whenever there is something to keep."""
    until = time.monotonic() + asked.minutes * 60
    wanted = lambda part: part in (asked.part or PARTS) and time.monotonic() < until
    if wanted("stage") and not (asked.resume and book.stage):
        book.stage = stage(bench, QUICK_STAGE if asked.quick else STAGE)
        yield
    if "cost" in (asked.part or PARTS):
        if not asked.resume:
            book.rate, book.blocks = None, []
        while len(book.blocks) < (QUICK_BLOCKS if asked.quick else BLOCKS) and time.monotonic() < until:
            book.rate, rounds = cost.block(bench, book.rate)
            book.blocks.append(rounds)
            yield
    wanted_runs = [(name, case) for name, case in known.items()
                   if case.part in (asked.part or PARTS) and not (asked.resume and name in book.runs)]
    for at_once, alone in ((1, True), (AT_ONCE, False)):
        cases_of = [(name, case) for name, case in wanted_runs if (case.part == "calls") == alone]
        yield from runs(bench, book, cases_of, at_once, until)


def runs(bench, book, wanted, at_once, until):
    """Runs of sidecars, some at a time; yields whenever one has ended. What cannot be run ends the bench."""
    with ThreadPoolExecutor(at_once) as pool:
        under_way = {}
        left = iter(wanted)
        while True:
            while len(under_way) < at_once and time.monotonic() < until and (one := next(left, None)):
                name, case = one
                print(f"{name}: begins", file=sys.stderr)
                under_way[pool.submit(admissions.run, bench, case)] = name
            if not under_way:
                return
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for run in ended:
                book.runs[under_way.pop(run)] = run.result()
                yield


def stage(bench, seconds):
    """What a decision takes."""
    redis = Alone()
    try:
        print("stage: begins", file=sys.stderr)
        command = [bench.stage, "--redis", redis.configuration["url"], "--seconds", str(seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]
    finally:
        redis.stop()


def versions(bench):
    """What was measured."""
    commands = {"Pannier": [bench.pannier, "--version"], "Redis": ["redis-server", "--version"]}
    if bench.envoy:
        commands["Envoy"] = [bench.envoy, "--version"]
    return {name: version(command) for name, command in commands.items()}


def version(command):
    """The first word that looks like one."""
    done = subprocess.run(command, capture_output=True, text=True)
    words = (done.stdout + done.stderr).replace("/", " ").replace("=", " ").split()
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
