"""The web side: one Klein application with the report, the exposition, health checks and the page.

It reads the statistics, and never touches the relay's sockets.  Errors are answered in JSON, without repeating anything
from the request.  The service creates it; `fooproxy.web.site` enforces the limits on HTTP clients.
"""

from __future__ import annotations

# Werkzeug imports this on the first request, when file descriptors or permissions may be lacking.
import encodings.idna  # noqa: F401
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from klein import Klein
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import NotFound

from fooproxy import __version__
from fooproxy.core import IMPLEMENTATION
from fooproxy.web import overview, page, upstreams
from fooproxy.web.answers import answer, as_json, header
from fooproxy.web.errors import answer_errors
from fooproxy.web.exposition import exposition
from fooproxy.web.hosts import Hosts
from fooproxy.web.query import Query
from fooproxy.web.site import QuietSite
from fooproxy.web.verdict import Situation, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.internet.interfaces import IReactorTime
    from twisted.web.iweb import IRequest
    from twisted.web.resource import IResource

    from fooproxy.relay.session import Session
    from fooproxy.stats.counters import Stats
    from fooproxy.stats.session import SessionStats
    from fooproxy.upstreams.servers import Servers


class Health(Protocol):
    """The methods of the proxy's health that are used here."""

    async def check(self) -> None:
        """Try to connect to the upstream if its state is unknown."""

    @property
    def was_unreachable(self) -> bool:
        """Whether the upstream could not be reached, and nothing has reached it since."""

    def reasons(self) -> list[str]:
        """Return the reasons why the proxy is not ready; empty if it is."""

    def report(self) -> dict[str, Any]:
        """Return ``ready``, ``reasons`` and ``warnings``."""


