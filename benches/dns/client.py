"""The clients of one system: a few connections that are kept alive, each with a request, its answer
and a pause in turn. What failed is whatever was not a backend's 200 within the client's patience."""

import asyncio
import contextlib
import time
from collections import Counter
from typing import NamedTuple

CONNECTIONS = 2
# A client gives up then, closes its connection and counts a failure.
PATIENCE = 5.0


class Sent(NamedTuple):
    """A request: when it was sent, when it was over, and what failed, if anything did."""

    at: float
    over: float
    failure: str | None


class Client:
    """All connections to one system."""

    def __init__(self, port, host, tag, pause):
        self.port, self.pause = port, pause
        self.request = f"GET /{tag} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self.sent = []
        # When the system first took a connection: none that it refuses before is a failure.
        self.listens = None
        self.succeeded = asyncio.Event()

    def start(self):
        self.tasks = [asyncio.create_task(self.connection()) for _ in range(CONNECTIONS)]

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def connection(self):
        """One after the other, each for as long as it is kept."""
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                if self.listens:
                    self.note(began, "refused")
                await asyncio.sleep(self.pause)
                continue
            self.listens = self.listens or time.monotonic()
            try:
                while await self.exchange(reader, writer):
                    await asyncio.sleep(self.pause)
            finally:
                writer.close()
            await asyncio.sleep(self.pause)

    async def exchange(self, reader, writer):
        """A request and its answer. False if the connection is not to be used again."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(self.request)
                status, stays = await answer(reader)
        except TimeoutError:
            self.note(began, f"no answer in {PATIENCE:g} s")
            return False
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.note(began, "broken")
            return False
        self.note(began, None if status == "200" else status)
        return stays

    def note(self, began, failure):
        self.sent.append(Sent(began, time.monotonic(), failure))
        if not failure:
            self.succeeded.set()

    async def works(self, patience):
        """Waits for a first answer; False if there is none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.succeeded.wait()
        return self.succeeded.is_set()

    def counts(self, since, until=float("inf")):
        """What came of the requests of a span of time."""
        own = [one for one in self.sent if since <= one.at < until]
        failures = Counter(one.failure for one in own if one.failure)
        return {"requests": len(own), "failed": sum(failures.values()), "failures": dict(failures)}

    def first(self, failed, since):
        """Seconds until the next request failed, or succeeded; None where none did."""
        over = [one.over for one in self.sent if one.over >= since and bool(one.failure) == failed]
        return min(over) - since if over else None


async def answer(reader):
    """The status, and whether the connection stays."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    stays = fields.get("connection", "").lower() != "close"
    if "content-length" in fields:
        await reader.readexactly(int(fields["content-length"]))
    else:
        # Nobody here sends chunks: such an answer ends with its connection.
        stays = False
    return lines[0].split(" ")[1], stays
