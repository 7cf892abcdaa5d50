"""Balancing: which of several servers gets the next client.

Pure: whatever is random comes from the source that is passed in, and nothing here connects or keeps time.  A server is
known by its `share`, which is its weight or, after it was down, less; by its `load`; and by its name.
`fooproxy.upstreams.servers` asks, with the servers that can be had.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    class Candidate(Protocol):
        """What is compared of a server."""

        @property
        def name(self) -> str:
            """The name."""

        @property
        def weight(self) -> int:
            """Its part of the clients, in proportion to the weights of the others."""

        @property
        def share(self) -> float:
            """The weight, or less for a while after it was down."""

        @property
        def load(self) -> int:
            """Open sessions and requests in flight together."""

    C = TypeVar("C", bound=Candidate)

BOUND = 1.25
"""How much more than its part of the load a server gets at most from the clients that are kept on it."""

_LARGEST = 1 << 64


class Balance(Protocol):
    """A way to choose."""

    def choose(self, candidates: Sequence[C], client: str) -> C:
        """Return one of `candidates`, of which there is at least one, for the client at the address `client`."""


class Least:
    """The less loaded of two servers that are picked at random, each load in proportion to its share.

    Of two only, since all who look at one instant would run to the very least loaded one together.  Servers are picked
    by their shares; if the loads are the same, the first one picked is chosen.
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
    """One after the other, evenly interleaved by their shares."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def choose(self, candidates: Sequence[C], client: str) -> C:
        """Choose the next one: each gains its share, and the one with the most pays for all."""
        credit = {each.name: self._credit.get(each.name, 0.0) + each.share for each in candidates}
        chosen = max(candidates, key=lambda each: credit[each.name])
        credit[chosen.name] -= sum(each.share for each in candidates)
        # Who is not there gains nothing, and so is not given everything when it is back.
        self._credit = credit
        return chosen


class Hash:
    """The same server for the same client, as long as it is there and has not much more than its part of the load.

    Each client has an order of preference of its own among the servers (rendezvous hashing), so if one is gone, only
    its clients go elsewhere, and to all the others.
    """

    def choose(self, candidates: Sequence[C], client: str) -> C:
        """Choose by the client's address."""
        load, shares = sum(each.load for each in candidates) + 1, sum(each.share for each in candidates)
        preferred = sorted(candidates, key=lambda each: _affinity(client, each.name, each.weight), reverse=True)
        return next(each for each in preferred if each.load < math.ceil(BOUND * load * each.share / shares))


def _affinity(client: str, name: str, weight: int) -> float:
    """Return how much a client belongs to a server; each server is the first for its part of all clients."""
    digest = blake2b(f"{client}\0{name}".encode(), digest_size=8).digest()
    return -weight / math.log((int.from_bytes(digest, "big") + 1) / (_LARGEST + 1))


BALANCES: dict[str, Callable[[Random], Balance]] = {
    "least": Least,
    "round-robin": lambda random: RoundRobin(),
    "hash": lambda random: Hash(),
}
"""The ways to choose, by the names that the option has for them."""
