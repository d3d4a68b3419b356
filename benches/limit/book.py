"""What has been measured, in a file: a run that is cut short, or that measures a part, keeps the rest where that
still holds."""

import hashlib
import json
import sys
from pathlib import Path

from machine import machine


class Book:
    """Runs of cases by name; what a decision takes; blocks of rounds of what limits cost, all at one rate."""

    def __init__(self, path, programs):
        self.path = path
        build = hashlib.sha256(b"".join(Path(program).read_bytes() for program in programs)).hexdigest()[:12]
        self.here = {"machine": machine(), "build": build}
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        if known and not self.here.items() <= known.items():
            print("What was measured before is not kept: by another machine or build", file=sys.stderr)
            known = {}
        self.runs = known.get("runs", {})
        self.stage = known.get("stage", [])
        self.rate = known.get("rate")
        self.blocks = known.get("blocks", [])

    def keep(self):
        """Writes the file."""
        line = lambda item: "  " + json.dumps(item)
        runs = ",\n".join(f"  {json.dumps(name)}: {json.dumps(run)}" for name, run in self.runs.items())
        blocks = ",\n".join(line(block) for block in self.blocks)
        stage = ",\n".join(line(one) for one in self.stage)
        head = json.dumps(self.here | {"rate": self.rate})[1:-1]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(f'{{{head},\n"stage": [\n{stage}\n],\n"blocks": [\n{blocks}\n],\n"runs": {{\n{runs}\n}}}}\n')
