"""The application: an HTTP/1.1 server on several loopback addresses and one port, which answers with
the address that was reached, and remembers when a system's request last reached it."""

import asyncio
import contextlib
import time

from machine import free_port

ONE, TWO, SIX = "127.0.0.2", "127.0.0.3", "::1"


class Backends:
    """All of them."""

    def __init__(self):
        self.last = {}
        self.port = None

    async def start(self):
        loop = asyncio.get_running_loop()
        for _ in range(20):
            self.port, self.servers = free_port(), []
            with contextlib.suppress(OSError):
                for address in (ONE, TWO, SIX):
                    self.servers.append(await loop.create_server(
                        lambda at=address: Connection(self, at), address, self.port, backlog=1024))
                return self
            self.stop()
        raise SystemExit("no port that is free on 127.0.0.2, 127.0.0.3 and ::1")

    def stop(self):
        for server in self.servers:
            server.close()

    def reached(self, tag, address):
        """When a request of this tag last came to the address."""
        return self.last.get((tag, address), 0.0)


class Connection(asyncio.Protocol):
    """A connection: any number of requests without bodies. The path is the sender's tag."""

    def __init__(self, backends, address):
        self.backends, self.address = backends, address
        self.held = b""
        body = address.encode()
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.held += data
        while b"\r\n\r\n" in self.held:
            head, self.held = self.held.split(b"\r\n\r\n", 1)
            words = head.split(b" ", 2)
            if len(words) < 3:
                return self.transport.close()
            self.backends.last[words[1].decode("ascii", "replace").strip("/"), self.address] = time.monotonic()
            self.transport.write(self.answer)
