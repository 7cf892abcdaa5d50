"""The control side: changes that an operator can make, over HTTP on a unix socket of its own.

Only POST changes anything, and each change is one line in the log, with the user and the process that asked, which the
kernel reports.  The lists are the same as on the web side.  The service listens, with a mode that admits only its own
user and root, and `fooctl` in `fooproxy.driver` is the client.
"""

from __future__ import annotations

import pwd
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from klein import Klein
from twisted.internet.task import deferLater
from twisted.logger import Logger

from fooproxy.net.sockets import peer_process
from fooproxy.web import overview, upstreams
from fooproxy.web.answers import as_json
from fooproxy.web.errors import Refused, answer_errors
from fooproxy.web.query import Query
from fooproxy.web.site import ANSWER_TIMEOUT, QuietSite

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from twisted.internet.interfaces import IReactorTime
    from twisted.web.iweb import IRequest

    from fooproxy.relay.session import Session
    from fooproxy.stats.counters import Stats
    from fooproxy.stats.session import SessionStats
    from fooproxy.upstreams.server import Server
    from fooproxy.upstreams.servers import Servers

LONGEST_WAIT = 3600
"""Maximum seconds that a request may wait until its change has taken effect."""

_LOOK = 0.05
"""Seconds between two checks whether the change has taken effect."""


_WHO = "{user} (uid {uid}, pid {pid})"


class Proxy(Protocol):
    """The operations on the proxy and its sessions."""

    def close(self, session: Session[SessionStats]) -> float:
        """Close a session once its requests are answered; return the seconds after which it is aborted."""

    def drain(self) -> None:
        """Stop the proxy, as a signal does; a second time changes nothing."""


