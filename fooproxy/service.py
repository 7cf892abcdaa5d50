"""Puts the parts together and runs them: the only module that knows everything.

twistd finds `Options` and `makeService` here through the plugin.  `ProxyService` opens the listeners, has the
statistics restored and saved, answers signals, and drains the sessions when it is stopped.

Signals are taken here and not left to the reactor: a SIGTERM handled by Twisted would end the process by that signal
instead of with status 0, and a second one would go unheard.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel

from fooproxy.health import Health
from fooproxy.launch import Launch
from fooproxy.net.addresses import client_endpoint, is_polled, server_endpoint, shown
from fooproxy.net.listening import listen_now
from fooproxy.net.poller import Poller, is_available, microseconds
from fooproxy.net.pump import LARGEST_READ
from fooproxy.net.resolver import look_up_apart
from fooproxy.options import Options
from fooproxy.process import keep_large_blocks, keep_time, print_line, spare_the_collector
from fooproxy.recovery.saver import InUse, Saver
from fooproxy.recovery.saving import Saving
from fooproxy.recovery.state import Recovery
from fooproxy.relay.admission import Gate, session_limit
from fooproxy.relay.bridge import BridgeFactory
from fooproxy.relay.interceptor import InterceptorFactory
from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts
from fooproxy.stats.counters import Stats
from fooproxy.stats.reasons import CLEAN
from fooproxy.stats.sampling import Sampling
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.upstream import Upstream
from fooproxy.web.resource import Web

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
    from twisted.internet.protocol import ClientFactory

    from fooproxy.relay.leg import Leg
    from fooproxy.relay.session import Session

__all__ = ["Options", "ProxyService", "makeService"]

_PATIENCE = 0.001
"""Seconds that the poller waits for more traffic, if it has all of it, before timers and the web side get a turn."""

_LAST_LOOK = 0.05
"""Seconds that a stop leaves for reading what clients had sent before it."""


def makeService(options: Options, reactor: Any = None) -> ProxyService:
    """Make the proxy's service from parsed `options`; twistd calls this."""
    if reactor is None:
        from twisted.internet import reactor
    return ProxyService(options, reactor)


