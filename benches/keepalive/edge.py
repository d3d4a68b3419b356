"""The program `edge`, and the Node servers that stand beside its upstreams."""

import json
import subprocess
import urllib.request
from pathlib import Path

from machine import free_port, prefer

SERVER = Path(__file__).resolve().parent / "server.mjs"


class Edge:
    """Takes an order, and tells what came of it. Ends with this process, however that ends: its
    input ends then."""

    def __init__(self, program, core, *arguments):
        self.name = program.name
        self.child = subprocess.Popen(["taskset", "-c", str(core), program, *map(str, arguments)], text=True,
                                      start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        prefer(self.child.pid)

    def do(self, **order):
        self.child.stdin.write(json.dumps(order) + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} has ended with {self.child.wait(5)}")
        return json.loads(answer)

    def stop(self):
        self.child.stdin.close()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()


def start_node(rig, timeout):
    """A Node server; returns its port."""
    port = free_port()
    rig.start(f"node-{timeout}", ["node", str(SERVER), str(port), str(timeout)], port, rig.load_core)
    return port


def acted_twice(port):
    """Of each row, how many requests a Node server has acted on more than once."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/executed", timeout=10) as answer:
        return json.load(answer)
