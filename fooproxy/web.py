"""The web side: the report, the exposition, health checks and the page, as one Klein application.

It reads the statistics and never the relay's sockets.  Answers to errors are JSON and repeat nothing of the request.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from klein import Klein
from twisted.logger import Logger
from twisted.web.server import Request, Site
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from fooproxy import __version__
from fooproxy.exposition import exposition

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.iweb import IRequest

    from fooproxy.stats import Stats
    from fooproxy.upstream import Upstream

UPSTREAM_MEMORY = 10.0
"""Seconds for which a failure to connect to the upstream makes the proxy unready, if no session tries again."""

_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Server": "fooproxy",
}

_STATIC = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}


class Health:
    """Whether the proxy should get traffic, and what to worry about.  The service sets the flags."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.draining = False
        self.recovery_failing = False

    def reasons(self) -> list[str]:
        """Say what makes the proxy unready, in words of a closed set: ``draining``, ``upstream_unreachable``."""
        unreachable = self._upstream.unreachable(UPSTREAM_MEMORY) is not None
        return ["draining"] * self.draining + ["upstream_unreachable"] * unreachable

    def warnings(self) -> list[str]:
        """Say what an operator should look at though traffic goes on: ``recovery_failing``."""
        return ["recovery_failing"] * self.recovery_failing


class PlainRequest(Request):
    """A request of which only method, path and headers matter; what clients can do with the rest is undone."""

    def gotLength(self, length: int | None) -> None:
        """Make no room for a body."""
        super().gotLength(0)

    def handleContentChunk(self, data: bytes) -> None:
        """Drop the body: nothing here takes one, and spooling it could fill the disk."""

    def process(self) -> None:
        """Serve the request."""
        # Nothing here depends on the host, and odd ones make the routing fail.
        self.requestHeaders.setRawHeaders(b"host", [b"fooproxy"])
        if b"://" in self.path:
            # The absolute form, which a server has to take too.
            self.path = b"/" + self.path.split(b"://", 1)[1].partition(b"/")[2]
        try:
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            self.path = b"/not-a-text"
        if not self.path.startswith(b"/"):
            self.path = b"/"
        self.uri = self.path
        super().process()


class QuietSite(Site):
    """A site that keeps no access log: health checks would fill it."""

    noisy = False
    requestFactory = PlainRequest

    def log(self, request: object) -> None:
        """Write nothing."""


class Web:
    """The resource: routes over `stats` and `health`."""

    app = Klein()
    log = Logger()

    def __init__(self, stats: Stats, health: Health) -> None:
        self._stats = stats
        self._health = health
        folder = resources.files("fooproxy") / "static"
        self._static = {name: (folder / name).read_bytes() for name in _STATIC}

    def site(self) -> Site:
        """Give the factory that serves all this."""
        return QuietSite(self.app.resource(), timeout=60)

    @app.route("/stats", methods=["GET"])
    def stats(self, request: IRequest) -> bytes:
        """Give the report."""
        return _json(request, 200, self._stats.report())

    @app.route("/metrics", methods=["GET"])
    def metrics(self, request: IRequest) -> bytes:
        """Give the exposition to those who ask for one by ``Accept``, and the report to everybody else."""
        accept = b",".join(request.requestHeaders.getRawHeaders(b"accept", [])).decode("latin-1")
        text = exposition(self._stats, accept)
        if text is None:
            return self.stats(request)
        content_type, body = text
        return _answer(request, 200, content_type, body)

    @app.route("/health", methods=["GET"])
    @app.route("/heartbeat", methods=["GET"])
    @app.route("/status", methods=["GET"])
    def alive(self, request: IRequest) -> bytes:
        """Say that the process lives; this never looks at the upstream."""
        return _json(request, 200, {"status": "OK!"})

    @app.route("/ready", methods=["GET"])
    def ready(self, request: IRequest) -> bytes:
        """Say whether to send traffic here, with the reasons if not."""
        reasons = self._health.reasons()
        answer = {"ready": not reasons, "reasons": reasons, "warnings": self._health.warnings()}
        return _json(request, 503 if reasons else 200, answer)

    @app.route("/version", methods=["GET"])
    def version(self, request: IRequest) -> bytes:
        """Give the version."""
        return _json(request, 200, {"version": __version__})

    @app.route("/", methods=["GET"])
    def page(self, request: IRequest) -> bytes:
        """Give the page."""
        return self._file(request, "index.html")

    @app.route("/page.css", methods=["GET"])
    def style(self, request: IRequest) -> bytes:
        """Give the page's style."""
        return self._file(request, "page.css")

    @app.route("/page.js", methods=["GET"])
    def script(self, request: IRequest) -> bytes:
        """Give the page's script."""
        return self._file(request, "page.js")

    def _file(self, request: IRequest, name: str) -> bytes:
        return _answer(request, 200, _STATIC[name], self._static[name])

    @app.handle_errors(HTTPException)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        """Answer what no route takes: 405 for a wrong method, else 404 (redirects to tidier paths among them)."""
        if isinstance(failure.value, MethodNotAllowed):
            request.setHeader("Allow", ", ".join(sorted(failure.value.valid_methods or ())))
            return _json(request, 405, {"error": "method not allowed"})
        return _json(request, 404, {"error": "not found"})

    @app.handle_errors(Exception)
    def failed(self, request: IRequest, failure: Failure) -> bytes:
        """Answer a defect of ours: the log has it, the client need not."""
        self.log.failure("a request could not be answered", failure)
        return _json(request, 500, {"error": "internal server error"})


def _json(request: Any, status: int, content: object) -> bytes:
    return _answer(request, status, "application/json", json.dumps(content).encode() + b"\n")


def _answer(request: Any, status: int, content_type: str, body: bytes) -> bytes:
    request.setResponseCode(status)
    for name, value in _SECURITY.items():
        request.setHeader(name, value)
    request.setHeader("Content-Type", content_type)
    request.setHeader("Content-Length", str(len(body)))
    return body
