"""Clients: traffic added up by client address, in bounded memory.

This module does not know about sockets.  Each session adds itself when it ends; the caller of `Clients.report` passes
in the sessions that are still open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fooproxy.foo.analyzer import Analyzer
    from fooproxy.foo.latency import Exchange

MOST = 2000
"""Addresses kept apart; beyond that, the half with the fewest messages is merged into the sum of all others."""


class Session(Protocol):
    """The properties of a session that are read here."""

    client: Analyzer
    upstream: Analyzer
    exchange: Exchange
    is_held_up: bool
    """Whether the upstream leg is not read, because the client does not read."""

    @property
    def host(self) -> str:
        """The client's address without its port."""


class Client:
    """The sum over any number of sessions, in the units of the report."""

    __slots__ = ("active", "from_client", "from_upstream", "invalid", "replies", "requests", "sessions")

    def __init__(self) -> None:
        self.sessions = self.active = self.requests = self.replies = self.invalid = 0
        self.from_client = self.from_upstream = 0

    def add(self, session: Session) -> None:
        """Add a session; its counts must be up to date."""
        client, upstream = session.client, session.upstream
        self.sessions += 1
        self.requests += client.req
        self.replies += upstream.replies
        self.invalid += client.invalid + upstream.invalid
        self.from_client += client.bytes
        self.from_upstream += upstream.bytes

    def merge(self, other: Client) -> None:
        """Add the figures of another client."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def messages(self) -> int:
        """Requests and replies together; clients are ranked by this number."""
        return self.requests + self.replies

    def report(self) -> dict[str, int]:
        """Return the figures under their public names."""
        return {
            "connections_active": self.active,
            "connections_total": self.sessions,
            "requests": self.requests,
            "replies": self.replies,
            "msg_invalid": self.invalid,
            "bytes_from_client": self.from_client,
            "bytes_from_upstream": self.from_upstream,
        }


class Clients:
    """The sums of all ended sessions, by address; addresses beyond `MOST` share one sum."""

    def __init__(self) -> None:
        self._ended: dict[str, Client] = {}
        self._other = Client()

    def ended(self, session: Session) -> None:
        """Add a session that has ended."""
        client = self._ended.get(session.host)
        if client is None:
            client = self._ended[session.host] = Client()
        client.add(session)
        if len(self._ended) > MOST:
            for host in sorted(self._ended, key=lambda host: self._ended[host].messages)[: MOST // 2]:
                self._other.merge(self._ended.pop(host))

    def report(self, open_sessions: Iterable[Session], limit: int) -> dict[str, Any]:
        """Return the `limit` clients with the most messages, the number of clients, and the sum of all others."""
        clients: dict[str, Client] = {}
        other = Client()
        other.merge(self._other)
        for host, client in self._ended.items():
            clients.setdefault(host, Client()).merge(client)
        for session in open_sessions:
            client = clients.setdefault(session.host, Client())
            client.add(session)
            client.active += 1
        first, rest = _largest(clients, limit)
        for host in rest:
            other.merge(clients[host])
        return {
            "total": len(clients),
            "clients": [{"client": host, **clients[host].report()} for host in first],
            "other": other.report(),
        }


def _largest(clients: dict[str, Client], limit: int) -> tuple[list[str], list[str]]:
    hosts = sorted(clients, key=lambda host: clients[host].messages, reverse=True)
    return hosts[:limit], hosts[limit:]
