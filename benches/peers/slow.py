"""Readers that hardly read: each asks for an answer without end, and takes a few bytes a second."""

import contextlib
import socket
import threading
import time

# What one takes at a time, and how often all have had their turn.
SIP = 1024
TURN_SECONDS = 1.0
# A window so small that what is not read stays with the proxies, not in the reader's kernel.
WINDOW = 4096
# For as long after the last has had its first bytes; until then the kernel's buffers are filled, and
# for so long at most.
SETTLE_SECONDS = 12
SERVED_SECONDS = 60


class SlowReaders:
    """So many on each port, for as long as the context lasts; they have settled when it begins."""

    def __init__(self, ports, each, path):
        self.request = f"GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n".encode()
        self.ports = [port for port in ports for _ in range(each)]
        self.readers, self.served, self.lost = [], set(), set()
        self.over = threading.Event()

    def __enter__(self):
        for port in self.ports:
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
            self.readers.append(reader)
            try:
                reader.connect(("127.0.0.1", port))
                reader.sendall(self.request)
            except OSError:
                self.lost.add(reader)
            reader.setblocking(False)
        self.sipping = threading.Thread(target=self.sip)
        self.sipping.start()
        latest = time.monotonic() + SERVED_SECONDS
        while self.failures() and time.monotonic() < latest:
            time.sleep(0.1)
        time.sleep(SETTLE_SECONDS)
        return self

    def sip(self):
        while True:
            for reader in self.readers:
                if self.over.wait(TURN_SECONDS / len(self.readers)):
                    return
                if reader not in self.lost:
                    self.sip_of(reader)

    def sip_of(self, reader):
        try:
            taken = reader.recv(SIP)
        except BlockingIOError:
            # Whatever is due to it is still on its way.
            return
        except OSError:
            taken = b""
        good = taken if reader in self.served else taken.startswith(b"HTTP/1.1 200")
        (self.served if good else self.lost).add(reader)

    def failures(self):
        """Readers that were refused, whose answer ended, or that got none."""
        return len(self.readers) - len(self.served - self.lost)

    def __exit__(self, *_):
        self.over.set()
        self.sipping.join()
        for reader in self.readers:
            with contextlib.suppress(OSError):
                reader.close()
