"""Checks whether the replies of a session had the seqs of its requests, in a few bytes of memory.

Requests and replies are matched by their order, which is enough for a connection with one client.  A connection that
several clients use after each other needs more: if a server sends something unsolicited while a request is open, the
order alone takes it for the reply, and the real reply goes to the next client.  So on pooled connections, the seqs are
compared too.  A request adds a number that depends on its seq to a sum, and a reply subtracts that number.  Once every
request has its reply, the sum is 0, unless the seqs differ.  The order does not matter, nor do leading zeros or a plus
sign, which servers drop.

This module is pure: it sees chunks and knows no exchange.  The analysis feeds it on request; counting.c has the twin.
"""

from __future__ import annotations

import re

_TYPE, _GAP, _SEQ, _REST = range(4)
"""The places in a line: before the first space, before the seq, in the seq, after the seq."""

_USUAL = re.compile(rb"^[A-Z]{3} ([0-9]{1,9})(?: .*)?\n", re.MULTILINE)
"""A line whose seq can be read in one step."""

_NO_GAP = re.compile(rb"[^ \t]*")
_NO_SEQ = re.compile(rb"[ \t+]*")
_DIGITS = re.compile(rb"[0-9]*")

_MINUS = 7919
"""The start value for a seq with a minus sign."""

_ALL = 0xFFFFFFFF
_STEP = 9
"""Digits that are read in one step."""


class Pairs:
    """The sum for one session, and the position in the unfinished line of each leg."""

    __slots__ = ("_begun", "unpaired")

    def __init__(self) -> None:
        self.unpaired = 0
        """The sum: 0 if the replies had the seqs of the requests."""
        self._begun = [(_TYPE, 0), (_TYPE, 0)]

    def feed(self, requests: bool, chunk: bytes) -> None:
        """Read the next chunk of a leg: the client's (`requests` true) or the upstream's."""
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
    """Continue reading a line; return the place after `part`, and the seq as far as it has been read."""
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
    """Return a number for a seq, such that sums for different seqs are very unlikely to be equal."""
    mixed = seq * 0x9E3779B1 & _ALL
    return (mixed ^ mixed >> 15) * 0x85EBCA6B & _ALL
