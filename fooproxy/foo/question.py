r"""The request that a check sends to a server, and the test of the reply.

Its seq is 1, since it is the first request of its connection, and its data is a random mark.  So a server that insists
on seqs in order answers it, and it contains no client's data.  Any well-formed ACK or NAK shows that the server
answers, whatever its seq and data are.

This module is sans-IO; `fooproxy.parts` passes it to `fooproxy.upstreams.checks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fooproxy.foo.grammar import TYPES

if TYPE_CHECKING:
    from random import Random

LONGEST = 1 << 16
"""Bytes; a longer first line cannot be the reply to such a short request."""


class Question:
    """A request, with a mark from `random`; `hear` judges what the server sends."""

    def __init__(self, random: Random) -> None:
        self.request = b"REQ 1 check-%016x\n" % random.getrandbits(64)
        self._heard = b""

    def hear(self, chunk: bytes) -> bool | None:
        """Return whether the first line is a reply; `None` as long as it is not complete."""
        self._heard += chunk
        line, newline, _ = self._heard.partition(b"\n")
        if not newline:
            return None if len(line) <= LONGEST else False
        kind = TYPES.match(line)
        return kind is not None and kind[1] != b"REQ"
