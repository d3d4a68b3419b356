#!/usr/bin/env python3
"""What the simulation of choices has found: the promises that Pannier keeps and misses, tables and pictures.

Reads the lines of JSON that `cargo run --release --example balance` adds to its results. Prints the
promises, and every case that misses one. With --publish the README's part, docs/balance-bench.md and
docs/balance/ are written from them. Ends with 1 if a promise is missed.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# What the benches have in common is of the peers' bench. Behind our own files: some names are the same.
sys.path.append(str(HERE.parent / "peers"))

import judge
import rows
import table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "target/bench/balance.jsonl")
    parser.add_argument("--publish", action="store_true", help="write the README's part, the page and its pictures")
    asked = parser.parse_args()
    found = rows.load(asked.results)
    verdicts = judge.verdicts(found)
    for verdict in verdicts:
        print(f"{verdict.promise}: {verdict.word()}")
        for _, _, words in verdict.missed:
            print(f"    {words}")
    if asked.publish:
        table.publish(ROOT, found)
    return 1 if any(verdict.missed for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
