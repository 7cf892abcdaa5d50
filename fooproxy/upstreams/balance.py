"""Balancing: which of several servers gets the next client.

This module is pure: randomness comes from a source that is passed in, and nothing here connects or reads a clock.  It
sees three things of a server: its `share` (its weight, or less for a while after it was down), its `load`, and its
name.  `fooproxy.upstreams.members` calls it with the servers that are available.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    class Candidate(Protocol):
        """The properties of a server that are compared."""

        @property
        def name(self) -> str:
            """The name."""

        @property
        def weight(self) -> int:
            """The server's part of the clients, in proportion to the weights of the others."""

        @property
        def share(self) -> float:
            """The weight, or less for a while after the server was down."""

        @property
        def load(self) -> int:
            """Open sessions and requests in flight together."""

    C = TypeVar("C", bound=Candidate)

BOUND = 1.25
"""A server gets at most this many times its part of the load from the clients that are kept on it."""

_LARGEST = 1 << 64


class Balance(Protocol):
    """A way to choose a server."""

    def choose(self, candidates: Sequence[C], client: str) -> C:
        """Return one of `candidates`, of which there is at least one, for the client at the address `client`."""


class Least:
    """The less loaded of two servers that are picked at random, each load in proportion to its share.

    Only two are compared: if all clients of one instant went to the least loaded server, they would overload it.
    Servers are picked by their shares; if the loads are the same, the first one picked is chosen.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, candidates: Sequence[C], client: str) -> C:
        """Choose by load."""
        first = self._pick(candidates)
        others = [each for each in candidates if each is not first]
        if not others:
            return first
        second = self._pick(others)
        return second if second.load / second.share < first.load / first.share else first

    def _pick(self, candidates: Sequence[C]) -> C:
        if len(candidates) == 1:
            return candidates[0]
        return self._random.choices(candidates, [each.share for each in candidates])[0]


class RoundRobin:
    """Chooses one server after the other, evenly interleaved by their shares."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def choose(self, candidates: Sequence[C], client: str) -> C:
        """Choose the next server: each gains its share in credit, and the one with the most credit pays for all."""
        credit = {each.name: self._credit.get(each.name, 0.0) + each.share for each in candidates}
        chosen = max(candidates, key=lambda each: credit[each.name])
        credit[chosen.name] -= sum(each.share for each in candidates)
        # A server that is not available gains nothing, so that it does not get all clients when it is back.
        self._credit = credit
        return chosen


class Hash:
    """Chooses the same server for the same client, while that is available and not overloaded (see `BOUND`).

    Each client has its own order of preference among the servers (rendezvous hashing): if a server is gone, only its
    clients move, and they spread over all the others.
    """

    def choose(self, candidates: Sequence[C], client: str) -> C:
        """Choose by the client's address."""
        load, shares = sum(each.load for each in candidates) + 1, sum(each.share for each in candidates)
        preferred = sorted(candidates, key=lambda each: _affinity(client, each.name, each.weight), reverse=True)
        return next(each for each in preferred if each.load < math.ceil(BOUND * load * each.share / shares))


def _affinity(client: str, name: str, weight: int) -> float:
    """Return how strongly a client prefers a server; each server comes first for its part of all clients."""
    digest = blake2b(f"{client}\0{name}".encode(), digest_size=8).digest()
    return -weight / math.log((int.from_bytes(digest, "big") + 1) / (_LARGEST + 1))


BALANCES: dict[str, Callable[[Random], Balance]] = {
    "least": Least,
    "round-robin": lambda random: RoundRobin(),
    "hash": lambda random: Hash(),
}
"""The ways to choose, by their names in ``--balance``."""
