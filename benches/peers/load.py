"""One slice of load by wrk, and what it saw."""

import re
import subprocess

UNITS = {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}


def slice(port, seconds, connections, core):
    """Requests, rate, latency in microseconds, and failures: answers that were not 2xx or 3xx,
    connections that could not be made or broke, and answers that never came."""
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency",
               f"http://127.0.0.1:{port}/"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.search(r"Socket errors: (.*)", said)
    failures = int(refused.group(1)) if refused else 0
    failures += sum(int(count) for count in re.findall(r"\d+", broken.group(1))) if broken else 0
    return {
        "requests": int(re.search(r"(\d+) requests in", said).group(1)),
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1)),
        "p50_us": percentile(said, 50),
        "p99_us": percentile(said, 99),
        "failures": failures,
    }


def percentile(said, rank):
    number, unit = re.search(rf"^\s+{rank}%\s+([\d.]+)(us|ms|s|m)$", said, re.MULTILINE).groups()
    return float(number) * UNITS[unit]
