"""Clients: what passed, summed by client address, in bounded memory.

It knows no sockets; `Stats` tells it of each session that has ended, and hands it those that are still open when
somebody asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fooproxy.foo.analyzer import Analyzer

MOST = 2000
"""Addresses that are told apart; beyond, the half of them with the least messages goes to the others."""


class Session(Protocol):
    """What is read of a session."""

    client: Analyzer
    upstream: Analyzer

    @property
    def host(self) -> str:
        """The client's address without its port."""


class Client:
    """The sum over some sessions, in the units of the report."""

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
        """Add what another one holds."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def messages(self) -> int:
        """By what clients are compared."""
        return self.requests + self.replies

    def report(self) -> dict[str, int]:
        """Give the figures under their public names."""
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
    """What passed in sessions that have ended, by address; addresses beyond `MOST` are one."""

    def __init__(self) -> None:
        self._ended: dict[str, Client] = {}
        self._other = Client()

    def ended(self, session: Session) -> None:
        """Add a session that has ended."""
        self._ended.setdefault(session.host, Client()).add(session)
        if len(self._ended) > MOST:
            for host in sorted(self._ended, key=lambda host: self._ended[host].messages)[: MOST // 2]:
                self._other.merge(self._ended.pop(host))

    def report(self, open_sessions: Iterable[Session], limit: int) -> dict[str, Any]:
        """Give the `limit` clients with the most messages, how many there are, and the sum of all others."""
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
