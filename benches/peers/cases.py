"""What is measured. A group's systems take turns, so its cases have their rounds in common and are
always measured together."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import load
import systems
import workers

KIB, MIB = 2**10, 2**20


@dataclass
class Group:
    """Systems that take turns under one load."""

    name: str
    # (case, system) and how it is started.
    entries: dict
    # Puts the load on one port.
    load: Callable
    # What the caption of its first case says.
    title: str
    upstream: str = "http"
    # What is done once for each unit of work.
    per: str = "request"
    fixed_rate: bool = False
    # Whether the kernel must redirect connections to Pannier.
    redirects: bool = False


def hop(name, title, load, **more):
    return Group(name, {(name, system): start for system, start in systems.HOP.items()}, load, title, **more)


def pair(rest, title, load, before="", **more):
    entries = {}
    for kind, known in (("pair-h1", systems.PAIR_H1), ("pair-h2", systems.PAIR_H2)):
        entries |= {(f"{before}{kind}{rest}", system): start for system, start in known.items()}
    return Group(f"{before}pair{rest}", entries, load, title, **more)


def all_of(case, known, load, title, **more):
    return Group(case, {(case, system): start for system, start in known.items()}, load, title, **more)


def loads():
    """The groups that are measured by alternating slices of load."""
    counts = {1: "1 connection", 4: "4 connections", 64: "64 connections", 512: "512 connections"}
    put_on = {count: partial(load.http, connections=count) for count in counts}
    return [
        *(hop(f"hop/{count}", f"One plain hop, {many}", put_on[count]) for count, many in counts.items()),
        *(pair(f"/{count}", f"The mTLS pair, {many}", put_on[count]) for count, many in counts.items()),
        hop("rate/hop", "One plain hop, 64 connections, at a fixed rate", put_on[64], fixed_rate=True),
        pair("", "The mTLS pair, 64 connections, at a fixed rate", put_on[64], "rate/", fixed_rate=True),
        pair("/64KiB", "The mTLS pair, answers of 64 KiB, 64 connections",
             partial(load.http, connections=64, body=64 * KIB)),
        pair("/upload1MiB", "The mTLS pair, uploads of 1 MiB, 16 connections",
             partial(load.http, connections=16, upload=MIB)),
        all_of("app-h2/1", systems.PAIR_GRPC, partial(load.grpc, connections=1, streams=100),
               "The mTLS pair, gRPC calls, 1 connection with 100 streams", upstream="grpc"),
        all_of("app-h2/64", systems.PAIR_GRPC, partial(load.grpc, connections=64, streams=1),
               "The mTLS pair, gRPC calls, 64 connections with 1 stream each", upstream="grpc"),
        all_of("tcp", systems.PAIR_TCP, partial(load.tcp, connections=8),
               "Opaque TCP through the mTLS pair, 8 connections", upstream="bytes", per="MiB", redirects=True),
        all_of("handshakes", systems.HANDSHAKES, partial(load.handshakes, connections=16),
               "New connections through the mTLS pair, 16 at a time", upstream="bytes", per="connection",
               redirects=True),
    ]


@dataclass
class Idle:
    """Connections that have each made one request, and wait."""

    name: str
    title: str
    connections: int
    systems: dict

    @property
    def entries(self):
        return {(self.name, system): start for system, start in self.systems.items()}


def idles():
    """The cases that measure memory alone."""
    pairs = systems.PAIR_H1 | systems.PAIR_H2
    return [Idle(f"{kind}/{count}", f"{what}, {count:,} idle connections", count, known)
            for kind, what, known in (("idle", "One plain hop", systems.HOP), ("idle-pair", "The mTLS pair", pairs))
            for count in (64, 4000)]


@dataclass
class Own:
    """What only Pannier is asked: measured by a function of its own, which returns its rows."""

    name: str
    title: str
    measure: Callable

    # Further cases that it returns rows of.
    beside: tuple = ()

    @property
    def entries(self):
        return {(case, "pannier"): None for case in (*self.beside, self.name)}


def owns():
    return [
        Own("two-workers", "Two workers, on both cores, beside one", workers.two, beside=("one-worker",)),
        Own("shares/h1-4", "Two workers, 4 connections of HTTP/1.1", workers.shares_h1),
        Own("shares/h2-1", "Two workers, 1 connection of HTTP/2 with 100 streams", workers.shares_h2),
        Own("slow-readers", "1,000 slow readers over 100 callers", workers.slow_readers),
    ]