class ProxyService(Service):
    """The proxy."""

    log = Logger()

    def __init__(self, options: Options, reactor: Any) -> None:
        keep_time(reactor)
        look_up_apart(reactor)
        self._options = options
        self._launch = Launch(options)
        self._reactor = reactor
        self._stopping = False
        self._patience = options["drain-timeout"]
        self.stats = Stats(time.monotonic, self._session_ended)
        forward = options["forward"]
        all_polled = is_available() and is_polled(forward) and is_polled(options["listen"])
        self._poller = Poller(reactor, _PATIENCE if all_polled else 0.0) if is_available() else None
        self._sampling = Sampling(self.stats, reactor, may_rest=all_polled)
        if self._poller is not None:
            self._poller.afterwards.append(self._sampling.look)
        endpoint = client_endpoint(reactor, forward, self._poller)
        self._upstream = Upstream(endpoint, forward, reactor, options["connect-timeout"])
        timeouts = Timeouts(options["idle-timeout"], options["client-fin-timeout"], options["send-timeout"])
        self.bridge = BridgeFactory(self._connect, lambda: SessionStats(self.stats), reactor, timeouts)
        knows_writers = self._poller if all_polled else None
        self._sweep = Sweep(self.bridge.sessions, timeouts, reactor, self.stats.catch_up, knows_writers)
        self._gate: Gate | None = None
        saver = Saver(Path(options["recovery-path"]))
        recovery = Recovery(self.stats, saver, time.time, options["recovery-max-age"])
        self._saving = Saving(recovery, saver, self.stats, reactor)
        self.health = Health(self._upstream, self._has_traffic, self._accepts, lambda: self._saving.failing)
        self._relay_port: IListeningPort | None = None
        self._http_port: IListeningPort | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join the application."""
        self._launch.prepare(parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Take the recovery file, as whom it will be written, and open the listeners before privileges are dropped."""
        super().privilegedStartService()
        # First, so that a proxy whose file another one has does not get a client.
        self._or_refuse(lambda: self._launch.unprivileged(self._saving.claim))
        tapped = InterceptorFactory(self.bridge, lambda leg: _observer(leg).client, microseconds)
        listen = server_endpoint(self._reactor, self._options["listen"], poller=self._poller)
        self._relay_port = self._listen("listen", listen, tapped)
        self._put_up_gate(self._relay_port)
        http = server_endpoint(self._reactor, self._options["http"], "127.0.0.1")
        web = Web(self.stats, self.health, self._upstream, self.bridge.sessions, self._saving.report, time.time)
        self._http_port = self._listen("http", http, web.site(self._reactor))

    def startService(self) -> None:
        """Restore the statistics and begin."""
        if self._relay_port is None:
            # twist, unlike twistd, knows no privileged start.
            self.privilegedStartService()
        super().startService()
        self._or_refuse(self._saving.start)
        spare_the_collector()
        keep_large_blocks(LARGEST_READ)
        self._sweep.start()
        self._sampling.start()
        self._answer(signal.SIGUSR2, self._report)
        # With a log file, twistd has given SIGUSR1 to the log's rotation.
        if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None):
            self._answer(signal.SIGUSR1, self._report)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._answer(number, self._stop)
            # Once more later than the reactor, which sets its own handlers as it starts.
            self._reactor.callWhenRunning(self._answer, number, self._stop)
        self._launch.succeeded()
        # Last, so that whoever waits for these lines may send any signal.
        self._reactor.callWhenRunning(self._announce)

    def _has_traffic(self) -> bool:
        return any(session.upstream is not None for session in self.bridge.sessions)

    def _accepts(self) -> bool:
        return self._gate is None or self._gate.is_open

    def _announce(self) -> None:
        self.health.starting = False
        self.log.info("listening for clients on {address}", address=_listening(self._relay_port))
        self.log.info("serving HTTP on {url}", url=_url(self._http_port))

    def stopService(self) -> Deferred[None]:
        """Stop accepting, let what is under way finish, save; fires when all is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._drain_and_save())

    async def _drain_and_save(self) -> None:
        self.health.draining = True
        self._sampling.stay_awake()
        await _closed(self._relay_port)
        if self.bridge.sessions:
            await deferLater(self._reactor, _LAST_LOOK)
        if self.bridge.sessions and self._patience:
            count, seconds = len(self.bridge.sessions), self._patience
            self.log.info("stopping: {count} sessions have up to {seconds:g} s", count=count, seconds=seconds)
        deadline = self._reactor.callLater(self._patience, self._cut_short)
        await self.bridge.drain()
        if deadline.active():
            deadline.cancel()
        self._sweep.stop()
        self._sampling.stop()
        await self._saving.stop()
        await _closed(self._http_port)

    def _cut_short(self) -> None:
        if self.bridge.sessions:
            self.log.warn("aborting {count} sessions that are still busy", count=len(self.bridge.sessions))
        self.bridge.abort()

    def _stop(self) -> None:
        """Stop; told so again, stop at once."""
        if self._stopping:
            if self._patience:
                self._patience = 0.0
                self._cut_short()
        else:
            self._stopping = True
            self._reactor.stop()

    def _connect(self, factory: ClientFactory) -> Deferred[Any]:
        return self._upstream.connect(InterceptorFactory(factory, lambda leg: _observer(leg).upstream, microseconds))

    def _listen(self, option: str, endpoint: IStreamServerEndpoint, factory: Any) -> IListeningPort:
        try:
            return listen_now(endpoint, factory)
        except Exception as error:
            reason = getattr(error, "socketError", error)
            self._launch.refuse(
                f"cannot listen on {self._options[option]}: {getattr(reason, 'strerror', None) or reason}; "
                f"choose another address with --{option}"
            )

    def _or_refuse(self, step: Callable[[], None]) -> None:
        try:
            step()
        except InUse as error:
            self._launch.refuse(f"{error}; each proxy needs one of its own, see --recovery-path")
        except OSError as error:
            path = self._options["recovery-path"]
            where = "" if error.filename in (None, path) else f"{error.filename}: "
            self._launch.refuse(
                f"cannot keep statistics in {path}: {where}{error.strerror}; "
                "name a file that can be written with --recovery-path"
            )

    def _put_up_gate(self, port: Any) -> None:
        stats = self.stats
        stats.limit = limit = session_limit(self._options["max-connections"])
        # stdio: is one session, and no port.
        if hasattr(port, "socket"):
            sessions, allowed = self.bridge.sessions, self._options["allow"]
            self._gate = Gate(port, sessions, limit, self._reactor, stats.accepts_paused, allowed, stats.not_allowed)

    def _session_ended(self, session: SessionStats, reason: str) -> None:
        if self._gate is not None:
            self._gate.let_in()
        self._log_end(session, reason)

    def _log_end(self, session: SessionStats, reason: str) -> None:
        """Write one line on a session that has ended; that of one that ended as it should is for the curious."""
        level = LogLevel.info if reason not in CLEAN or self._options["log-sessions"] else LogLevel.debug
        if level is LogLevel.debug and not self._launch.tells_debug:
            # Nobody would see it, and making it costs more than a message.
            return
        client, upstream = session.client, session.upstream
        self.log.emit(
            level,
            "session {id} of {client} ended: {reason}, after {seconds:.3f} s, "
            "req={req} ack={ack} nak={nak} invalid={invalid} unanswered={unanswered} "
            "bytes_from_client={bytes_from_client} bytes_from_upstream={bytes_from_upstream}",
            id=session.number,
            client=session.address,
            reason=reason,
            seconds=session.age,
            req=client.req + upstream.req,
            ack=client.ack + upstream.ack,
            nak=client.nak + upstream.nak,
            invalid=client.invalid + upstream.invalid,
            unanswered=session.exchange.in_flight,
            bytes_from_client=client.bytes,
            bytes_from_upstream=upstream.bytes,
        )

    def _report(self) -> None:
        """Print the report as one line."""
        line = json.dumps(self.stats.report())
        if not print_line(line) or self._launch.daemonized:
            self.log.info("{report}", report=line)

    def _answer(self, number: signal.Signals, answer: Callable[[], None]) -> None:
        # A handler interrupts anything; all it may do is ask for a turn.
        signal.signal(number, lambda *_: self._reactor.callFromThread(answer))


def _observer(leg: Leg) -> SessionStats:
    """Give the observer that the service itself made for the leg's session."""
    return cast("SessionStats", cast("Session", leg.session).observer)


def _listening(port: Any) -> str:
    return shown(port.getHost())


def _url(port: Any) -> str:
    """Say where HTTP is served; a unix socket has no URL that all clients know."""
    return f"http://{_listening(port)}/" if hasattr(port.getHost(), "port") else f"unix:{_listening(port)}"


async def _closed(port: IListeningPort | None) -> None:
    if port is not None:
        closing = port.stopListening()
        if closing is not None:
            await closing
