"""A system in a row: its process, the DNS server that it alone asks, and its clients."""

import asyncio
import time

from client import Client
from machine import Process
from rig import Rig
from server import NAME, Server, Zone

# How long a system may take to answer for the first time where nothing is amiss.
START = 30


class Bench(Rig):
    """A rig that starts without waiting: while a system resolves its first name, its DNS server has to run."""

    def start(self, name, command, port, core=None):
        process = Process(command, self.proxy_core if core is None else core, f"{self.folder}/{name}.log")
        self.started.append(process)
        return process


class World:
    """One system in one row."""

    def __init__(self, bench, backends, system, start, row):
        self.bench, self.backends, self.system, self.launch, self.row = bench, backends, system, start, row
        self.tag = f"{system}.{row.name}"
        self.zone = Zone(row.ttl, **row.records)
        self.zone.silent |= set(row.silent_from_start)
        self.server = Server(self.zone)
        # When it was started, and when it first answered, or was given up to.
        self.began = self.ready = None

    async def run(self):
        """The row, from the start of what it takes to its end."""
        resolver = await self.server.start()
        self.began = time.monotonic()
        port, process = self.launch(self.bench, f"dns-{self.tag}", resolver, self.backends.port)
        self.client = Client(port, f"{NAME}:{self.backends.port}", self.tag, self.row.pause)
        self.client.start()
        try:
            if not self.row.cold:
                await self.begin(process)
            found = await self.row.steps(self)
            if process.child.poll() is not None:
                raise SystemExit(f"{self.tag} ended by itself; see {process.log}")
        finally:
            await self.client.stop()
            self.server.stop()
            await asyncio.to_thread(self.bench.stop, [process])
        return {"system": self.system, "row": self.row.name, "title": self.row.title, "ttl": self.row.ttl,
                "other_names": sum(self.zone.strange.values()), **found}

    async def begin(self, process):
        """Until it works, and its start is behind it."""
        if not await self.client.works(START):
            said = open(process.log, errors="replace").read()[-2000:]
            raise SystemExit(f"{self.tag} answered nothing in {START} s. It said:\n{said}")
        await asyncio.sleep(1)
        self.ready = time.monotonic()

    def counts(self, since=None):
        return self.client.counts(self.ready if since is None else since)
