r"""The grammar of the Foo protocol, and the only place that knows it.

The rules, for each line (whatever stands between two ``\n``)::

    Type <one or more spaces or tabs> Seq [<one or more spaces or tabs> Data]

with Type ``REQ``, ``ACK`` or ``NAK``, Seq decimal digits with an optional sign, Data any bytes, and one CR tolerated
at the end.

Whether a line is a message is decided by its head alone, and all that can still matter of an unfinished line is where
in the grammar its head stands: `canonical` gives the shortest line that stands at the same place.

The analyzer asks it; it holds nothing.
"""

from __future__ import annotations

import re
import sys

_HEAD = rb"(REQ|ACK|NAK)[ \t]+[+-]?[0-9]+"
TYPES = re.compile(rb"^" + _HEAD + rb"(?:[ \t].*|\r?)$", re.MULTILINE)
"""Finds the types of all lines that are messages."""

# What is usual on a leg: these types, a space, up to twenty digits, a space or the end.  Anything else may be a message
# all the same, and is looked at more closely.  Python 3.11 need not remember where it could take digits back.
_DIGITS = rb"[0-9]{1,20}" + (b"+" if sys.version_info >= (3, 11) else b"")
NO_REQUEST = re.compile(rb"\n(?!REQ " + _DIGITS + rb"[ \n])")
NO_REPLY = re.compile(rb"\n(?!ACK " + _DIGITS + rb"[ \n]|NAK " + _DIGITS + rb"[ \n])")
"""Find the first newline that no message as usual follows."""

_IN_DATA = re.compile(_HEAD + rb"[ \t]")
_IN_SEQ = re.compile(_HEAD + rb"(\r?)")
_IN_GAP = re.compile(rb"(REQ|ACK|NAK)[ \t]+([+-]?)")
_IN_TYPE = frozenset(word[:length] for word in (b"REQ", b"ACK", b"NAK") for length in range(4))
_HOPELESS = b"!"

LONG = 256
"""Bytes of a first line from which on it pays to find each newline, and to look at the heads alone."""

_HEAD_SIZE = 32
"""Bytes that hold a newline and any usual head."""


def canonical(head: bytes) -> bytes:
    """Give the shortest beginning of a line that every continuation turns into the same count as `head`."""
    if match := _IN_DATA.match(head):
        return match[1] + b" 0 "
    if match := _IN_SEQ.fullmatch(head):
        return match[1] + b" 0" + match[2]
    if match := _IN_GAP.fullmatch(head):
        return match[1] + b" " + match[2]
    return head if head in _IN_TYPE else _HOPELESS


def heads_of(head: bytes, chunk: bytes, end: int) -> bytes | None:
    r"""Give the lines of `head` and `chunk` up to `end`, cut to their heads, with a ``\n`` before each and at the end.

    `None` when the lines are not long after all, so that they are better looked at all at once.
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
