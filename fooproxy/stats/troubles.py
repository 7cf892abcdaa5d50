"""Troubles: whether the upstream leaves requests unanswered, from what happens to the sessions.

It is *stuck* if requests wait and no reply has been read for `STUCK_AFTER`.  Clients that give up sooner and try again
must not hide that, so a request that had waited for a while when its session ended counts as one that still waits, for
as long as others follow it.

Times are microseconds on the clock of the traffic.  The sessions and the time of the last reply are passed in; nothing
here counts anything.  `fooproxy.stats.counters` asks, and `fooproxy.stats.session` reports the ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fooproxy.stats.clients import Session

STUCK_AFTER = 10.0
"""Seconds that requests wait without any reply being read until the upstream counts as stuck."""

_PATIENCE = 1.0
"""Seconds that a request must have waited for its end to say something about the upstream, and not about its client."""

_MEMORY = 30.0
"""Seconds for which requests that were given up count as waiting, if no reply is read meanwhile."""


class Troubles:
    """What the ends of sessions say about the upstream."""

    def __init__(self) -> None:
        self._dropped_at = float("-inf")
        """When the upstream last dropped a session."""
        self._given_up: tuple[float, float] = (0.0, float("-inf"))
        """Since when, and until when, requests waited that their clients have given up."""

    def ended(self, session: Session, dropped: bool, now: float, replied: float) -> None:
        """Note the end of a session, and whether the upstream dropped it; a reply was last read at `replied`."""
        if dropped:
            self._dropped_at = now
        since = _waiting_since(session)
        if since is not None and now - since >= _PATIENCE * 1e6:
            # Any reply ends the wait of all sessions.
            self._given_up = min(max(since, replied), self._unanswered_since(now, replied)), now

    def is_stuck(self, sessions: Iterable[Session], now: float, replied: float) -> bool:
        """Return whether no reply has been read for too long, although requests wait in `sessions` or have done so."""
        if now - replied < STUCK_AFTER * 1e6:
            return False
        waiting = [since for since in map(_waiting_since, sessions) if since is not None]
        last = now if waiting else self._given_up[1]
        return last - min([*waiting, self._unanswered_since(now, replied)]) >= STUCK_AFTER * 1e6

    def drops(self, now: float) -> bool:
        """Return whether the upstream has dropped a session in the last 10 seconds."""
        return now - self._dropped_at < STUCK_AFTER * 1e6

    def _unanswered_since(self, now: float, replied: float) -> float:
        """Return since when requests waited that were given up lately, if no reply has been read since; or infinity."""
        since, until = self._given_up
        return since if since >= replied and now - until < _MEMORY * 1e6 else float("inf")


def _waiting_since(session: Session) -> int | None:
    """Return when the oldest open request of a session was read; `None` if none is, or if the client holds it up."""
    return None if session.is_held_up or not session.exchange.open else session.exchange.waiting_since
