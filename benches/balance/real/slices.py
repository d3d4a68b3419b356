"""Alternating slices of load: whatever else the machine does meets all systems alike, and each meets
the same requests, with the same work, at the same times."""

import sys
import threading
import zlib

import load
from meshes import Mesh
from scenarios import WORK

# What a caller's sidecar that is new gets before anything is measured: a part of a second at a low
# load, so that its connections are there.
ACQUAINTANCE, LOW = 0.5, 30


def start(rig, applications, ports, scenario, keys):
    """The meshes of a scenario."""
    meshes = {(kind, system): Mesh(rig, kind, system, ports) for kind, system in keys}
    for mesh in meshes.values():
        acquaint(rig, applications, mesh, scenario)
    return meshes


def alternate(rig, applications, meshes, scenario, share, figures):
    """Rounds of one load. Returns the slices of each mesh."""
    found = {key: [] for key in meshes}
    for number in range(figures.rounds):
        print(f"{scenario.name} at {share} %: round {number + 1} of {figures.rounds}", file=sys.stderr)
        seed = zlib.crc32(f"{scenario.name} {share} {number}".encode())
        for key, mesh in meshes.items():
            found[key].append(one(rig, applications, mesh, scenario, share, seed, figures.span))
    return found


def one(rig, applications, mesh, scenario, share, seed, span):
    """One slice through a mesh."""
    death = threading.Timer(span.middle / 1000, mesh.kill, [scenario.dies])
    death.daemon = True

    def begin():
        applications.do(begin=scenario.changes(span))
        if scenario.dies is not None:
            death.start()

    meter = load.Meter(rig, mesh.processes(but=scenario.dies))
    found = load.session(rig, meter, ask(mesh, scenario, share, seed, span.warm, span.seconds), begin)
    # The meter's is for each request that counts, and it was spent on all.
    found["sidecars_busy"] = found.pop("us_per_request") * max(found["requests"], 1) / 1000 / span.end
    found["of_each"] = applications.do(begin=[])["requests"]
    if scenario.dies is not None:
        death.join()
        mesh.revive(scenario.dies)
    if scenario.scars:
        mesh.renew()
        acquaint(rig, applications, mesh, scenario)
    return found


def acquaint(rig, applications, mesh, scenario):
    """Has a caller's sidecar meet its endpoints."""
    begin = lambda: applications.do(begin=[[{"at": 0, "to": {"speed": speed}}] for speed in scenario.speeds])
    load.session(rig, load.Meter(rig, []), ask(mesh, scenario, LOW, 0, 0, ACQUAINTANCE), begin)


def ask(mesh, scenario, share, seed, warm, seconds):
    """What the clients are told."""
    return ["ask", "--to", f"127.0.0.1:{mesh.port}", "--rate", scenario.capacity() * share / 100, "--work", WORK,
            "--warm", warm, "--seconds", seconds, "--deadline", scenario.deadline, "--seed", seed]
