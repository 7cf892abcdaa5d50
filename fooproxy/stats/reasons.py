"""Why sessions end: every reason, with its meaning.  The relay tells one for each session, the statistics count it."""

from __future__ import annotations

CLOSED = {
    "client_closed": "the client closed first",
    "upstream_closed": "the upstream closed first",
    "client_reset": "the client's connection was reset or lost",
    "upstream_reset": "the upstream's connection was reset or lost",
    "upstream_refused": "the upstream refused the connection until --connect-timeout",
    "upstream_unresolved": "the upstream's name could not be resolved until --connect-timeout",
    "upstream_unreachable": "the upstream could not be connected for another reason until --connect-timeout",
    "connect_timeout": "the upstream did not answer until --connect-timeout",
    "half_close_timeout": "the client had closed its side, and no further reply came within --client-fin-timeout",
    "idle_timeout": "nothing had passed in either direction for --idle-timeout",
    "send_timeout": "a peer read nothing of what was waiting for it for --send-timeout",
    "not_allowed": "the client's address was none that --allow names",
    "drained": "the proxy was told to stop, and the session had no request in flight",
    "crashed": "the proxy itself ended, without having been told to stop",
    "aborted": "the proxy was told to stop, and the session was still busy at --drain-timeout",
}
"""All reasons, with their meanings."""

CLEAN = frozenset({"client_closed", "upstream_closed", "drained"})
"""The reasons that nobody need worry about."""

CONNECT_FAILURES = {
    "refused": "upstream_refused",
    "unresolved": "upstream_unresolved",
    "unreachable": "upstream_unreachable",
    "timeout": "connect_timeout",
}
"""Why a session gets no upstream leg, and which of `CLOSED` that is."""
