"""Troubles: whether the upstream leaves requests unanswered, judged by its sessions.

The upstream is *stuck* if requests wait and no reply has been read for `STUCK_AFTER`.  Clients that give up sooner and
try again must not hide that, so a request that had waited for a while when its session ended counts as one that still
waits, as long as others follow it.

Times are microseconds on the clock of the traffic.  The sessions and the time of the last reply are passed in; nothing
here counts anything.  `fooproxy.stats.counters` calls this module, and `fooproxy.stats.session` reports the ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fooproxy.stats.clients import Session

STUCK_AFTER = 10.0
"""Seconds that requests must wait without any reply before the upstream counts as stuck."""

_PATIENCE = 1.0
"""Seconds that a request must have waited before its client gives up, so that the upstream is to blame."""

_MEMORY = 30.0
"""Seconds for which requests whose clients gave up count as waiting, if no reply is read meanwhile."""


class Troubles:
    """The conclusions about the upstream from how its sessions end."""

    def __init__(self) -> None:
        self._dropped_at = float("-inf")
        """When the upstream last dropped a session."""
        self._given_up: tuple[float, float] = (0.0, float("-inf"))
        """The start and the end of the time for which requests of clients that gave up count as waiting."""

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
        """Return since when recently given up requests have waited, if no reply has been read since; else infinity."""
        since, until = self._given_up
        return since if since >= replied and now - until < _MEMORY * 1e6 else float("inf")


def _waiting_since(session: Session) -> int | None:
    """Return when the oldest open request of a session was read; `None` without one, or if the client holds it up."""
    return None if session.is_held_up or not session.exchange.open else session.exchange.waiting_since
