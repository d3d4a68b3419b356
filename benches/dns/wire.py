"""DNS messages, as much of RFC 1035 as a name with addresses needs: a question is read, and answered
with addresses, with nothing (and an SOA, which says for how long), or with an error."""

import ipaddress
import struct
from dataclasses import dataclass

TYPES = {"A": 1, "AAAA": 28}
SOA, OPT, IN = 6, 41, 1
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3

RESPONSE, AUTHORITATIVE, RECURSION_DESIRED, RECURSION = 0x8000, 0x0400, 0x0100, 0x0080
# The question's name, which begins behind the header.
SAME_NAME = b"\xc0\x0c"
PAYLOAD = 1232


@dataclass
class Question:
    """What is asked."""

    number: int
    flags: int
    name: str
    kind: str
    # As it was written: the answer repeats it, its letters' case included.
    raw: bytes
    extended: bool


def read(message):
    """The question of a message; a ValueError where there is none."""
    if len(message) < 12:
        raise ValueError("shorter than a header")
    number, flags, questions, _, _, additional = struct.unpack_from(">6H", message)
    if flags & RESPONSE or questions != 1:
        raise ValueError("not one question")
    at, labels = 12, []
    while message[at:at + 1] not in (b"\0", b""):
        size = message[at]
        labels.append(message[at + 1:at + 1 + size].decode("ascii", "replace"))
        at += 1 + size
    if len(message) < at + 5:
        raise ValueError("a question that is cut off")
    (kind,) = struct.unpack_from(">H", message, at + 1)
    known = {code: name for name, code in TYPES.items()}.get(kind, str(kind))
    return Question(number, flags, ".".join(labels).lower(), known, message[12:at + 5], additional > 0)


def write(question, code, addresses=(), ttl=0, zone=None):
    """The answer. Without addresses and with a zone an SOA goes with it, so that who asked knows for
    `ttl` that there are none."""
    flags = RESPONSE | AUTHORITATIVE | RECURSION | question.flags & RECURSION_DESIRED | code
    records = [record(SAME_NAME, TYPES[question.kind], ttl, ipaddress.ip_address(one).packed) for one in addresses]
    authority = [start_of_authority(zone, ttl)] if zone and not records else []
    extra = [b"\0" + struct.pack(">HHIH", OPT, PAYLOAD, 0, 0)] if question.extended else []
    head = struct.pack(">6H", question.number, flags, 1, len(records), len(authority), len(extra))
    return b"".join([head, question.raw, *records, *authority, *extra])


def record(owner, kind, ttl, data):
    return owner + struct.pack(">HHIH", kind, IN, ttl, len(data)) + data


def start_of_authority(zone, ttl):
    """Its last number is the longest that an absence may be remembered (RFC 2308)."""
    apex = encoded(zone)
    return record(apex, SOA, ttl, encoded(f"ns.{zone}") + encoded(f"admin.{zone}") + struct.pack(">5I", 1, 60, 60, 60, ttl))


def encoded(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
