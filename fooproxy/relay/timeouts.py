"""The timeouts of sessions: how long one may be idle, a request or a half-closed client wait, and a peer not read.

`fooproxy.parts` makes them from the options.  The session enforces `client_fin`, the sweep `idle`, `reply` and `send`.
"""

from __future__ import annotations

from typing import NamedTuple

_SHARE = 10
_SHORTEST_INTERVAL = 0.1
_LONGEST_INTERVAL = 5.0


class Timeouts(NamedTuple):
    """The time limits of a session, in seconds."""

    idle: float = 0.0
    """A session without traffic is closed after this time; 0: never."""
    client_fin: float = 10.0
    """A client that has closed its side waits this long for the next bytes from the upstream."""
    send: float = 60.0
    """A peer that reads none of its waiting data is disconnected after this time."""

    reply: float = 0.0
    """A session whose oldest request has waited this long for its reply is closed; 0: never."""

    @property
    def interval(self) -> float:
        """Seconds between two sweeps: a tenth of the shortest of `idle`, `send` and `reply`, within 0.1 and 5 s.

        Such a timeout may be noticed that much late.
        """
        shortest = min(self.send, self.idle or self.send, self.reply or self.send)
        return min(max(shortest / _SHARE, _SHORTEST_INTERVAL), _LONGEST_INTERVAL)
