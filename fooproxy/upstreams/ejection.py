"""Ejection: takes a server out that can be connected, but fails its clients, as long as others can take its place.

A failure is a session that the server left with requests unanswered, or ended as soon as it began, or one that has
waited in vain for `STUCK` seconds on a server that answers nobody.  `IN_A_ROW` of them, with no session in between that
was served, take the server out for a while; the set then tries it before it is used again, and the first failure after
that takes it out for longer.  Never is the last server taken out, nor more than half of them.  NAKs are no failures.

It decides only; `fooproxy.upstreams.condition` has the state.  What happens to the sessions is counted elsewhere and
reported here.  Times are seconds on one clock, that of those counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.task import LoopingCall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from twisted.internet.interfaces import IReactorTime

    from fooproxy.upstreams.server import Server

    class Record(Protocol):
        """What is known of the sessions of a server."""

        @property
        def stuck(self) -> int:
            """1 if requests wait and the server answers nobody, else 0."""

        def waiting(self, since: float) -> int:
            """Return how many sessions have waited for a reply since a time, or longer."""

        def is_answering(self, since: float) -> bool:
            """Return whether an open session has got a reply after a time."""


IN_A_ROW = 3
"""Failures in a row that take a server out."""

STUCK = 10.0
"""Seconds that a request waits on a server that answers nobody until its session counts as a failure."""


class _Streak:
    """The failures of a server since it last served somebody."""

    def __init__(self) -> None:
        self.failures = 0
        self.began = float("-inf")
        """When the first of them was."""
        self.stuck_at = float("-inf")
        """When sessions that wait in vain were last counted."""


class Ejection:
    """Takes any of `servers` out for its failures; `records` has what is known of each, and `clock` returns the time.

    A single server has no record, and is never taken out.
    """

    def __init__(self, servers: Sequence[Server], records: Sequence[Record], clock: Callable[[], float]) -> None:
        self._servers = servers
        self._records = records
        self._clock = clock
        self._watched: dict[int, tuple[Server, _Streak]] = {}
        self._looping = LoopingCall(self.look)
        self._is_started = False
        for server in servers if records else ():
            self.join(server)

    def join(self, server: Server) -> None:
        """Watch a server too; its record is that of its number."""
        self._watched[server.number] = server, _Streak()
        self._run()

    def leave(self, server: Server) -> None:
        """Watch a server no more."""
        del self._watched[server.number]

    def start(self, reactor: IReactorTime) -> None:
        """Look every second from now on for servers that answer nobody."""
        self._looping.clock = reactor
        self._is_started = True
        self._run()

    def _run(self) -> None:
        if self._is_started and self._watched and not self._looping.running:
            self._looping.start(1.0, now=False)

    def stop(self) -> None:
        """Cease to look."""
        self._is_started = False
        if self._looping.running:
            self._looping.stop()

    def ended(self, number: int, dropped: bool, replied: float) -> None:
        """Take note that a session of a server has ended: `dropped`, or served, with its last reply at `replied`."""
        if dropped:
            self._blame(number, 1, "it ends sessions with requests unanswered", "upstream_drops_requests")
        elif replied > self._watched[number][1].began:
            self._watched[number][1].failures = 0

    def look(self) -> None:
        """Count the sessions that wait on servers that answer nobody."""
        now = self._clock()
        for number, (server, streak) in self._watched.items():
            record = self._records[number]
            if server.failing or not record.stuck:
                continue
            # The first of many may be seen a second before the others.
            waiting = record.waiting(now - STUCK)
            if waiting >= IN_A_ROW or now - streak.stuck_at >= STUCK:
                streak.stuck_at = now
                why = f"it has not answered any request for {STUCK:g} s"
                self._blame(number, waiting, why, "upstream_stuck")

    def _blame(self, number: int, failures: int, why: str, reason: str) -> None:
        server, streak = self._watched[number]
        if server.failing:
            # It is out already.
            return
        if not streak.failures:
            streak.began = self._clock()
        streak.failures += failures
        if streak.failures < IN_A_ROW or not self._can_be_spared(server):
            return
        if self._records[number].is_answering(streak.began):
            # Others are served; so these failures are not in a row.
            streak.failures = 0
            return
        # After it has come back, one is enough.
        streak.failures = IN_A_ROW - 1
        server.eject(why, reason)

    def _can_be_spared(self, server: Server) -> bool:
        """Return whether another server may take the clients, and half of all servers are not taken out by this."""
        others = [each for each in self._servers if each is not server and not each.gone]
        out = 1 + sum(each.ejected for each in others)
        return 2 * out <= len(others) + 1 and any(each.is_usable and not each.doubted for each in others)
