"""One slice of load on one system, and what it cost the system's processes."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import core_ticks, prefer

# What a request of the gRPC shape carries: a message of 100 bytes, not compressed.
MESSAGE = b"\0" + (100).to_bytes(4, "big") + b"x" * 100


class Failed(Exception):
    """The load could not be put on: nothing was measured."""


def tried(name, load, *arguments, **more):
    """A slice; of failure, where the load could not be put on: that does not end the bench."""
    try:
        return load(*arguments, **more)
    except Failed as why:
        print(f"{name}: takes no load: {why}", file=sys.stderr)
        return {"failures": 1}


class Meter:
    """Clocks that are read before and after: the processes' CPU, and how busy the cores were."""

    def __init__(self, rig, processes):
        self.rig, self.processes = rig, processes
        self.started = self.read()

    def read(self):
        cpu = sum(process.cpu_seconds() for process in self.processes)
        return cpu, core_ticks(self.rig.proxy_core), core_ticks(self.rig.load_core)

    def start(self):
        self.started = self.read()

    def spent(self, units):
        """What was spent since the start, where so many units of work were done."""
        (cpu, *cores), (cpu_before, *cores_before) = self.read(), self.started
        busy = [(after[0] - before[0]) / max(after[1] - before[1], 1) for before, after in zip(cores_before, cores)]
        return {"us_per_request": (cpu - cpu_before) * 1e6 / max(units, 1),
                "proxy_core_busy": busy[0], "load_core_busy": busy[1]}


def session(rig, meter, arguments, at_start=None):
    """Runs the load generator: clocks are read when all its connections are open, and when its last
    answer is there. `at_start` is called in between."""
    command = ["taskset", "-c", str(rig.load_core), rig.load, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                                 start_new_session=True)
        prefer(child.pid)
        try:
            if child.stdout.readline() != "ready\n":
                child.wait()
                said.seek(0)
                raise Failed(said.read().strip())
            if at_start:
                at_start()
            meter.start()
            child.stdin.write("\n")
            child.stdin.flush()
            result = json.loads(child.stdout.readline())
            result |= meter.spent(result.get("requests") or result.get("bytes", 0) / 2**20)
            return result
        finally:
            child.stdin.close()
            child.wait()


def http(rig, port, processes, seconds, connections, body=100, upload=None, rate=None, at_start=None):
    """Requests over HTTP/1.1: as fast as answers come, or at a rate."""
    arguments = ["http", "--to", f"127.0.0.1:{port}", "--connections", connections, "--seconds", seconds,
                 "--body", body, "--path", f"/{body}"]
    arguments += ["--upload", upload] if upload else []
    arguments += ["--rate", rate] if rate else []
    return session(rig, Meter(rig, processes), arguments, at_start)


def tcp(rig, port, processes, seconds, connections):
    """Bytes over opaque connections, half the time each way; a unit of work is a MiB."""
    ways = {}
    for way in ("up", "down"):
        arguments = ["bytes", "--to", f"127.0.0.1:{port}", "--connections", connections,
                     "--seconds", seconds / 2, "--way", way]
        ways[way] = session(rig, Meter(rig, processes), arguments)
    mean = lambda key: (ways["up"][key] + ways["down"][key]) / 2
    rates = {f"{way}_mib_per_second": one["bytes"] / 2**20 / one["seconds"] for way, one in ways.items()}
    busy = {key: mean(key) for key in ("us_per_request", "proxy_core_busy", "load_core_busy")}
    failures = sum(one["failures"] for one in ways.values())
    return {"requests": sum(one["bytes"] for one in ways.values()) // 2**20, "rps": sum(rates.values()) / 2,
            "failures": failures, **rates, **busy}


def handshakes(rig, port, processes, seconds, connections):
    """New connections, each with one byte there and back."""
    arguments = ["connect", "--to", f"127.0.0.1:{port}", "--connections", connections, "--seconds", seconds]
    return session(rig, Meter(rig, processes), arguments)


def grpc(rig, port, processes, seconds, connections, streams):
    """Unary gRPC calls over HTTP/2, by h2load."""
    folder = Path(rig.folder)
    (folder / "message.bin").write_bytes(MESSAGE)
    log = folder / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["taskset", "-c", str(rig.load_core), "h2load", "-c", str(connections), "-m", str(streams), "-t", "1",
               "-D", str(max(1, round(seconds))), "-d", str(folder / "message.bin"), f"--log-file={log}",
               "-H", "content-type: application/grpc", "-H", "te: trailers",
               f"http://127.0.0.1:{port}/bench.Bench/Unary"]
    meter = Meter(rig, processes)
    meter.start()
    child = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    prefer(child.pid)
    said, _ = child.communicate()
    counted = re.search(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    took = re.search(r"finished in ([\d.]+)(us|ms|s)", said)
    if child.returncode != 0 or not counted or not took:
        raise Failed(said.strip()[-500:])
    _, done, failed, errored, late = map(int, counted.groups())
    seconds = float(took.group(1)) * {"us": 1e-6, "ms": 1e-3, "s": 1}[took.group(2)]
    return {"requests": done, "rps": done / seconds, "failures": max(failed, errored, late),
            **quantiles(log), **meter.spent(done)}


def quantiles(log):
    """h2load's log has a line for each request: when it began, its status, its microseconds."""
    with open(log) as lines:
        times = sorted(int(line.rsplit("\t", 1)[1]) for line in lines)
    at = lambda share: times[min(int(len(times) * share), len(times) - 1)] if times else 0
    return {"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999)}
