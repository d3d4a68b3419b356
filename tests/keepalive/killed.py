"""An application that kills itself once, when and how the path it is asked for says. Its arguments: a folder
that it shares with others of its kind, in which it notes what it has executed, and who has died."""

import os
import signal
import socket
import sys
import threading
import time

folder = sys.argv[1]


def die(path):
    """Once for each path, whoever is asked for it first."""
    try:
        os.close(os.open(folder + "/dead-" + path.strip("/"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def execute(path):
    note = os.open(folder + "/executed", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(note, (path + "\n").encode())
    os.close(note)


def serve(stream):
    reader = stream.makefile("rb")
    while line := reader.readline():
        path = line.decode().split()[1]
        if path == "/reading":
            die(path)
        length = 0
        while (field := reader.readline()) not in (b"\r\n", b""):
            name, _, value = field.decode().partition(":")
            length = int(value) if name.lower() == "content-length" else length
        reader.read(length)
        if path == "/before":
            die(path)
        execute(path)
        if path == "/acted":
            die(path)
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
        if path == "/head":
            stream.sendall(head[:20])
            die(path)
            stream.sendall(head[20:])
        else:
            stream.sendall(head)
        if path == "/between":
            die(path)
        stream.sendall(b"01234")
        if path == "/body":
            # So long that what was sent has been passed on.
            time.sleep(0.05)
            die(path)
        stream.sendall(b"56789")


listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
while True:
    accepted, _ = listener.accept()
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
