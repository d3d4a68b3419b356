"""How every system sees the endpoints: each has a name for clients and a loopback address of its
own. What listens on a port of all of them is the same; a proxy cannot know."""


def host(endpoint):
    return f"e{endpoint}.row"


def address(endpoint):
    return f"127.16.{endpoint >> 8}.{endpoint & 255}"
