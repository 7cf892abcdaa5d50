"""What ``--forward`` says about a server: its address, and after commas how the proxy uses it.

``foo.example:8001,weight=3,backup,name=first``: settings are read from the right end for as long as each is exactly one
of these; everything before them, commas included, is the address.  `fooproxy.values` checks the address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORD = re.compile(
    r"(?P<rest>.*),(?:weight=(?P<weight>0*[1-9][0-9]{0,3})|(?P<backup>backup)|max=(?P<max>[0-9]{1,9})"
    r"|name=(?P<name>[^,]+))",
    re.S,
)


_NAME = re.compile(r"(?=.{1,253}$)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+")

MOST_SERVERS = 1_000
"""The maximum number of servers that can be given; the recovery file must have room for all, and for earlier ones."""

_FOUND = re.compile(r"(?P<how>dns|srv):(?P<what>.*)", re.S | re.I)
"""An address that stands for all servers found under a name in DNS."""


@dataclass(frozen=True)
class Forward:
    """One server to forward to, or all servers found under a name."""

    address: str
    weight: int = 1
    backup: bool = False
    label: str = ""
    most: int | None = None
    """The maximum number of connections to the server; 0: no limit, `None`: not given."""

    @property
    def name(self) -> str:
        """The name of the server, in one line."""
        return one_line(self.label or self.address)

    def __str__(self) -> str:
        return self.address

    @property
    def source(self) -> Source | None:
        """The name to look the servers up under; `None` if this is a single server."""
        return source(self.address)


@dataclass(frozen=True)
class Source:
    """A name to look up: a host, whose addresses have a server at `port`, or, without `port`, a service (SRV)."""

    name: str
    port: int | None


def source(address: str) -> Source | None:
    """Parse an address that stands for servers found by name (``dns:``, ``srv:``); return `None` for any other address.

    :raises ValueError: the name or the port is wrong; the message says what would be right.
    """
    match = _FOUND.fullmatch(address)
    if match is None:
        return None
    if match["how"].lower() == "srv":
        labels = match["what"].split(".")
        if _NAME.fullmatch(match["what"]) and len(labels) > 2 and all(each.startswith("_") for each in labels[:2]):
            return Source(match["what"], None)
        raise ValueError(f"{address!r} does not name a service; expected one such as srv:_foo._tcp.example")
    name, _, port = match["what"].rpartition(":")
    is_number = port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
    is_address = name.rpartition(".")[2].isdecimal()
    if not (is_number and _NAME.fullmatch(name)) or is_address:
        raise ValueError(f"{address!r} does not name a host and a port; expected them such as dns:foo.example:8001")
    return Source(name, int(port))


def read_forward(text: str) -> Forward:
    """Parse the value of ``--forward``; the address itself is not checked.

    :raises ValueError: a setting is given twice.
    """
    address, found = text, dict[str, str]()
    while match := _WORD.fullmatch(address):
        address = match["rest"]
        for word in ("weight", "backup", "max", "name"):
            if match[word] is not None:
                if word in found:
                    raise ValueError(f"{text!r} has {word} twice; expected it once")
                found[word] = match[word]
    most = int(found["max"]) if "max" in found else None
    return Forward(address, int(found.get("weight", "1")), "backup" in found, found.get("name", ""), most)


def twice(servers: Sequence[Forward]) -> Forward | None:
    """Return the first server that has the same name as an earlier one, or `None`."""
    names = [server.name for server in servers]
    return next((server for place, server in enumerate(servers) if server.name in names[:place]), None)
