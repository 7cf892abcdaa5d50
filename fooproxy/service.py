"""The service: opens the listeners, restores and saves the statistics, and starts and stops everything in order.

The service creates the `fooproxy.parts` from the options, and starts them.  twistd finds `Options` and `makeService`
here through the plugin.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from fooproxy import __version__
from fooproxy.commandline import Options
from fooproxy.core import IMPLEMENTATION, REASON
from fooproxy.ends import Ends
from fooproxy.launch import Launch
from fooproxy.logs.formats import FORMATS
from fooproxy.logs.log import Log
from fooproxy.net.addresses import host_port, server_endpoint
from fooproxy.net.listening import close_now, listen_now
from fooproxy.net.peers import shown
from fooproxy.net.private import reserve_descriptor
from fooproxy.net.pump import LARGEST_READ
from fooproxy.net.resolver import look_up_apart
from fooproxy.net.turnstile import Turnstile
from fooproxy.parts import Parts
from fooproxy.process import Printer, keep_large_blocks, keep_time, spare_the_collector
from fooproxy.recovery.saver import InUse
from fooproxy.relay.admission import session_limit
from fooproxy.signals import Signals
from fooproxy.stopping import Stopping
from fooproxy.supervisor import Supervisor
from fooproxy.values import OFF
from fooproxy.web.control import Control
from fooproxy.web.hosts import Hosts
from fooproxy.web.resource import Web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint

    from fooproxy.relay.session import Session
    from fooproxy.stats.session import SessionStats

__all__ = ["Options", "ProxyService", "makeService"]

_HTTP_REST = 0.01
"""Seconds that new HTTP clients wait after a turn that accepted as many as allowed."""


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
        self._launch = Launch(options, self._logs, FORMATS[options["log-format"]])
        self._printer = Printer()
        self._signals = Signals(reactor)
        self._supervisor = Supervisor(os.environ, reactor)
        self._reactor = reactor
        parts = self._parts = Parts(options, reactor, Ends(self._logs, options["log-sessions"]).log_end)
        self._stopping = Stopping(parts.bridge, options["drain-timeout"], reactor)
        self._is_stopping = False
        # Create these here: both open files that may be out of reach after a change of root.
        reserve_descriptor()
        self._web = Web(
            *(parts.stats, parts.health, parts.upstreams, parts.bridge.sessions),
            *(parts.saving.report, time.time, options.in_force),
            discovery=parts.discovery.report,
            identity=self._identity,
        )
        self._control = Control(parts.stats, parts.upstreams, parts.bridge.sessions, self, reactor)
        self._relay_ports: list[IListeningPort] = []
        self._listens: list[str] = []
        """The addresses of the ports, which no longer know them once the proxy stops."""
        self._http_port: IListeningPort | None = None
        self._control_port: IListeningPort | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, and set where it logs before it starts."""
        self._launch.prepare(parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Claim the recovery file as the user who will write it, and open the listeners while still privileged."""
        super().privilegedStartService()
        with self._closing_if_it_fails():
            self._open()

    def _open(self) -> None:
        """Claim the file and open the listeners, in an order in which a failing start affects no other process."""
        self._launch.settled()
        how = REASON.replace("{", "{{").replace("}", "}}")
        self.log.info(f"fooproxy {{version}}, {how}", version=__version__, implementation=IMPLEMENTATION)
        for note in self._options.notes:
            self.log.warn(note.template, **note.fields, limited="")
        parts = self._parts
        # Claim the file first, so that a proxy whose recovery file is in use never accepts a client.
        self._or_refuse(lambda: self._launch.unprivileged(parts.saving.claim))
        clients = parts.for_clients()
        parts.stats.limit = session_limit(self._options["max-connections"], parts.most_connections)
        for address in self._options["listen"]:
            listen = server_endpoint(self._reactor, address, poller=parts.poller)
            port = self._listen("listen", address, listen, clients)
            self._relay_ports.append(port)
            self._listens.append(_listening(port))
            if _has_socket(port):
                parts.put_up_gate(port)
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
        with self._closing_if_it_fails():
            self._or_refuse(self._parts.saving.start)
            spare_the_collector()
            keep_large_blocks(LARGEST_READ)
            self._parts.start()
            self._signals.report(self._report)
            self._signals.stop(self._signalled)
            self._launch.succeeded()
        # Log these lines last: once they are in the log, all signals are handled.
        self._reactor.callWhenRunning(self._announce)

    def _serve_http(self, address: str) -> None:
        endpoint = server_endpoint(self._reactor, address, "127.0.0.1")
        hosts = Hosts(self._options["http-host"], getattr(host_port(address), "host", ""))
        self._http_port = self._listen("http", address, endpoint, self._web.site(self._reactor, hosts))
        hosts.listening_at(self._http_port.getHost())

    def _identity(self) -> dict[str, Any]:
        """Return the identity of this process; `utc_offset_seconds` applies to the times in its log."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "listen": self._listens,
            "utc_offset_seconds": time.localtime().tm_gmtoff,
        }

    def _announce(self) -> None:
        self._parts.health.starting = False
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
        self._parts.health.draining = True
        self._supervisor.stopping()
        self._parts.sampling.stay_awake()
        await _closed(*self._relay_ports)
        await self._stopping.drain()
        self._parts.stop()
        await self._parts.saving.stop()
        await _closed(*(port for port in (self._http_port, self._control_port) if port is not None))
        self._supervisor.stopped()
        # Do this while the log is still open.
        self._logs.limits.finish()

    def _signalled(self, name: str) -> None:
        """Stop the proxy and drain its sessions; at a second signal, abort them."""
        if self._is_stopping:
            self.log.info("{signal} received while stopping: not waiting any longer", signal=name)
            self._stopping.hurry()
        else:
            self.log.info("{signal} received: stopping", signal=name)
            self.drain()

    def drain(self) -> None:
        """Stop the proxy and drain its sessions; further calls do nothing."""
        if not self._is_stopping:
            self._is_stopping = True
            self._reactor.stop()

    def close(self, session: Session[SessionStats]) -> float:
        """Close a session once it is settled; return the seconds (``--drain-timeout``) after which it is aborted."""
        patience: float = self._options["drain-timeout"]
        self._parts.bridge.dismiss(session, "closed_by_operator", patience)
        return patience

    @contextmanager
    def _closing_if_it_fails(self) -> Iterator[None]:
        """Close the ports if the start fails, so that neither a unix socket nor its lock is left behind."""
        try:
            yield
        except BaseException:
            for port in (*self._relay_ports, self._http_port, self._control_port):
                if _has_socket(port):
                    close_now(port)
            raise

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

    def _report(self) -> None:
        """Print the report as one line; if that fails, or in the background, log it too."""
        line = json.dumps(self._parts.stats.report())

        def log_it() -> None:
            self.log.info("{report}", report=line, limited="")

        if self._launch.daemonized:
            log_it()
        else:
            self._printer.print_line(line, lambda: self._reactor.callFromThread(log_it))


def _has_socket(port: Any) -> bool:
    """Return whether `port` accepts connections; the endpoint stdio: is a single session without a listening socket."""
    return hasattr(port, "socket")


def _listening(port: Any) -> str:
    return shown(port.getHost())


def _url(port: Any) -> str:
    """Return the address of the HTTP server for the log; unix sockets have no standard URL."""
    return f"http://{_listening(port)}/" if hasattr(port.getHost(), "port") else f"unix:{_listening(port)}"


async def _closed(*ports: IListeningPort) -> None:
    # Stop all of them at once, however long one of them takes.
    for closing in [port.stopListening() for port in ports]:
        if closing is not None:
            await closing
