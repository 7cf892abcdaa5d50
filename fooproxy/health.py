"""Health: whether the proxy should get traffic, with the reasons, and what to look at though traffic goes on.

It asks the parts and stores nothing of theirs; none of them knows it.  The service makes it, the web side shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.upstreams.upstream import Upstream

UPSTREAM_MEMORY = 10.0
"""Seconds for which a failure to connect to the upstream makes the proxy unready, if no session tries again."""

PROBE_INTERVAL = 5.0
"""Seconds without news of the upstream, and without sessions, after which ``/ready`` tries to connect to it."""

PROBE_TIMEOUT = 1.0
"""Seconds that this may take."""


class Health:
    """Whether the proxy should get traffic, and what an operator should look at.

    The service sets the flags; everything else is asked for when it is wanted: `traffic` tells whether there are
    sessions, which say more of the `upstream` than a check would, `accepting` whether clients are accepted as they
    come, and `recovery_failing` whether the statistics cannot be saved.
    """

    def __init__(
        self,
        upstream: Upstream,
        traffic: Callable[[], bool],
        accepting: Callable[[], bool],
        recovery_failing: Callable[[], bool],
    ) -> None:
        self._upstream = upstream
        self._traffic = traffic
        self._accepting = accepting
        self._recovery_failing = recovery_failing
        self._waiting: list[Deferred[None]] = []
        self.starting = True
        self.draining = False

    async def check(self) -> None:
        """See whether the upstream can be connected, if there was no occasion for it lately."""
        if self._upstream.silence <= PROBE_INTERVAL or self._traffic() or self.draining:
            return
        # One check for all who ask meanwhile; those who ask may be gone before it ends.
        mine: Deferred[None] = Deferred()
        self._waiting.append(mine)
        if len(self._waiting) == 1:
            Deferred.fromCoroutine(self._upstream.probe(PROBE_TIMEOUT)).addBoth(self._checked)
        await mine

    def _checked(self, result: object) -> None:
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(None)

    def reasons(self) -> list[str]:
        """Say what makes the proxy unready: ``starting``, ``draining``, ``upstream_unreachable``."""
        unreachable = self._upstream.unreachable(UPSTREAM_MEMORY) is not None
        words = {"starting": self.starting, "draining": self.draining, "upstream_unreachable": unreachable}
        return [word for word, holds in words.items() if holds]

    def warnings(self) -> list[str]:
        """Say what an operator should look at though traffic goes on: ``recovery_failing``, ``clients_waiting``."""
        words = {"recovery_failing": self._recovery_failing(), "clients_waiting": not self._accepting()}
        return [word for word, holds in words.items() if holds]

    def report(self) -> dict[str, Any]:
        """Give all of it."""
        reasons = self.reasons()
        return {"ready": not reasons, "reasons": reasons, "warnings": self.warnings()}
