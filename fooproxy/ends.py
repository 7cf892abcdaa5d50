"""The log line of each session that ends.

`fooproxy.parts` calls it with the statistics of the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger, LogLevel

from fooproxy.stats.reasons import CLEAN

if TYPE_CHECKING:
    from fooproxy.logs.log import Log
    from fooproxy.stats.session import SessionStats


_LINE = (
    "session {session} of {client} ended: {reason}, after {seconds:.3f} s, "
    "req={req} ack={ack} nak={nak} invalid={invalid} unanswered={unanswered} "
    "bytes_from_client={bytes_from_client} bytes_from_upstream={bytes_from_upstream}"
)


class Ends:
    """Logs the ends of sessions, `everything` or only those that were not clean, within the limits of `logs`."""

    log = Logger()

    def __init__(self, logs: Log, everything: bool) -> None:
        self._logs = logs
        self._everything = everything

    def log_end(self, session: SessionStats, reason: str) -> None:
        """Log the end of a session, at level debug if it ended cleanly and not everything is logged."""
        kind, level = "session ends", LogLevel.info
        is_clean = reason in CLEAN and not (session.exchange.in_flight or session.is_dropped(reason))
        if is_clean and not self._everything:
            kind, level = "clean session ends", LogLevel.debug
        # Building the line costs more than relaying a message, so ask first whether it will be shown.
        if not self._logs.shows(level) or not (self._everything or self._logs.limits.admits(kind, reason, level)):
            return
        client, upstream = session.client, session.upstream
        # With one server, its name is obvious.
        served_by = {} if session.server is None else {"upstream": session.server.name}
        self.log.emit(
            level,
            f"{_LINE} upstream={{upstream}}" if served_by else _LINE,
            session=session.number,
            client=session.address,
            reason=reason,
            seconds=session.age,
            req=client.req + upstream.req,
            ack=client.ack + upstream.ack,
            nak=client.nak + upstream.nak,
            invalid=client.invalid + upstream.invalid,
            unanswered=session.exchange.in_flight,
            bytes_from_client=client.bytes,
            bytes_from_upstream=upstream.bytes,
            **served_by,
            limited="",
        )