class Control:
    """The routes; they act on the `upstreams`, the open `sessions` and the `proxy`, and show them with `stats`.

    The first line of a route's docstring says what it does; the table in the documents shows that line.
    """

    app = Klein()
    log = Logger()

    def __init__(
        self,
        stats: Stats,
        upstreams: Servers,
        sessions: Collection[Session[SessionStats]],
        proxy: Proxy,
        clock: IReactorTime,
    ) -> None:
        self._stats = stats
        self._upstreams = upstreams
        self._sessions = sessions
        self._proxy = proxy
        self._clock = clock

    def site(self) -> QuietSite:
        """Return a server factory for the routes."""
        return QuietSite(self.app.resource(), self._clock, LONGEST_WAIT + ANSWER_TIMEOUT)

    @app.route("/upstreams", methods=["GET"])
    def upstreams(self, request: IRequest) -> bytes:
        """The Foo servers, as on the web side."""
        return as_json(request, 200, upstreams.report(self._stats, self._upstreams))

    @app.route("/connections", methods=["GET"])
    def connections(self, request: IRequest) -> bytes:
        """The open sessions, sorted and limited as requested, as on the web side."""
        return as_json(request, 200, overview.listed(self._stats, self._sessions, Query(request)))

    @app.route("/clients", methods=["GET"])
    def clients(self, request: IRequest) -> bytes:
        """Totals for each client address, as on the web side."""
        limit = Query(request).number("limit", 100, overview.MOST)
        return as_json(request, 200, overview.clients(self._stats, limit))

    @app.route("/pause", methods=["POST"])
    async def pause_all(self, request: IRequest) -> bytes:
        """Pause all servers: new clients wait, and requests in progress are answered."""
        hold = self._upstreams.pause_all
        return await self._pause(request, self._upstreams.servers, hold, "paused all upstreams")

    @app.route("/resume", methods=["POST"])
    def resume_all(self, request: IRequest) -> bytes:
        """Resume all servers."""
        self._note(request, "resumed all upstreams", order="resume")
        self._upstreams.resume_all()
        return as_json(request, 200, self._shown(self._upstreams.servers))

    @app.route("/upstreams/<path:name>/pause", methods=["POST"])
    async def pause(self, request: IRequest, name: str) -> bytes:
        """Pause a server: new clients go to others or wait, and requests in progress are answered."""
        server = self._server(name)
        hold = partial(self._upstreams.hold, server, "paused")
        return await self._pause(request, [server], hold, "paused upstream {upstream}", upstream=server.name)

    @app.route("/upstreams/<path:name>/resume", methods=["POST"])
    def resume(self, request: IRequest, name: str) -> bytes:
        """Resume a server that was paused."""
        server = self._server(name)
        self._note(request, "resumed upstream {upstream}", order="resume", upstream=server.name)
        return self._release(request, server, "paused")

    @app.route("/upstreams/<path:name>/drain", methods=["POST"])
    async def drain(self, request: IRequest, name: str) -> bytes:
        """Drain a server: it gets no more clients, and its sessions continue until they end."""
        server, seconds = self._server(name), _seconds(request)
        who = self._note(request, "drained upstream {upstream}", order="drain", upstream=server.name)
        self._upstreams.hold(server, "draining", who)
        await self._until(lambda: server.held is None or not self._open([server]), seconds)
        return as_json(request, 200, self._shown([server]))

    @app.route("/upstreams/<path:name>/ready", methods=["POST"])
    def ready(self, request: IRequest, name: str) -> bytes:
        """Send clients to a server again, whether it was draining or paused."""
        server = self._server(name)
        self._note(request, "made upstream {upstream} ready", order="ready", upstream=server.name)
        return self._release(request, server, "draining", "paused")

    @app.route("/connections/<int:number>/close", methods=["POST"])
    async def close(self, request: IRequest, number: int) -> bytes:
        """Close a session: its requests are answered first, for as long as ``--drain-timeout``."""
        seconds = _seconds(request)
        session = next((each for each in self._sessions if each.observer.number == number), None)
        if session is None:
            raise Refused(404, "no open session has this ID")
        self._note(request, "closed session {session}", order="close", session=number)
        within = self._proxy.close(session)
        await self._until(lambda: session not in self._sessions, seconds)
        is_open = session in self._sessions
        return as_json(request, 200, {"id": number, "closed": not is_open, "closes_within_seconds": within})

    @app.route("/drain", methods=["POST"])
    def drain_all(self, request: IRequest) -> bytes:
        """Drain and stop the proxy, as SIGTERM does."""
        self._note(request, "stopped the proxy", order="stop")
        # So that the answer is sent first.
        self._clock.callLater(0, self._proxy.drain)
        return as_json(request, 200, {"state": "draining", "connections_active": len(self._sessions)})

    answer_errors(app)

    async def _pause(
        self, request: IRequest, servers: Sequence[Server], hold: Callable[[str], None], what: str, **fields: str
    ) -> bytes:
        seconds = _seconds(request)
        hold(self._note(request, what, order="pause", **fields))
        is_over = await self._until(lambda: self._is_idle(servers) or not _are_paused(servers), seconds)
        is_idle = is_over and _are_paused(servers)
        return as_json(request, 200, {**self._shown(servers), "idle": is_idle})

    def _release(self, request: IRequest, server: Server, *hows: str) -> bytes:
        self._upstreams.release(server, *hows)
        return as_json(request, 200, self._shown([server]))

    def _server(self, name: str) -> Server:
        """Return the server with the name `name`."""
        for server in self._upstreams.servers:
            if server.name == name:
                return server
        raise Refused(404, "no upstream has this name")

    def _shown(self, servers: Sequence[Server]) -> dict[str, Any]:
        return {
            "upstreams": [{"name": server.name, "state": server.state} for server in servers],
            "requests_in_flight": self._in_flight(servers),
            "connections_active": self._open(servers),
        }

    def _in_flight(self, servers: Sequence[Server]) -> int:
        stats = self._stats
        stats.catch_up()
        if not stats.most_servers:
            return stats.requests_in_flight
        return sum(stats.rows[server.number].requests_in_flight for server in servers)

    def _is_idle(self, servers: Sequence[Server]) -> bool:
        """Return whether no request, not even half of one, is open at `servers`, and no connection is being made."""
        if any(server.connecting for server in servers) or self._in_flight(servers) > 0:
            return False
        if any(server.links is not None and server.links.draining for server in servers):
            return False
        return all(session.between_requests for session in self._sessions_of(servers))

    def _open(self, servers: Sequence[Server]) -> int:
        """Return the number of sessions of `servers`, without the waiting clients."""
        if not self._stats.most_servers:
            return sum(session.upstream is not None for session in self._sessions)
        return len(self._sessions_of(servers))

    def _sessions_of(self, servers: Sequence[Server]) -> list[Any]:
        stats = self._stats
        if not stats.most_servers:
            return list(stats.sessions)
        return [session for server in servers for session in stats.rows[server.number].sessions]

    async def _until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until `holds` returns true, but at most `seconds`; return whether it does."""
        end = self._clock.seconds() + seconds
        while not holds():
            if self._clock.seconds() >= end:
                return False
            await deferLater(self._clock, _LOOK)
        return True

    def _note(self, request: Any, what: str, **fields: str | int) -> str:
        """Log an order, whose template `what` gets the `fields`, and return who gave it."""
        asker = _asker(request)
        self.log.info(f"{_WHO} {what}", **asker, **fields, limited="orders")
        return _WHO.format(**asker)


def _are_paused(servers: Sequence[Server]) -> bool:
    return all(server.held == "paused" for server in servers)


def _seconds(request: IRequest) -> int:
    return Query(request).number("wait", 0, LONGEST_WAIT)


def _asker(request: Any) -> dict[str, str | int]:
    """Return the user and the process that have sent a request."""
    pid, user = peer_process(request.channel.transport.getHandle())
    try:
        name = pwd.getpwuid(user).pw_name
    except (KeyError, OverflowError):
        name = "somebody"
    return {"user": name, "uid": user, "pid": pid}
