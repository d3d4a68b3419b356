"""The DNS server, one for each system and row. A real server cannot be told to misbehave at a moment:
to be silent, to fail, to deny a name once. This one can, and it remembers who asked what, and when."""

import asyncio
import contextlib
import struct
import time
from collections import Counter

import wire
from machine import free_port

ZONE = "bench"
NAME = f"orders.{ZONE}"


class Zone:
    """One name, how it is answered, and what has been asked."""

    def __init__(self, ttl, **records):
        self.ttl = ttl
        self.records = {kind: records.get(kind, []) for kind in wire.TYPES}
        # How everything is answered: `answer`, `silent` or `servfail`.
        self.mode = "answer"
        # Types whose questions are never answered.
        self.silent = set()
        # How many questions of each type are still to get NXDOMAIN.
        self.denials = Counter()
        # Every question for the name: when, and its type; and how many there were for other names.
        self.asked = []
        self.strange = Counter()
        self.waiting = {}

    def reply(self, message):
        """The answer to a message, or None where there is to be none."""
        try:
            question = wire.read(message)
        except ValueError:
            return None
        if question.name != NAME:
            self.strange[question.name] += 1
            return wire.write(question, wire.NXDOMAIN, ttl=self.ttl, zone=ZONE)
        self.asked.append((time.monotonic(), question.kind))
        if self.mode == "silent" or question.kind in self.silent:
            return None
        if self.mode == "servfail":
            return wire.write(question, wire.SERVFAIL)
        if self.denials[question.kind] > 0:
            self.denials[question.kind] -= 1
            return wire.write(question, wire.NXDOMAIN, ttl=self.ttl, zone=ZONE)
        if heard := self.waiting.pop(question.kind, None):
            # Whoever waits goes on once the answer has left.
            heard.set()
        return wire.write(question, wire.NOERROR, self.records.get(question.kind, ()), self.ttl, ZONE)

    async def answered(self, kind, patience):
        """Waits for the next answer of this type. False where nobody asked."""
        heard = self.waiting.setdefault(kind, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await heard.wait()
        return heard.is_set()

    def count(self, begin, end):
        """How many questions of each type came in a span of time."""
        found = Counter(kind for at, kind in self.asked if begin <= at < end)
        return {kind: found[kind] for kind in wire.TYPES}


class Datagrams(asyncio.DatagramProtocol):
    """The server over UDP."""

    def __init__(self, zone):
        self.zone = zone

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        if reply := self.zone.reply(data):
            self.transport.sendto(reply, addr)


async def stream(zone, reader, writer):
    """The server over a TCP connection, on which each message has its length before it."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            (size,) = struct.unpack(">H", await reader.readexactly(2))
            if reply := zone.reply(await reader.readexactly(size)):
                writer.write(struct.pack(">H", len(reply)) + reply)
    writer.close()


class Server:
    """A zone that is served, over UDP and TCP on one port."""

    def __init__(self, zone):
        self.zone = zone

    async def start(self):
        """Returns the port."""
        loop = asyncio.get_running_loop()
        for _ in range(20):
            port = free_port()
            with contextlib.suppress(OSError):
                self.datagrams, _ = await loop.create_datagram_endpoint(
                    lambda: Datagrams(self.zone), ("127.0.0.1", port))
                try:
                    self.streams = await asyncio.start_server(
                        lambda reader, writer: stream(self.zone, reader, writer), "127.0.0.1", port)
                    return port
                except OSError:
                    self.datagrams.close()
        raise SystemExit("no port that is free for UDP and TCP")

    def stop(self):
        self.datagrams.close()
        self.streams.close()
