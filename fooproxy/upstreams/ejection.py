"""Ejection: takes out a server that accepts connections but fails its clients, as long as others can replace it.

A failure is a session that the server left with requests unanswered, or ended as soon as it began, or one that has
waited `STUCK` seconds for a reply from a server that answers no request.  `IN_A_ROW` of them, without a served session
in between, take the server out for a while.  Afterwards a trial must succeed before it is used again, and the first
failure after that takes it out for longer.  The last server is never taken out, nor more than half of them.  A NAK is
not a failure.

This module only decides; `fooproxy.upstreams.condition` holds the state.  Sessions are counted elsewhere, and their
ends are reported here.  Times are seconds on the clock of those counts.
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
        """The counts of a server's sessions."""

        @property
        def stuck(self) -> int:
            """1 if requests wait and the server answers none of them, else 0."""

        def waiting(self, since: float) -> int:
            """Return how many sessions have waited for a reply since the time `since` or longer."""

        def is_answering(self, since: float) -> bool:
            """Return whether an open session has received a reply after the time `since`."""


IN_A_ROW = 3
"""Failures in a row that take a server out."""

STUCK = 10.0
"""Seconds that a request must wait on a server that answers no request before its session counts as a failure."""


class _Streak:
    """The failures of a server since it last served a session."""

    def __init__(self) -> None:
        self.failures = 0
        self.began = float("-inf")
        """When the first of these failures happened."""
        self.stuck_at = float("-inf")
        """When sessions that wait on the stuck server were last counted."""


class Ejection:
    """Takes any of `servers` out for its failures; `records` has the counts of each, and `clock` returns the time.

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
        """Watch `server` from now on; its number is the place of its record."""
        self._watched[server.number] = server, _Streak()
        self._run()

    def leave(self, server: Server) -> None:
        """Stop watching `server`."""
        del self._watched[server.number]

    def start(self, reactor: IReactorTime) -> None:
        """Check every second for servers that answer no request."""
        self._looping.clock = reactor
        self._is_started = True
        self._run()

    def _run(self) -> None:
        if self._is_started and self._watched and not self._looping.running:
            self._looping.start(1.0, now=False)

    def stop(self) -> None:
        """Stop these checks."""
        self._is_started = False
        if self._looping.running:
            self._looping.stop()

    def ended(self, number: int, dropped: bool, replied: float) -> None:
        """Record that a session of server `number` ended: `dropped`, or served with its last reply at `replied`."""
        if dropped:
            self._blame(number, 1, "it ends sessions with requests unanswered", "upstream_drops_requests")
        elif replied > self._watched[number][1].began:
            self._watched[number][1].failures = 0

    def look(self) -> None:
        """Count the sessions that wait on servers that answer no request."""
        now = self._clock()
        for number, (server, streak) in self._watched.items():
            record = self._records[number]
            if server.failing or not record.stuck:
                continue
            # The first of many stuck sessions may be seen a second before the others.
            waiting = record.waiting(now - STUCK)
            if waiting >= IN_A_ROW or now - streak.stuck_at >= STUCK:
                streak.stuck_at = now
                why = f"it has not answered any request for {STUCK:g} s"
                self._blame(number, waiting, why, "upstream_stuck")

    def _blame(self, number: int, failures: int, why: str, reason: str) -> None:
        server, streak = self._watched[number]
        if server.failing:
            # The server is out already.
            return
        if not streak.failures:
            streak.began = self._clock()
        streak.failures += failures
        if streak.failures < IN_A_ROW or not self._can_be_spared(server):
            return
        if self._records[number].is_answering(streak.began):
            # Other sessions are served, so these failures are not in a row.
            streak.failures = 0
            return
        # Once the server has come back, one failure is enough.
        streak.failures = IN_A_ROW - 1
        server.eject(why, reason)

    def _can_be_spared(self, server: Server) -> bool:
        """Return whether another server can take the clients, and at most half of all servers would then be out."""
        others = [each for each in self._servers if each is not server and not each.gone]
        out = 1 + sum(each.ejected for each in others)
        return 2 * out <= len(others) + 1 and any(each.is_usable and not each.doubted for each in others)
