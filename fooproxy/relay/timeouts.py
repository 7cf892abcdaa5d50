"""The timeouts of sessions: what may take how long.  The bridge has them, and the sweep finds who exceeds them."""

from __future__ import annotations

from typing import NamedTuple

_SHARE = 10
_SHORTEST_INTERVAL = 0.1
_LONGEST_INTERVAL = 5.0


class Timeouts(NamedTuple):
    """How long what may take, in seconds."""

    idle: float = 0.0
    """Until a session in which nothing passes is ended; 0 for never."""
    client_fin: float = 10.0
    """That a client which has closed its side waits for the upstream to say something."""
    send: float = 60.0
    """Until a peer that takes nothing of what waits for it is given up."""

    @property
    def interval(self) -> float:
        """Seconds between two sweeps, and so how late these two may be noticed: a tenth of them, and 5 s at most."""
        shortest = min(self.send, self.idle or self.send)
        return min(max(shortest / _SHARE, _SHORTEST_INTERVAL), _LONGEST_INTERVAL)
