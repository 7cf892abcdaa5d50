"""The traffic with one server, as counted by the analyzers in a run of the array of numbers.

With one server, all traffic is counted in one place.  With several, each server has a place of its own, there is one
for traffic that is not assigned to a server yet, and the totals are sums over all of them.  `fooproxy.stats.counters`
owns the array, and `fooproxy.stats.session` moves a session to the place of its server.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, TypeVar

from fooproxy.foo.analyzer import Counts
from fooproxy.foo.latency import Latency
from fooproxy.stats.troubles import Troubles

if TYPE_CHECKING:
    from collections.abc import MutableSequence, Sequence

    from fooproxy.foo.analyzer import Analysis, Analyzer
    from fooproxy.foo.counting import Twin
    from fooproxy.foo.latency import Exchange
    from fooproxy.foo.numbers import Block

    B = TypeVar("B", bound=Block)

_UPSTREAM = len(Counts.names)
_LATENCY = 2 * _UPSTREAM


class Figures:
    """The blocks of one place: `client` and `upstream` for the legs, and `latency`, from `start` of `numbers` on."""

    def __init__(self, numbers: MutableSequence[int], start: int) -> None:
        self.client = Counts(numbers, start)
        self.upstream = Counts(numbers, start + _UPSTREAM)
        self.latency = Latency(numbers, start + _LATENCY)

    @property
    def in_flight(self) -> int:
        """Unanswered requests of open sessions: the same as `latency.in_flight`, without adding up its buckets."""
        latency = self.latency
        return latency.asked - latency.given_up - (self.upstream.replies - latency.unmatched)


class Traffic(Figures):
    """The figures of one place, with the analyses that count there; `before` is the traffic to count first."""

    def __init__(self, numbers: MutableSequence[int], start: int, twin: Twin, before: Traffic | None = None) -> None:
        super().__init__(numbers, start)
        self._twin = twin
        earlier: Analysis | None = None if before is None else before.replies
        self.requests = twin.Analysis(self.latency, requests=True, before=earlier, total=self.client)
        self.replies: Analysis = twin.Analysis(self.latency, requests=False, before=self.requests, total=self.upstream)
        self.troubles = Troubles()

    def analyzers(self) -> tuple[Exchange, Analyzer, Analyzer]:
        """Return the parts that count a new session: its exchange, and the analyzers of its two legs."""
        exchange = self._twin.Exchange(self.latency)
        return exchange, self._twin.Analyzer(self.requests, exchange), self._twin.Analyzer(self.replies, exchange)

    def take_over(self, early: Traffic | None, exchange: Exchange, client: Analyzer, upstream: Analyzer) -> None:
        """Count a session here from now on; its traffic so far moves here too if it was counted in `early`."""
        self.replies.catch_up()
        if early is not None and client.bytes:
            for name in Counts.names:
                count = getattr(client, name)
                setattr(early.client, name, getattr(early.client, name) - count)
                setattr(self.client, name, getattr(self.client, name) + count)
        client.move(self.requests)
        upstream.move(self.replies)
        exchange.move(self.latency)

    def digest(self) -> None:
        """Count the chunks fed to the analyzers if many wait."""
        self.requests.digest()
        self.replies.digest()


def total(blocks: Sequence[B]) -> B:
    """Return the sum of blocks of one kind; for numbers that are not additive, the largest one."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    size = len(first.names)
    rows = [block.numbers[block.start : block.start + size] for block in blocks]
    found = type(first)(array("q", map(sum, zip(*rows, strict=True))))
    for name in first.largest:
        setattr(found, name, max(getattr(block, name) for block in blocks))
    return found
