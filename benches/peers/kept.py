"""The results' file. A run of some cases keeps what it did not measure, where that still holds."""

import hashlib
import json
import sys
from pathlib import Path

from machine import machine


def source(rig):
    """What rows must have in common to be compared: the machine, and the program that was measured."""
    build = hashlib.sha256(Path(rig.pannier).read_bytes()).hexdigest()[:12]
    return {"machine": machine(), "build": build}


def merge(path, rows, order, here):
    """The new rows and, of those in the file, the others that were measured here with this program,
    in the order of the cases. Says what is let go."""
    measured = {row["case"] for row in rows}
    before = [row for row in read(path) if row["case"] not in measured]
    held = [row for row in before if here.items() <= row.items()]
    gone = sorted({row["case"] for row in before} - {row["case"] for row in held})
    if gone:
        print(f"Not kept, because another machine or another build was measured: {', '.join(gone)}", file=sys.stderr)
    place = {case: number for number, case in enumerate(order)}
    return sorted((row for row in [*held, *rows] if row["case"] in place), key=lambda row: place[row["case"]])


def read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return []


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]\n")
