"""What ``--forward`` says of a server: its address, and behind commas how the proxy uses it.

``foo.example:8001,weight=3,backup,name=first``: what stands behind commas at the right end is read here as long as it
is exactly one of these; everything before it, commas included, is the address.  `fooproxy.values` checks the address.
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


@dataclass(frozen=True)
class Forward:
    """One server to forward to."""

    address: str
    weight: int = 1
    backup: bool = False
    label: str = ""
    most: int | None = None
    """How many connections it may have at once; 0 for any number, `None` if it does not say."""

    @property
    def name(self) -> str:
        """What the server is called, in one line."""
        return one_line(self.label or self.address)

    def __str__(self) -> str:
        return self.address


def read_forward(text: str) -> Forward:
    """Read one server.

    :raises ValueError: a word is given twice.
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
    """Return a server that is called like one before it, or `None`."""
    names = [server.name for server in servers]
    return next((server for place, server in enumerate(servers) if server.name in names[:place]), None)