class Web:
    """The routes; they show `stats`, `health`, the `upstreams` and the open `sessions`.

    `clock` returns the wall clock time, `recovery` the state of the recovery file, `options` the options in force,
    `discovery` the state of each name that stands for servers, and `identity` the host, the process ID and the
    addresses of the proxy.

    The first line of a route's docstring says what it answers; the URL tables in the documents show that line.
    """

    app = Klein()

    def __init__(
        self,
        stats: Stats,
        health: Health,
        upstreams: Servers,
        sessions: Collection[Session[SessionStats]],
        recovery: Callable[[], dict[str, Any]],
        clock: Callable[[], float],
        options: Callable[[], dict[str, Any]],
        discovery: Callable[[], list[dict[str, Any]]] = list,
        identity: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._stats = stats
        self._health = health
        self._upstreams = upstreams
        self._sessions = sessions
        self._recovery = recovery
        self._clock = clock
        self._options = options
        self._discovery = discovery
        self._identity = identity
        self._started = clock()
        self._static = page.files()

    def site(self, clock: IReactorTime, hosts: Hosts | None = None) -> QuietSite:
        """Return a server factory for the routes, which serves only some `hosts`."""
        return QuietSite(_Door(self.app.resource(), hosts or Hosts([])), clock)

    @app.route("/", methods=["GET"])
    def index(self, request: IRequest) -> bytes:
        """The page: live statistics, with charts of the last 15 minutes."""
        return self._file(request, "index.html")

    @app.route("/stats", methods=["GET"])
    def stats(self, request: IRequest) -> bytes:
        """The report as JSON."""
        return as_json(request, 200, self._stats.report())

    @app.route("/metrics", methods=["GET"])
    async def metrics(self, request: IRequest) -> bytes:
        """The report as JSON, or in a text format of Prometheus if ``Accept`` names one."""
        if self._health.was_unreachable:
            # Otherwise an outage would seem to be over whenever a client has just tried.
            await self._health.check()
        states = {server.name: server.state for server in self._upstreams.servers}
        text = exposition(self._stats, not self._health.reasons(), header(request, b"accept"), states)
        if text is None:
            return self.stats(request)
        content_type, body = text
        return answer(request, 200, content_type, body)

    @app.route("/health", methods=["GET"])
    @app.route("/heartbeat", methods=["GET"])
    @app.route("/status", methods=["GET"])
    def alive(self, request: IRequest) -> bytes:
        """200 and ``{"status": "OK!"}`` while the process is running, whatever the upstream does."""
        return as_json(request, 200, {"status": "OK!"})

    @app.route("/connections", methods=["GET"])
    def connections(self, request: IRequest) -> bytes:
        """The open sessions, sorted and limited as requested."""
        return as_json(request, 200, self._connections(Query(request)))

    @app.route("/upstreams", methods=["GET"])
    def upstreams(self, request: IRequest) -> bytes:
        """The Foo servers: their states, sessions, traffic, latencies and failures."""
        return as_json(request, 200, {**upstreams.report(self._stats, self._upstreams), "discovery": self._discovery()})

    @app.route("/clients", methods=["GET"])
    def clients(self, request: IRequest) -> bytes:
        """Totals for each client address, including sessions that have ended."""
        limit = Query(request).number("limit", 100, overview.MOST)
        return as_json(request, 200, overview.clients(self._stats, limit))

    @app.route("/history", methods=["GET"])
    def history(self, request: IRequest) -> bytes:
        """The traffic of each second of the last 15 minutes."""
        return as_json(request, 200, self._history(Query(request)))

    @app.route("/live", methods=["GET"])
    def live(self, request: IRequest) -> bytes:
        """Everything the page shows, in one answer."""
        query = Query(request)
        now = self._situation()
        content = {
            "started": self._started,
            "process": self._identity(),
            **now._asdict(),
            "verdict": judge(now),
            "history": self._history(query),
            "latency_buckets": list(self._stats.history.recent().upper_bounds()),
            "connections": self._connections(query),
        }
        return as_json(request, 200, content)

    def _situation(self) -> Situation:
        servers = self._upstreams
        together = {
            "address": ", ".join(
                [server.name for server in servers.servers] or [found["name"] for found in self._discovery()]
            ),
            "state": servers.state,
            "reason": servers.reason,
            "error": servers.error,
        }
        rows = upstreams.rows(self._stats, servers)
        return Situation(self._stats.report(), self._health.report(), together, rows, self._recovery())

    def _history(self, query: Query) -> dict[str, Any]:
        return self._stats.history.report(query.number("since", 0, 1 << 40), self._clock())

    def _connections(self, query: Query) -> dict[str, Any]:
        return overview.listed(self._stats, self._sessions, query)

    @app.route("/ready", methods=["GET"])
    async def ready(self, request: IRequest) -> bytes:
        """200 if the proxy should get traffic, otherwise 503; with reasons and warnings as JSON."""
        await self._health.check()
        report = self._health.report()
        return as_json(request, 200 if report["ready"] else 503, report)

    @app.route("/config", methods=["GET"])
    def config(self, request: IRequest) -> bytes:
        """The options in force, and where each value comes from."""
        return as_json(request, 200, self._options())

    @app.route("/version", methods=["GET"])
    def version(self, request: IRequest) -> bytes:
        """The version, and whether the relay is compiled, as JSON."""
        return as_json(request, 200, {"version": __version__, "implementation": IMPLEMENTATION})

    @app.route("/<name>", methods=["GET"])
    def file(self, request: IRequest, name: str) -> bytes:
        """A file that the page loads."""
        return self._file(request, name)

    def _file(self, request: IRequest, name: str) -> bytes:
        if name not in self._static:
            raise NotFound
        return answer(request, 200, page.TYPES[Path(name).suffix], self._static[name])

    answer_errors(app)


class _Door(Resource):
    """Lets requests for the right hosts through to the resource behind it."""

    isLeaf = True

    def __init__(self, behind: IResource, hosts: Hosts) -> None:
        super().__init__()
        self._behind = behind
        self._hosts = hosts

    def render(self, request: Any) -> Any:
        """Answer a request, one of the site's."""
        refusal = self._hosts.refusal(request.hosts)
        if refusal is None:
            return self._behind.render(request)
        status, why = refusal
        request.write(as_json(request, status, {"error": why}))
        request.finish()
        return NOT_DONE_YET
