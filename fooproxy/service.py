"""The service: puts all parts together and runs them.  It is the only module that knows every part.

twistd finds `Options` and `makeService` here through the plugin.  `ProxyService` opens the listeners, restores and
saves the statistics, and stops everything in order.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from fooproxy import __version__
from fooproxy.core import REASON
from fooproxy.ends import Ends
from fooproxy.foo.question import Question
from fooproxy.health import Health
from fooproxy.launch import Launch
from fooproxy.logs.formats import FORMATS
from fooproxy.logs.log import Log
from fooproxy.net.addresses import client_endpoint, connects_polled, host_port, listens_polled, server_endpoint
from fooproxy.net.dns import NameServers
from fooproxy.net.listening import listen_now
from fooproxy.net.peers import shown
from fooproxy.net.poller import Poller, is_available, microseconds
from fooproxy.net.private import reserve_descriptor
from fooproxy.net.pump import LARGEST_READ
from fooproxy.net.resolver import look_up_apart
from fooproxy.net.sockets import set_options
from fooproxy.net.trail import Trail
from fooproxy.net.turnstile import Turnstile
from fooproxy.options import Options
from fooproxy.process import Printer, keep_large_blocks, keep_time, spare_the_collector
from fooproxy.recovery.saver import InUse, Saver
from fooproxy.recovery.saving import Saving
from fooproxy.recovery.state import Recovery
from fooproxy.relay.admission import Gate, Gates, session_limit
from fooproxy.relay.bridge import BridgeFactory
from fooproxy.relay.holding import Holding
from fooproxy.relay.interceptor import InterceptorFactory, WatchedFactory
from fooproxy.relay.link import LinkFactory
from fooproxy.relay.pooled import BurstSession, PooledSession
from fooproxy.relay.session import Session
from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts
from fooproxy.roster import MOST, Roster
from fooproxy.signals import Signals
from fooproxy.stats.counters import LONG_WAIT, Stats
from fooproxy.stats.sampling import Sampling
from fooproxy.stats.session import SessionStats
from fooproxy.stopping import Stopping
from fooproxy.supervisor import Supervisor
from fooproxy.upstreams.balance import BALANCES
from fooproxy.upstreams.checks import Checks, Rules
from fooproxy.upstreams.discovery import Discovery
from fooproxy.upstreams.ejection import Ejection
from fooproxy.upstreams.pool import Limits, Links
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from fooproxy.values import OFF
from fooproxy.web.control import Control
from fooproxy.web.hosts import Hosts
from fooproxy.web.resource import Web

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint

    from fooproxy.net.pump import Tap
    from fooproxy.relay.leg import Leg
    from fooproxy.relay.opening import UpstreamFactory
    from fooproxy.relay.session import Session
    from fooproxy.upstreams.forward import Forward

__all__ = ["Options", "ProxyService", "makeService"]

_SESSIONS: dict[str, type[Session[SessionStats]]] = {
    "off": Session,
    "session": PooledSession,
    "burst": BurstSession,
}
"""How sessions get their upstream leg, by the names that the option has for it."""

_PATIENCE = 0.001
"""Seconds that the poller, if it has all relay sockets, waits for traffic before timers and HTTP get a turn."""

_HTTP_REST = 0.01
"""Seconds that HTTP clients wait after a turn that accepted as many of them as it may."""


def makeService(options: Options, reactor: Any = None) -> ProxyService:
    """Create the proxy's service from parsed `options`; twistd calls this."""
    if reactor is None:
        from twisted.internet import reactor
    return ProxyService(options, reactor)


