"""The parts of the proxy: creates each of them from the options, and connects it with the parts it needs.

This is the only module that knows every part of the relay and of the statistics.  It opens no port, and does not know
how a process starts and ends; `fooproxy.service` handles both.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fooproxy.foo.question import Question
from fooproxy.health import Health
from fooproxy.net.addresses import client_endpoint, connects_polled, listens_polled
from fooproxy.net.dns import NameServers
from fooproxy.net.lead import Lead
from fooproxy.net.poller import Poller, is_available
from fooproxy.net.pump import microseconds
from fooproxy.net.sockets import set_options
from fooproxy.net.trail import Trail
from fooproxy.recovery.saver import Saver
from fooproxy.recovery.saving import Saving
from fooproxy.recovery.state import Recovery
from fooproxy.relay.admission import Gate, Gates
from fooproxy.relay.bridge import BridgeFactory
from fooproxy.relay.holding import Holding
from fooproxy.relay.interceptor import InterceptorFactory, WatchedFactory
from fooproxy.relay.link import LinkFactory
from fooproxy.relay.pooled import BurstSession, PooledSession
from fooproxy.relay.session import Session
from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts
from fooproxy.roster import MOST, Roster
from fooproxy.stats.counters import LONG_WAIT, Stats
from fooproxy.stats.sampling import Sampling
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.balance import BALANCES
from fooproxy.upstreams.checks import Checks, Rules
from fooproxy.upstreams.discovery import Discovery
from fooproxy.upstreams.ejection import Ejection
from fooproxy.upstreams.pool import Limits, Links
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

    from fooproxy.commandline import Options
    from fooproxy.net.pump import Tap
    from fooproxy.relay.leg import Leg
    from fooproxy.relay.opening import UpstreamFactory
    from fooproxy.upstreams.forward import Forward

_SESSIONS: dict[str, type[Session[SessionStats]]] = {
    "off": Session,
    "session": PooledSession,
    "burst": BurstSession,
}
"""The class of sessions for each value of ``--pool``."""

_PATIENCE = 0.001
"""Seconds that the poller, if it has all relay sockets but not the lead, waits for traffic before HTTP gets a turn."""


class Parts:
    """All parts, made from `options`; nothing runs before `start`.

    `log_end` is called for each session that ends, with its statistics and the reason.
    """

    def __init__(self, options: Options, reactor: Any, log_end: Callable[[SessionStats, str], None]) -> None:
        self._options = options
        self._reactor = reactor
        self._log_end = log_end
        forward: list[Forward] = options["forward"]
        # A single server needs no numbers of its own.
        found = [one for one in forward if one.source is not None]
        fixed = [one for one in forward if one.source is None]
        names = [one.name for one in fixed] if len(forward) > 1 or found else []
        self.stats = Stats(time.monotonic, self._session_ended, servers=names, rows=MOST if found else 0)
        self.stats.slow = options["slow-replies"]
        connects = all(connects_polled(one.address) for one in fixed)
        all_polled = is_available() and connects and all(map(listens_polled, options["listen"]))
        self.poller = Poller(reactor, _PATIENCE if all_polled else 0.0) if is_available() else None
        self.sampling = Sampling(self.stats, reactor, may_rest=all_polled)
        if self.poller is not None:
            self.poller.after_silence.append(self.stats.times.mark)
            # If chunks are counted at once, there is nothing to do after each batch.
            hooks = self.poller.afterwards if self.stats.defers else self.poller.each_turn
            hooks.append(self.sampling.look)
        self._lead = None if self.poller is None else Lead(reactor, self.poller)
        self._trail = Trail()
        balance = BALANCES[options["balance"]](random.Random())
        self.upstreams = Servers(
            *([self._server(one, number) for number, one in enumerate(fixed)], reactor, options["connect-timeout"]),
            *(balance, options["queue-timeout"]),
            may_grow=bool(found),
        )
        self.upstreams.is_limited |= any(map(self._limit, found))
        self.stats.reachable = lambda: self.upstreams.counts
        self.stats.queue = lambda: self.upstreams.queue
        self.stats.linked = self.upstreams.links
        self._ejection = Ejection(self.upstreams.servers, self.stats.rows, time.monotonic)
        for number, record in enumerate(self.stats.servers):
            record.when_ended = partial(self._ejection.ended, number)
        self._checks = self._check_servers() if options["check"] != "off" else None
        roster = Roster(self.stats, self.upstreams, self._ejection, self._checks, self._server)
        name_servers = NameServers(reactor, options["name-server"])
        self.discovery = Discovery(found, name_servers, self.upstreams, roster, reactor)
        self.stats.unfound = lambda: self.discovery.failing
        timeouts = Timeouts(
            *(options["idle-timeout"], options["client-fin-timeout"], options["send-timeout"]),
            reply=options["reply-timeout"],
        )
        is_pooled = options["pool"] != "off"
        is_limited = self.upstreams.is_limited
        self._intercepts = LinkFactory if is_pooled else WatchedFactory if is_limited else InterceptorFactory
        self.bridge = BridgeFactory(
            *(self._connect, lambda: SessionStats(self.stats), reactor, timeouts),
            session=_SESSIONS[options["pool"]],
        )
        knows_writers = self.poller if all_polled else None
        self._sweep = Sweep(self.bridge.sessions, timeouts, reactor, self.stats.catch_up, knows_writers)
        self._holding = Holding(
            *(self.bridge.sessions, options["pool-hold-timeout"], reactor, lambda: len(self.upstreams.waiting) > 0)
        )
        if options["pool"] == "burst" and self.poller is not None:
            # Otherwise clients would wait for free links until the reactor's next turn.
            self.poller.afterwards[:0] = [self.stats.tell_settled, self.upstreams.serve_now]
        self._gates = Gates()
        saver = Saver(Path(options["recovery-path"]))
        recovery = Recovery(self.stats, saver, time.time, options["recovery-max-age"])
        self.saving = Saving(recovery, saver, self.stats, reactor)
        self.health = Health(self.upstreams, self._has_traffic, lambda: self._gates.loop, self._warnings())

    def start(self) -> None:
        """Start the parts that work by themselves; call this after the statistics were restored."""
        self._sweep.start()
        if self._options["pool"] != "off":
            self._holding.start()
        self.sampling.start()
        self._ejection.start(self._reactor)
        if self._checks is not None:
            self._checks.start()
        self.discovery.start()
        if self._lead is not None:
            self._lead.take()

    def stop(self) -> None:
        """Stop these parts; call this after all sessions have ended."""
        self.upstreams.close_links()
        self._sweep.stop()
        self._holding.stop()
        self._ejection.stop()
        self.discovery.stop()
        if self._checks is not None:
            self._checks.stop()
        self.sampling.stop()
        if self._lead is not None:
            self._lead.give_back()

    def for_clients(self) -> InterceptorFactory:
        """Return the factory for ports that listen for clients."""
        return InterceptorFactory(self.bridge, _client_tap, microseconds)

    def put_up_gate(self, port: Any) -> None:
        """Make `port`, which has a socket, accept only allowed clients, and at most `stats.limit` sessions."""
        stats = self.stats
        set_options(port, self.bridge.timeouts.send)
        self._gates.add(
            Gate(
                *(port, self.bridge.sessions, stats.limit, self._reactor),
                *(stats.accepts_paused, self._options["allow"], stats.turned_away, self._trail),
            )
        )

    def _server(self, forward: Forward, number: int) -> Server:
        """Return the server for a `forward`; with several servers, each has its own statistics."""
        endpoint = client_endpoint(self._reactor, forward.address, self.poller, self._trail)
        how: dict[str, Any] = {"weight": forward.weight, "backup": forward.backup, "limit": self._limit(forward)}
        server = Server(endpoint, forward.name, self._reactor, number=number, **how)
        if self.stats.most_servers:
            server.counted_by(self.stats.rows[number])
        if self._options["pool"] != "off":
            limits = Limits(self._options["pool-max-age"], self._options["pool-idle-timeout"])
            server.links = Links(self._reactor, limits, self.stats)
        return server

    @property
    def most_connections(self) -> int | None:
        """The maximum number of connections to all servers together; `None` without a limit, or if it is unknown."""
        forward: list[Forward] = self._options["forward"]
        limits = [0 if one.source is not None else self._limit(one) for one in forward]
        return sum(limits) if all(limits) else None

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
        for server in self.upstreams.servers:
            checks.join(server)
        return checks

    def _warnings(self) -> dict[str, Callable[[], bool]]:
        """Return what an operator should check, with the condition for each."""
        return {
            "upstream_stuck": lambda: bool(self.stats.upstream_stuck),
            "upstream_drops_requests": lambda: self.stats.drops_requests,
            "only_naks": lambda: self.stats.only_naks,
            "upstream_down": lambda: 0 < self.upstreams.count("down") < len(self.upstreams.servers),
            "upstream_held": lambda: any(server.held for server in self.upstreams.servers),
            "discovery_failing": lambda: self.discovery.failing > 0,
            "slow_replies": lambda: self.stats.is_slow,
            "clients_waiting": lambda: not self._gates.are_open,
            "clients_queued": lambda: self.upstreams.queue[1] > LONG_WAIT,
            "recovery_failing": lambda: self.saving.failing,
        }

    def _has_traffic(self) -> bool:
        return any(session.upstream is not None for session in self.bridge.sessions)

    def _connect(self, factory: UpstreamFactory) -> Deferred[Any]:
        tapped = self._intercepts(factory, _upstream_tap, microseconds)
        # With one server, everything is counted in one place.
        client: Any = factory.session.observer if self.stats.most_servers else None
        return self.upstreams.connect(tapped, client)

    def _session_ended(self, session: SessionStats, reason: str) -> None:
        self._gates.resume()
        self._log_end(session, reason)


def _client_tap(leg: Leg) -> Tap:
    return leg.session.observer.client


def _upstream_tap(leg: Leg) -> Tap:
    return leg.session.observer.upstream
