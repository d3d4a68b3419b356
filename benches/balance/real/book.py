"""What has been measured, in a file: a run that is cut short, or that measures a part, keeps the rest
where that still holds."""

import json
import statistics
import sys

import kept
import report
from meshes import KINDS, SYSTEMS
from scenarios import ALL

# Of a slice, in the order of the table, and how Pannier's compare to another's.
LATENCIES = ("p50_us", "p99_us", "p999_us")
COMPARED = (*LATENCIES, "rps")


class Book:
    """Slices by scenario, load, kind and system."""

    def __init__(self, path, rig, figures):
        self.path = path
        self.here = kept.source(rig) | {"warm": figures.span.warm, "seconds": figures.span.seconds}
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {"cells": []}
        holds = self.here.items() <= known.items()
        self.cells = {(cell["scenario"], cell["load"], cell["kind"], cell["system"]): cell["slices"]
                      for cell in known["cells"]} if holds else {}
        if known["cells"] and not holds:
            print("What was measured before is not kept: by another machine or build, or in other slices", file=sys.stderr)

    def has(self, scenario, share, keys, rounds):
        """Whether nothing of this is left to be measured."""
        return all(len(self.cells.get((scenario.name, share, *key), ())) >= rounds for key in keys)

    def keep(self, scenario, share, found):
        """Takes the slices of one load, and writes the file. What did not take turns with them is not
        to be compared with them: it goes."""
        self.cells = {key: slices for key, slices in self.cells.items() if key[:2] != (scenario.name, share)}
        self.cells |= {(scenario.name, share, *key): slices for key, slices in found.items()}
        cells = [{"scenario": scenario.name, "load": share, "kind": kind, "system": system, "slices": slices}
                 for scenario, share, kind, system, slices in self.in_order()]
        text = ",\n".join("  " + json.dumps(cell) for cell in cells)
        here = json.dumps(self.here)[1:-1]
        self.path.write_text(f'{{{here}, "cells": [\n{text}\n]}}\n')

    def in_order(self):
        for scenario in ALL:
            for share in scenario.loads:
                for kind in KINDS:
                    for system in SYSTEMS:
                        slices = self.cells.get((scenario.name, share, kind, system))
                        if slices:
                            yield scenario, share, kind, system, slices

    def rows(self):
        """A row for each system in each shape under each load."""
        for scenario, share, kind, system, slices in self.in_order():
            ours = self.cells.get((scenario.name, share, kind, "pannier"))
            yield row(slices) | {"scenario": scenario, "load": share, "kind": kind, "system": system,
                                 "against": against(ours, slices) if ours and system != "pannier" else {}}


def row(slices):
    """Medians over the rounds, and sums of what is counted."""
    asked = sum(one["asked"] for one in slices)
    had = [sum(of) for of in zip(*(one["of_each"] for one in slices))]
    kinds = {kind: sum(one["failed"][kind] for one in slices) for kind in slices[0]["failed"]}
    return {
        **{name: statistics.median(one[name] for one in slices) for name in LATENCIES},
        "rounds": len(slices),
        "rate": asked / sum(one["seconds"] for one in slices),
        "failed": sum(kinds.values()) / max(asked, 1),
        "kinds": {kind: count for kind, count in kinds.items() if count},
        "shares": [count / max(sum(had), 1) for count in had],
        **{name: max(one[name] for one in slices)
           for name in ("late_p99_us", "sidecars_busy", "proxy_core_busy", "load_core_busy")},
    }


def against(ours, theirs):
    """Pannier's over the other's, round by round."""
    pairs = list(zip(ours, theirs))
    return {name: report.quartiles([one[name] / other[name] for one, other in pairs if other[name]] or [0])
            for name in COMPARED}
