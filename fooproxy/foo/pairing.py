"""Whether the replies of a session had the seqs of its requests, in a few bytes, whatever passes.

Requests and replies are matched by their order, which is all that a connection of one client needs.  One that several
clients use after each other needs more: if a server says something that nobody has asked for while a request is open,
the order alone takes it for the reply, and the reply goes to the next client.  So what is pooled is also compared by
seq: each adds a number that depends on it to a sum if it is a request's, and takes it away if it is a reply's.  Once
every request has its reply, the sum is 0, unless the seqs were others.  The order does not matter, nor do zeros at the
beginning or a plus sign, which servers drop.

Pure: it sees chunks and knows no exchange.  The analysis feeds it, if it is asked to; counting.c has the twin.
"""

from __future__ import annotations

import re

_TYPE, _GAP, _SEQ, _REST = range(4)
"""The places in a line: before the first space, before the seq, in the seq, behind it."""

_USUAL = re.compile(rb"^[A-Z]{3} ([0-9]{1,9})(?: .*)?\n", re.MULTILINE)
"""A line with a seq that is read at once."""

_NO_GAP = re.compile(rb"[^ \t]*")
_NO_SEQ = re.compile(rb"[ \t+]*")
_DIGITS = re.compile(rb"[0-9]*")

_MINUS = 7919
"""What a seq with a minus sign begins with."""

_ALL = 0xFFFFFFFF
_STEP = 9
"""Digits that are read at once."""


class Pairs:
    """The sum for one session, and how far the unfinished line of each leg has been read."""

    __slots__ = ("_begun", "unpaired")

    def __init__(self) -> None:
        self.unpaired = 0
        """The sum: 0 if the replies had the seqs of the requests."""
        self._begun = [(_TYPE, 0), (_TYPE, 0)]

    def feed(self, requests: bool, chunk: bytes) -> None:
        """Read the next chunk of a leg: that of the requests or that of the replies."""
        place, seq = self._begun[requests]
        if place == _TYPE and chunk.endswith(b"\n"):
            seqs = _USUAL.findall(chunk)
            if len(seqs) == chunk.count(b"\n"):
                mixed = sum(map(_mixed, map(int, seqs)))
                self.unpaired = (self.unpaired + (mixed if requests else -mixed)) & _ALL
                return
        *whole, last = chunk.split(b"\n")
        for part in whole:
            seq = _mixed(_read(place, seq, part)[1])
            self.unpaired = (self.unpaired + (seq if requests else -seq)) & _ALL
            place, seq = _TYPE, 0
        self._begun[requests] = _read(place, seq, last)

    def take_back(self, requests: bool) -> None:
        """Forget the unfinished line of a leg."""
        self._begun[requests] = (_TYPE, 0)


def _read(place: int, seq: int, part: bytes) -> tuple[int, int]:
    """Read on in a line; return the place after `part`, and the seq as far as it is known."""
    here = 0
    if place == _TYPE:
        here = _end(_NO_GAP, part, 0)
        if here == len(part):
            return place, seq
        place = _GAP
    if place == _GAP:
        here = _end(_NO_SEQ, part, here)
        if here == len(part):
            return place, seq
        place = _SEQ
        if part[here : here + 1] == b"-":
            here, seq = here + 1, _MINUS
    if place == _SEQ:
        end = _end(_DIGITS, part, here)
        for start in range(here, end, _STEP):
            digits = part[start : min(start + _STEP, end)]
            seq = (seq * 10 ** len(digits) + int(digits)) & _ALL
        if end < len(part):
            place = _REST
    return place, seq


def _end(pattern: re.Pattern[bytes], part: bytes, here: int) -> int:
    match = pattern.match(part, here)
    assert match is not None
    return match.end()


def _mixed(seq: int) -> int:
    """Return a number that depends on a seq such that sums of others are hardly ever the same."""
    mixed = seq * 0x9E3779B1 & _ALL
    return (mixed ^ mixed >> 15) * 0x85EBCA6B & _ALL
