"""Many connections that have each made one request and then wait."""

import contextlib
import socket
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n"
SETTLE_SECONDS = 3


def hold(port, connections):
    """Opens them, one request each, and waits for the proxy to settle. Returns the open sockets
    and how many requests were not answered with 200."""
    held, failures = [], 0
    for _ in range(connections):
        try:
            client = socket.create_connection(("127.0.0.1", port), 5)
            held.append(client)
            client.sendall(REQUEST)
            failures += not answered(client)
        except OSError:
            failures += 1
    time.sleep(SETTLE_SECONDS)
    return held, failures


def answered(client):
    """Reads one whole answer with a Content-Length."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = client.recv(4096)
        if not more:
            return False
        answer += more
    head, body = answer.split(b"\r\n\r\n", 1)
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    missing = int(fields.get(b"content-length", 0)) - len(body)
    while missing > 0:
        more = client.recv(4096)
        if not more:
            return False
        missing -= len(more)
    return head.startswith(b"HTTP/1.1 200")


def release(held):
    for client in held:
        with contextlib.suppress(OSError):
            client.close()
