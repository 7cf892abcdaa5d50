"""The set of servers: which of them may get a client, and the state of all together.

`fooproxy.upstreams.balance` chooses among the servers that are usable and have room; a server that has failed is not
usable, nor is one that an operator has paused or drains.  Backups are used only if no other server is usable.

This module makes no connections except probes.  `fooproxy.upstreams.servers` connects clients to the chosen server;
health and the page read the rest.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, gatherResults

from fooproxy.net.failures import counted_as, words
from fooproxy.upstreams.balance import Least

if TYPE_CHECKING:
    from collections.abc import Collection

    from fooproxy.upstreams.balance import Balance
    from fooproxy.upstreams.server import Client, Server


class Members:
    """A set of servers, from which `balance` chooses; `only` is the server if there will never be another one."""

    def __init__(self, balance: Balance | None, only: Server | None = None) -> None:
        self.servers: list[Server] = []
        self.only = only
        self._tiers: list[list[Server]] = []
        self.absence: Exception | None = None
        """Why there is no server, if there is none."""
        self._balance: Balance = balance or Least(random.Random())
        self.is_limited = False
        """Whether any server has a limit, so that protocols must be `Watched`."""

    def add(self, server: Server) -> None:
        """Add a server, which may get clients from now on."""
        self.servers.append(server)
        self.is_limited |= server.slots is not None
        self.sort()

    def remove(self, server: Server) -> None:
        """Forget a server that has no sessions."""
        self.servers.remove(server)
        self.sort()

    def sort(self) -> None:
        """Order the servers again: backups after the others, and by priority."""
        ranks = sorted({(server.backup, server.priority) for server in self.servers})
        self._tiers = [[each for each in self.servers if (each.backup, each.priority) == rank] for rank in ranks]

    @property
    def state(self) -> str:
        """The best state that any server is in: ``up``, ``unknown``, ``paused``, ``draining`` or ``down``."""
        states = {server.state for server in self.servers}
        nobody = "unknown" if self.absence is None else "down"
        return next((state for state in ("up", "unknown", "paused", "draining", "down") if state in states), nobody)

    @property
    def latest(self) -> Server | None:
        """The server that was the last to fail."""
        return max(self.servers, key=lambda server: server.failed_at, default=None)

    @property
    def error(self) -> str | None:
        """Why no server can be reached; `None` if one can."""
        if self.latest is None:
            return None if self.absence is None else words(self.absence)
        return self.latest.error if self.state == "down" else None

    @property
    def reason(self) -> str | None:
        """Why no server can be reached, as the reason by which failed sessions are counted."""
        if self.latest is None:
            return None if self.absence is None else counted_as(self.absence)
        return self.latest.reason if self.state == "down" else None

    @property
    def silence(self) -> float:
        """Seconds since the last attempt succeeded or failed; infinite before the first, 0 without servers."""
        return min((server.silence for server in self.servers), default=0.0)

    @property
    def counts(self) -> tuple[int, int]:
        """How many servers are up or not tried yet, and how many there are; servers that are gone do not count."""
        states = [server.state for server in self.servers if not server.gone]
        return states.count("up") + states.count("unknown"), len(states)

    def count(self, state: str) -> int:
        """Return how many servers are in a state."""
        return sum(server.state == state for server in self.servers)

    def links(self) -> dict[str, int]:
        """Return how many pooled links to all servers are in which state."""
        found = {"idle": 0, "in_use": 0, "draining": 0}
        for server in self.servers:
            for state, count in server.links.states.items() if server.links is not None else ():
                found[state] += count
        return found

    def close_links(self) -> None:
        """Close the idle links, and each of the others once it is given back."""
        for server in self.servers:
            if server.links is not None:
                server.links.close()

    def unreachable(self, within: float) -> str | None:
        """Return why no server can be reached, if one failed at most `within` seconds ago; otherwise `None`."""
        if any(server.doubted and server.is_usable for server in self.servers):
            # The server gets clients in spite of its failing checks.
            return None
        if self.latest is None:
            return self.error
        return self.latest.unreachable(within) if self.state == "down" else None

    async def probe(self, timeout: float) -> None:
        """Check whether connections can be made within `timeout` seconds and stay open, and close them again.

        A paused server is not probed: it may be restarting, and that must not count as a failure.
        """
        asked = [server for server in self.servers if server.held != "paused"]
        await gatherResults([Deferred.fromCoroutine(server.probe(timeout)) for server in asked])

    # Choosing.

    def choose(self, client: Client | None, tried: Collection[Server] = ()) -> Server | None:
        """Return the server for the next attempt, none of those `tried`; `None` if no server is worth one."""
        if self.only is not None:
            return self.only if self.only.is_usable and self.only.has_room and not tried else None
        found = self.candidates(tried)
        return self._balance.choose(found, "" if client is None else client.host) if found else None

    def candidates(self, tried: Collection[Server] = ()) -> list[Server] | None:
        """Return the servers worth an attempt that have room; `None` if every server has failed or was `tried`."""
        # A server whose checks fail, or that DNS no longer lists, is better than none.
        for most, tier in product(range(3), self._tiers):
            worth = [
                server for server in tier if server.is_usable and server.reluctance <= most and server not in tried
            ]
            if worth:
                return [server for server in worth if server.has_room] if self.is_limited else worth
        return [] if any(not server.failing and server not in tried for server in self.servers) else None