class ProxyService(Service):
    """The proxy: all of its parts, from start to stop."""

    log = Logger()

    def __init__(self, options: Options, reactor: Any) -> None:
        keep_time(reactor)
        look_up_apart(reactor)
        self._options = options
        self._logs = Log(options["log-level"], reactor)
        self._ends = Ends(self._logs, options["log-sessions"])
        self._launch = Launch(options, self._logs, FORMATS[options["log-format"]])
        self._printer = Printer()
        self._signals = Signals(reactor)
        self._supervisor = Supervisor(os.environ, reactor)
        self._reactor = reactor
        self._is_stopping = False
        forward: list[Forward] = options["forward"]
        # One server needs no numbers of its own.
        found = [one for one in forward if one.source is not None]
        fixed = [one for one in forward if one.source is None]
        names = [one.name for one in fixed] if len(forward) > 1 or found else []
        self.stats = Stats(time.monotonic, self._session_ended, servers=names, rows=MOST if found else 0)
        connects = all(connects_polled(one.address) for one in fixed)
        all_polled = is_available() and connects and all(map(listens_polled, options["listen"]))
        self._poller = Poller(reactor, _PATIENCE if all_polled else 0.0) if is_available() else None
        self._sampling = Sampling(self.stats, reactor, may_rest=all_polled)
        if self._poller is not None:
            self._poller.after_silence.append(self.stats.times.mark)
            self._poller.afterwards.append(self._sampling.look)
        self._trail = Trail()
        balance = BALANCES[options["balance"]](random.Random())
        self._upstreams = Servers(
            *([self._server(one, number) for number, one in enumerate(fixed)], reactor, options["connect-timeout"]),
            *(balance, options["queue-timeout"]),
            may_grow=bool(found),
        )
        self._upstreams.is_limited |= any(map(self._limit, found))
        self.stats.reachable = lambda: self._upstreams.counts
        self.stats.queue = lambda: self._upstreams.queue
        self.stats.linked = self._upstreams.links
        self._ejection = Ejection(self._upstreams.servers, self.stats.rows, time.monotonic)
        for number, record in enumerate(self.stats.servers):
            record.when_ended = partial(self._ejection.ended, number)
        self._checks = self._check_servers() if options["check"] != "off" else None
        roster = Roster(self.stats, self._upstreams, self._ejection, self._checks, self._server)
        name_servers = NameServers(reactor, options["name-server"])
        self._discovery = Discovery(found, name_servers, self._upstreams, roster, reactor)
        self.stats.unfound = lambda: self._discovery.failing
        timeouts = Timeouts(
            *(options["idle-timeout"], options["client-fin-timeout"], options["send-timeout"]),
            reply=options["reply-timeout"],
        )
        is_pooled = options["pool"] != "off"
        is_limited = self._upstreams.is_limited
        self._intercepts = LinkFactory if is_pooled else WatchedFactory if is_limited else InterceptorFactory
        self.bridge = BridgeFactory(
            *(self._connect, lambda: SessionStats(self.stats), reactor, timeouts),
            session=_SESSIONS[options["pool"]],
        )
        self._stopping = Stopping(self.bridge, options["drain-timeout"], reactor)
        knows_writers = self._poller if all_polled else None
        self._sweep = Sweep(self.bridge.sessions, timeouts, reactor, self.stats.catch_up, knows_writers)
        self._holding = Holding(
            *(self.bridge.sessions, options["pool-hold-timeout"], reactor, lambda: len(self._upstreams.waiting) > 0)
        )
        if options["pool"] == "burst" and self._poller is not None:
            # Else links would be free, and clients wait, until the reactor has its next turn.
            self._poller.afterwards[:0] = [self.stats.tell_settled, self._upstreams.serve_now]
        self._gates = Gates()
        saver = Saver(Path(options["recovery-path"]))
        recovery = Recovery(self.stats, saver, time.time, options["recovery-max-age"])
        self._saving = Saving(recovery, saver, self.stats, reactor)
        warnings = {
            "upstream_stuck": lambda: bool(self.stats.upstream_stuck),
            "upstream_drops_requests": lambda: self.stats.drops_requests,
            "only_naks": lambda: self.stats.only_naks,
            "upstream_down": lambda: 0 < self._upstreams.count("down") < len(self._upstreams.servers),
            "upstream_held": lambda: any(server.held for server in self._upstreams.servers),
            "discovery_failing": lambda: self._discovery.failing > 0,
            "slow_replies": lambda: self.stats.is_slow,
            "clients_waiting": lambda: not self._gates.are_open,
            "clients_queued": lambda: self._upstreams.queue[1] > LONG_WAIT,
            "recovery_failing": lambda: self._saving.failing,
        }
        self.health = Health(self._upstreams, self._has_traffic, self._loops, warnings)
        # Here, since both open files that may be out of reach after a change of root.
        reserve_descriptor()
        self._web = Web(
            *(self.stats, self.health, self._upstreams, self.bridge.sessions),
            *(self._saving.report, time.time, options.in_force),
            discovery=self._discovery.report,
            identity=self._identity,
        )
        self._control = Control(self.stats, self._upstreams, self.bridge.sessions, self, reactor)
        self._relay_ports: list[IListeningPort] = []
        self._listens: list[str] = []
        """Their addresses, which they no longer know once the proxy stops."""
        self._http_port: IListeningPort | None = None
        self._control_port: IListeningPort | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, and set where it logs before it starts."""
        self._launch.prepare(parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Claim the recovery file as the user who will write it, and open the listeners while still privileged."""
        super().privilegedStartService()
        self._launch.settled()
        self.log.info("fooproxy {version}, {reason}", version=__version__, reason=REASON)
        # First, so that a proxy whose recovery file is in use never accepts a client.
        self._or_refuse(lambda: self._launch.unprivileged(self._saving.claim))
        tapped = InterceptorFactory(self.bridge, _client_tap, microseconds)
        self.stats.limit = session_limit(self._options["max-connections"])
        for address in self._options["listen"]:
            listen = server_endpoint(self._reactor, address, poller=self._poller)
            port = self._listen("listen", address, listen, tapped)
            self._relay_ports.append(port)
            self._listens.append(_listening(port))
            self._put_up_gate(port)
        if self._options["http"] != OFF:
            self._serve_http(self._options["http"])
        if self._options["control"]:
            address = self._options["control"]
            control = server_endpoint(self._reactor, f"{address}:mode=600")
            self._control_port = self._listen("control", address, control, self._control.site())

    def startService(self) -> None:
        """Restore the statistics and start all parts; the process has dropped its privileges by now."""
        if not self._relay_ports:
            # twist, unlike twistd, has no privileged start.
            self.privilegedStartService()
        super().startService()
        self._or_refuse(self._saving.start)
        spare_the_collector()
        keep_large_blocks(LARGEST_READ)
        self._sweep.start()
        if self._options["pool"] != "off":
            self._holding.start()
        self._sampling.start()
        self._ejection.start(self._reactor)
        if self._checks is not None:
            self._checks.start()
        self._discovery.start()
        self._signals.report(self._report)
        self._signals.stop(self._stop)
        self._launch.succeeded()
        # Last, so that all signals are handled once these lines are in the log.
        self._reactor.callWhenRunning(self._announce)

    def _serve_http(self, address: str) -> None:
        endpoint = server_endpoint(self._reactor, address, "127.0.0.1")
        hosts = Hosts(self._options["http-host"], getattr(host_port(address), "host", ""))
        self._http_port = self._listen("http", address, endpoint, self._web.site(self._reactor, hosts))
        hosts.listening_at(self._http_port.getHost())

    def _identity(self) -> dict[str, Any]:
        """Return which process this is; `utc_offset_seconds` is that of the times in its log."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "listen": self._listens,
            "utc_offset_seconds": time.localtime().tm_gmtoff,
        }

    def _server(self, forward: Forward, number: int) -> Server:
        """Return a server to forward to; each of several has its own statistics."""
        endpoint = client_endpoint(self._reactor, forward.address, self._poller, self._trail)
        how: dict[str, Any] = {"weight": forward.weight, "backup": forward.backup, "limit": self._limit(forward)}
        server = Server(endpoint, forward.name, self._reactor, number=number, **how)
        if self.stats.most_servers:
            server.counted_by(self.stats.rows[number])
        if self._options["pool"] != "off":
            limits = Limits(self._options["pool-max-age"], self._options["pool-idle-timeout"])
            server.links = Links(self._reactor, limits, self.stats)
        return server

    def _limit(self, forward: Forward) -> int:
        """Return how many connections a server may have; 0 for any number."""
        most: int = self._options["upstream-max-connections"] if forward.most is None else forward.most
        return most

    def _check_servers(self) -> Checks:
        options = self._options
        interval = options["check-interval"]
        limit = min(interval, options["connect-timeout"])
        rules = Rules(interval, options["check-rise"], options["check-fall"], limit)
        source = random.Random()
        ask = partial(Question, source) if options["check"] == "foo" else None
        checks = Checks(rules, self._reactor, source, self.stats.upstream_checks, ask)
        for server in self._upstreams.servers:
            checks.join(server)
        return checks

    def _has_traffic(self) -> bool:
        return any(session.upstream is not None for session in self.bridge.sessions)

    def _loops(self) -> bool:
        return self._gates.loop

    def _announce(self) -> None:
        self.health.starting = False
        for port in self._relay_ports:
            self.log.info("listening for clients on {address}", address=_listening(port))
        if self._http_port is not None:
            self.log.info("serving HTTP on {url}", url=_url(self._http_port))
        if self._control_port is not None:
            self.log.info("taking orders on {address}", address=_listening(self._control_port))
        self._supervisor.ready()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, drain the sessions and save the statistics; the Deferred fires when all is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._drain_and_save())

    async def _drain_and_save(self) -> None:
        self.health.draining = True
        self._supervisor.stopping()
        self._sampling.stay_awake()
        await _closed(*self._relay_ports)
        await self._stopping.drain()
        self._upstreams.close_links()
        self._sweep.stop()
        self._holding.stop()
        self._ejection.stop()
        self._discovery.stop()
        if self._checks is not None:
            self._checks.stop()
        self._sampling.stop()
        await self._saving.stop()
        await _closed(*(port for port in (self._http_port, self._control_port) if port is not None))
        self._supervisor.stopped()
        # While there still is a log.
        self._logs.limits.finish()

    def _stop(self) -> None:
        """Stop the proxy and drain its sessions; if called again, abort them."""
        if self._is_stopping:
            self._stopping.hurry()
        else:
            self._is_stopping = True
            self._reactor.stop()

    def drain(self) -> None:
        """Stop the proxy, if it does not yet."""
        if not self._is_stopping:
            self._stop()

    def close(self, session: Session[SessionStats]) -> float:
        """Close a session once it is settled, or after ``--drain-timeout``; return that."""
        patience: float = self._options["drain-timeout"]
        self.bridge.dismiss(session, "closed_by_operator", patience)
        return patience

    def _connect(self, factory: UpstreamFactory) -> Deferred[Any]:
        tapped = self._intercepts(factory, _upstream_tap, microseconds)
        # With one server, all is counted in one place.
        client: Any = factory.session.observer if self.stats.most_servers else None
        return self._upstreams.connect(tapped, client)

    def _listen(self, option: str, address: str, endpoint: IStreamServerEndpoint, factory: Any) -> IListeningPort:
        try:
            port = listen_now(endpoint, factory)
        except Exception as error:
            reason = getattr(error, "socketError", error)
            self._launch.refuse(
                f"cannot listen on {address}: {getattr(reason, 'strerror', None) or reason}; "
                f"choose another address with --{option}"
            )
        if _has_socket(port):
            Turnstile(port, self._reactor, 0.0 if option == "listen" else _HTTP_REST)
        return port

    def _or_refuse(self, step: Callable[[], None]) -> None:
        try:
            step()
        except InUse as error:
            self._launch.refuse(f"{error}; each proxy needs its own, see --recovery-path")
        except OSError as error:
            path = self._options["recovery-path"]
            where = "" if error.filename in (None, path) else f"{error.filename}: "
            self._launch.refuse(
                f"cannot save statistics in {path}: {where}{error.strerror}; "
                "choose a writable file with --recovery-path"
            )

    def _put_up_gate(self, port: Any) -> None:
        stats = self.stats
        if _has_socket(port):
            set_options(port, self.bridge.timeouts.send)
            sessions, allowed = self.bridge.sessions, self._options["allow"]
            self._gates.add(
                Gate(
                    *(port, sessions, stats.limit, self._reactor),
                    *(stats.accepts_paused, allowed, stats.turned_away, self._trail),
                )
            )

    def _session_ended(self, session: SessionStats, reason: str) -> None:
        self._gates.resume()
        self._ends.log_end(session, reason)

    def _report(self) -> None:
        """Print the report as one line; if that fails, or in the background, log it too."""
        line = json.dumps(self.stats.report())

        def log_it() -> None:
            self.log.info("{report}", report=line, limited="")

        if self._launch.daemonized:
            log_it()
        else:
            self._printer.print_line(line, lambda: self._reactor.callFromThread(log_it))


def _client_tap(leg: Leg) -> Tap:
    return leg.session.observer.client


def _upstream_tap(leg: Leg) -> Tap:
    return leg.session.observer.upstream


def _has_socket(port: Any) -> bool:
    """Return whether `port` accepts connections; the endpoint stdio: is a single session without a listening socket."""
    return hasattr(port, "socket")


def _listening(port: Any) -> str:
    return shown(port.getHost())


def _url(port: Any) -> str:
    """Return the address of the HTTP server for the log; unix sockets have no standard URL."""
    return f"http://{_listening(port)}/" if hasattr(port.getHost(), "port") else f"unix:{_listening(port)}"


async def _closed(*ports: IListeningPort) -> None:
    # All of them stop at once, however long one of them takes.
    for closing in [port.stopListening() for port in ports]:
        if closing is not None:
            await closing
