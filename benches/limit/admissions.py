"""One run of sidecars that share a limit through real servers, with what happens to these in the middle."""

import json
import subprocess
import tempfile
import time

from cases import FAULTS
from machine import prefer

TICKS = 10
# Of the commands that are counted, those that no sidecar sends nor its script.
OURS = ("info", "ping", "config", "config|resetstat", "command", "flushall", "hello", "client", "client|setinfo", "select",
        "auth", "script|load", "replconf", "psync", "subscribe", "publish")


def run(bench, case):
    """What came of a case: what `admissions` tells, and what Redis counted."""
    fault = FAULTS[case.fault]
    place = fault.kind()
    try:
        document = {"redis": place.configuration, "limits": [limit(case)]}
        # JSON is YAML.
        name = f"limit-admissions-{place.server.port}"
        path = bench.write(f"{name}.yaml", json.dumps(document, indent=1))
        found = drive(bench, case, path, place, fault)
    finally:
        place.stop()
    return found | {"away": during(found["timeline"], fault.away, case)}


def limit(case):
    keyed = {"key": ["header:x-tenant"]} if case.keys > 1 else {}
    return {"name": "orders", "rate": f"{case.rate}/s", "burst": case.burst, "without_redis": case.policy, **keyed}


def drive(bench, case, path, place, fault):
    command = [bench.admissions, "--config", path, "--sidecars", case.sidecars, "--shape", case.shape,
               "--demand", case.demand, "--keys", case.keys, "--seconds", case.seconds, "--warm", case.warm]
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(list(map(str, command)), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=log, start_new_session=True)
        prefer(child.pid)
        try:
            if child.stdout.readline() != "ready\n":
                child.wait()
                log.seek(0)
                raise SystemExit(f"{case.name}: {log.read()[-2000:]}")
            if case.part == "calls":
                # A state that has just begun has empty buckets, for which sidecars ask more often.
                time.sleep(case.burst / case.rate + 0.5)
            place.forget()
            before = place.cpu_seconds()
            child.stdin.write("\n")
            child.stdin.flush()
            act(place, fault.script, time.monotonic())
            found = json.loads(child.stdout.readline())
            return found | {"commands": counted(place.calls()), "redis_cpu": place.cpu_seconds() - before}
        finally:
            child.kill()
            child.wait()


def act(place, script, start):
    """Does what happens to the servers, when it happens."""
    for at, what in script:
        time.sleep(max(0, start + at - time.monotonic()))
        getattr(place, what)()


def counted(calls):
    """Calls of the script, and the commands within it."""
    script = calls.pop("evalsha", 0) + calls.pop("eval", 0)
    return {"script": script, "within": sum(count for name, count in calls.items() if name not in OURS)}


def during(timeline, away, case):
    """What was admitted a second while Redis was away, as a share of R. Its first half second is not counted:
    leases are spent then."""
    seconds = [(begin + 0.5, end) for begin, end in away if end - begin > 1]
    ticks = [timeline[round(begin * TICKS):round(end * TICKS)] for begin, end in seconds]
    if not ticks:
        return None
    return sum(map(sum, ticks)) / sum(map(len, ticks)) * TICKS / case.rate / case.keys
