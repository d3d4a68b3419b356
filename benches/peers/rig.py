"""Where things are while a group of cases is measured, and what runs there."""

import glob
import shutil
from dataclasses import dataclass, field

from machine import Process, free_port

TRUST_DOMAIN = "spiffe://cluster.local/"
CLIENT = TRUST_DOMAIN + "ns/default/sa/client"
SERVER = TRUST_DOMAIN + "ns/default/sa/server"

# A pool large enough for every case; no system is to be measured at its limits.
MANY = 100_000

# What all agree on between sidecars, so that none is measured with a cheaper cipher than another.
# They are what Pannier and Envoy choose by themselves; OpenSSL would take the 256-bit key.
CIPHER = "TLS_AES_128_GCM_SHA256"
CURVE = "X25519"


@dataclass
class Running:
    """A system that runs: the port that load goes to, and the processes that it costs."""

    port: int
    processes: list
    # Where its metrics are read, where a case asks for them.
    probes: int | None = None


@dataclass
class Rig:
    """The working folder, certificates, cores and programs, and the application's address."""

    folder: str
    certs: str
    proxy_core: int
    load_core: int
    pannier: str
    floor: str
    load: str
    envoy: str | None
    upstream: int | None = None
    started: list = field(default_factory=list)

    def start(self, name, command, port, core=None):
        """Starts a program, on the proxy's core unless told otherwise, and waits until it listens."""
        process = Process(command, self.proxy_core if core is None else core, f"{self.folder}/{name}.log")
        self.started.append(process)
        return process.wait_for(port)

    def write(self, name, text):
        """Writes a configuration file."""
        path = f"{self.folder}/{name}"
        with open(path, "w") as file:
            file.write(text)
        return path

    def stop(self, processes=None):
        """Stops these processes, or all."""
        for process in list(self.started if processes is None else processes):
            process.stop()
            self.started.remove(process)

    def kill(self, processes):
        """Ends these at once."""
        for process in processes:
            process.kill()
            self.started.remove(process)

    def start_upstream(self, kind):
        """The application, on the load's core: `http`, `bytes` or `grpc`."""
        port = free_port()
        command = [self.load, "serve", kind, f"127.0.0.1:{port}"]
        self.start(f"upstream-{kind}", command, port, self.load_core)
        self.upstream = port


def find_envoy(folder):
    """Envoy from the bench's own environment, else from the path."""
    bundled = glob.glob(f"{folder}/venv/lib/python3*/site-packages/envoy/_bin/envoy")
    return bundled[0] if bundled else shutil.which("envoy")
