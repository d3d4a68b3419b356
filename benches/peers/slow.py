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
SETTLE_SECONDS = 4


class SlowReaders:
    """So many on each port, for as long as the context lasts; they have settled when it begins."""

    def __init__(self, ports, each, path):
        self.request = f"GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n".encode()
        self.ports, self.each = ports, each
        self.readers, self.lost = [], 0
        self.over = threading.Event()

    def __enter__(self):
        for port in self.ports:
            for _ in range(self.each):
                reader = socket.socket()
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
                reader.settimeout(5)
                try:
                    reader.connect(("127.0.0.1", port))
                    reader.sendall(self.request)
                    self.lost += not reader.recv(SIP).startswith(b"HTTP/1.1 200")
                except OSError:
                    self.lost += 1
                reader.setblocking(False)
                self.readers.append(reader)
        self.sipping = threading.Thread(target=self.sip)
        self.sipping.start()
        time.sleep(SETTLE_SECONDS)
        return self

    def sip(self):
        while not self.over.is_set():
            for reader in self.readers:
                if self.over.wait(TURN_SECONDS / len(self.readers)):
                    return
                try:
                    self.lost += not reader.recv(SIP)
                except BlockingIOError:
                    # Whatever is due to it is still on its way.
                    continue
                except OSError:
                    self.lost += 1

    def failures(self):
        """Readers that were refused, or whose answer ended or stopped."""
        return self.lost

    def __exit__(self, *_):
        self.over.set()
        self.sipping.join()
        for reader in self.readers:
            with contextlib.suppress(OSError):
                reader.close()
