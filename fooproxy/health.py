"""Health: whether the proxy is ready for traffic, why not, and warnings that do not affect traffic.

`Health` queries the other parts each time and keeps no copy of their state; none of them knows about it.
`fooproxy.parts` creates it, the service sets its flags, and the web side shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fooproxy.upstreams.servers import Servers

UPSTREAM_MEMORY = 10.0
"""Seconds for which a failed attempt to connect to the upstream makes the proxy not ready."""

PROBE_INTERVAL = 5.0
"""Seconds without a connection attempt, and without sessions, after which ``/ready`` tests the upstream itself."""

PROBE_TIMEOUT = 1.0
"""Timeout of the test by ``/ready``, in seconds; long enough to try several addresses of a name."""


class Health:
    """Whether the proxy is ready for traffic, and what an operator should check.

    The service sets the flags `starting` and `draining`; everything else is queried on demand.  `traffic` returns
    whether there are connected sessions, which show more about the `upstreams` than a test would; `loops` returns
    whether the proxy has lately connected to itself; `warnings` has a condition for each word that warns an operator.
    """

    def __init__(
        self,
        upstreams: Servers,
        traffic: Callable[[], bool],
        loops: Callable[[], bool],
        warnings: Mapping[str, Callable[[], bool]],
    ) -> None:
        self._upstreams = upstreams
        self._traffic = traffic
        self._loops = loops
        self._warnings = warnings
        self._waiting: list[Deferred[None]] = []
        self.starting = True
        self.draining = False

    async def check(self) -> None:
        """Test whether the upstream is reachable, unless recent attempts or sessions show it.

        Sessions do not count if the last attempt failed: they do not show that new connections are possible.
        """
        is_known = self._traffic() and not self.was_unreachable
        if is_known or self._upstreams.silence <= PROBE_INTERVAL or self.draining:
            return
        # Concurrent callers share one test, and each may be cancelled before it ends.
        mine: Deferred[None] = Deferred()
        self._waiting.append(mine)
        if len(self._waiting) == 1:
            Deferred.fromCoroutine(self._upstreams.probe(PROBE_TIMEOUT)).addBoth(self._checked)
        await mine

    @property
    def was_unreachable(self) -> bool:
        """Whether the upstream could not be reached, however long ago, and nothing has reached it since."""
        return self._upstreams.state == "down"

    def _checked(self, result: object) -> None:
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            # A caller that was cancelled ignores this.
            deferred.callback(None)

    def reasons(self) -> list[str]:
        """Return why the proxy is not ready: any of ``starting``, ``draining``, ``loop``, ``upstream_unreachable``.

        The last is followed by the reason by which failed sessions are counted, such as ``upstream_refused``.
        """
        unreachable = self._upstreams.unreachable(UPSTREAM_MEMORY) is not None
        words = {"starting": self.starting, "draining": self.draining, "loop": self._loops()}
        words["upstream_unreachable"] = unreachable
        if unreachable and self._upstreams.reason is not None:
            words[self._upstreams.reason] = True
        return [word for word, holds in words.items() if holds]

    def warnings(self) -> list[str]:
        """Return what an operator should check while traffic continues."""
        return [word for word, holds in self._warnings.items() if holds()]

    def report(self) -> dict[str, Any]:
        """Return all of this as a JSON object: `ready`, `reasons` and `warnings`."""
        reasons = self.reasons()
        return {"ready": not reasons, "reasons": reasons, "warnings": self.warnings()}
