"""The roster: lets servers join and leave while the proxy runs, in all parts that know about servers.

Each server has a row in the statistics, is watched for failures, and is checked if ``--check`` asks for it.
`fooproxy.parts` creates it, and `fooproxy.upstreams.discovery` calls it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.stats.counters import Stats
    from fooproxy.upstreams.checks import Checks
    from fooproxy.upstreams.ejection import Ejection
    from fooproxy.upstreams.forward import Forward
    from fooproxy.upstreams.server import Server
    from fooproxy.upstreams.servers import Servers

MOST = 64
"""The maximum number of servers if some are found by name."""


class Roster:
    """Keeps `stats`, the set of `servers`, `ejection` and `checks` in step; `make` makes a server with a number."""

    def __init__(
        self,
        stats: Stats,
        servers: Servers,
        ejection: Ejection,
        checks: Checks | None,
        make: Callable[[Forward, int], Server],
    ) -> None:
        self._stats = stats
        self._servers = servers
        self._ejection = ejection
        self._checks = checks
        self._make = make

    def join(self, forward: Forward) -> Server | None:
        """Use one more server; return `None` if there is no room for it, or its name is taken."""
        is_taken = any(server.name == forward.name for server in self._servers.servers)
        if is_taken or len(self._stats.servers) >= self._stats.most_servers:
            return None
        record = self._stats.join(forward.name)
        server = self._make(forward, record.place)
        record.when_ended = partial(self._ejection.ended, record.place)
        self._ejection.join(server)
        if self._checks is not None:
            self._checks.join(server)
        self._servers.add(server)
        return server

    def leave(self, server: Server) -> None:
        """Forget a server that has no sessions."""
        self._servers.remove(server)
        if self._checks is not None:
            self._checks.leave(server)
        self._ejection.leave(server)
        server.close()
        self._stats.leave(self._stats.rows[server.number])
