r"""The grammar of the Foo protocol, and the only module that knows it.

The rule for each line (everything between two ``\n``)::

    Type <one or more spaces or tabs> Seq [<one or more spaces or tabs> Data]

Type is ``REQ``, ``ACK`` or ``NAK``; Seq is decimal digits with an optional sign; Data is any bytes; one CR at the end
is tolerated.

The head of a line alone decides whether it is a message.  All that matters about an unfinished line is the place in
the grammar that its head has reached: `canonical` returns the shortest line at the same place.

The analyzer calls these functions; nothing here holds any state.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import NamedTuple

_HEAD = rb"(REQ|ACK|NAK)[ \t]+[+-]?[0-9]+"
TYPES = re.compile(rb"^" + _HEAD + rb"(?:[ \t].*|\r?)$", re.MULTILINE)
"""Finds the type of each line that is a message."""

# A usual head: the leg's own types, one space, up to twenty digits, then a space or the end of the line.  Anything else
# may still be a message, and is examined more closely.  The possessive quantifier (Python 3.11) avoids backtracking.
_DIGITS = rb"[0-9]{1,20}" + (b"+" if sys.version_info >= (3, 11) else b"")
NO_REQUEST = re.compile(rb"\n(?!REQ " + _DIGITS + rb"[ \n])")
NO_REPLY = re.compile(rb"\n(?!ACK " + _DIGITS + rb"[ \n]|NAK " + _DIGITS + rb"[ \n])")
"""Find the first newline without a usual head behind it."""

_IN_DATA = re.compile(_HEAD + rb"[ \t]")
_IN_SEQ = re.compile(_HEAD + rb"(\r?)")
_IN_GAP = re.compile(rb"(REQ|ACK|NAK)[ \t]+([+-]?)")
_IN_TYPE = frozenset(word[:length] for word in (b"REQ", b"ACK", b"NAK") for length in range(4))
_HOPELESS = b"!"

LONG = 256
"""Bytes; if the first line is at least this long, it is faster to find each newline and examine only the heads."""

_HEAD_SIZE = 32
"""Bytes; enough for a newline and any usual head."""


def canonical(head: bytes) -> bytes:
    """Return the shortest beginning of a line that counts the same as `head`, however the line continues."""
    if match := _IN_DATA.match(head):
        return match[1] + b" 0 "
    if match := _IN_SEQ.fullmatch(head):
        return match[1] + b" 0" + match[2]
    if match := _IN_GAP.fullmatch(head):
        return match[1] + b" " + match[2]
    return head if head in _IN_TYPE else _HOPELESS


class Automaton(NamedTuple):
    """The grammar as a table: the same rules as `canonical` and `TYPES`, for code that reads one byte after the other.

    Its states are the canonical heads, by number; state 0 is the beginning of a line.  Only a newline leads back to it,
    and from the state `absorbing` on only a newline leads anywhere else.
    """

    transitions: bytes
    """The next state, at 256 times the state plus the byte."""
    kinds: bytes
    """For each state, the kind of a line that ends in it, as its place in `KINDS`."""
    heads: tuple[bytes, ...]
    absorbing: int


KINDS = (b"REQ", b"ACK", b"NAK", b"")
"""The types of messages, and ``b""`` for an invalid line, in the order in which they are counted."""


@cache
def automaton() -> Automaton:
    """Derive the automaton from the functions of this module."""
    heads = [b""]
    after: dict[bytes, list[bytes]] = {}
    for head in heads:
        after[head] = [b"" if byte == b"\n" else canonical(head + byte) for byte in map(_byte, range(256))]
        heads += sorted(set(after[head]).difference(heads))
    absorbing = [head for head in heads if set(after[head]) == {b"", head}]
    heads = [head for head in heads if head not in absorbing] + absorbing
    numbers = {head: number for number, head in enumerate(heads)}
    transitions = bytes(numbers[following] for head in heads for following in after[head])
    kinds = bytes(1 + KINDS.index(b"".join(TYPES.findall(head))) for head in heads)
    return Automaton(transitions, kinds, tuple(heads), len(heads) - len(absorbing))


def _byte(number: int) -> bytes:
    return bytes((number,))


def heads_of(head: bytes, chunk: bytes, end: int) -> bytes | None:
    r"""Return the heads of the lines in `head` and `chunk` up to `end`, with a ``\n`` before each and at the end.

    `None` if the lines turn out not to be long: it is faster then to examine all their bytes at once.
    """
    if not end:
        return b"\n"
    find = chunk.find
    here = find(b"\n")
    found = [b"\n", (head + chunk[: min(here, _HEAD_SIZE)])[:_HEAD_SIZE]]
    for _ in range(end // LONG + 1):
        if here == end - 1:
            found.append(b"\n")
            return b"".join(found)
        following = find(b"\n", here + 1)
        cut = here + _HEAD_SIZE
        found.append(chunk[here : cut if cut < following else following])
        here = following
    return None
