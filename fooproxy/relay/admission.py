"""Admission: which clients are accepted, and how many sessions may be open at once.

A `Gate` takes the place of a listening socket.  It stops accepting at the session limit or when file descriptors run
out, and rejects clients from networks that are not allowed.  The `Turnstile` below it limits how many clients one turn
of the event loop accepts or rejects.

It knows nothing about the Foo protocol, and only the number of sessions.  `fooproxy.parts` installs the gate
and calls it when a session ends; the command line uses `network` to parse ``--allow``.
"""

from __future__ import annotations

import ipaddress
import resource
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.logger import Logger

from fooproxy.net.accepting import Acceptor, nobody
from fooproxy.net.peers import shown_host

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, MutableMapping

    from twisted.internet.interfaces import IReactorTime

    from fooproxy.net.trail import Trail

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

RESERVE = 164
"""File descriptors reserved for everything but sessions: listeners, log, saves, DNS lookups and HTTP clients."""

LOOP_MEMORY = 15.0
"""Seconds for which a connection that the proxy made to itself counts as a sign of a loop."""

_log = Logger()


def session_limit(asked: int | None, connections: int | None = None) -> int:
    """Raise the process's soft limit of file descriptors to its hard limit, and return the session limit.

    The limit is `asked`, or as many sessions as the descriptors suffice for if `asked` is `None` or greater.  A session
    needs two, or one while it waits for a server; `connections` is the maximum for all servers together, if there is
    one.
    """
    descriptors, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        descriptors = hard
    left = descriptors - RESERVE
    most = max(left // 2, 1)
    if connections is not None:
        most = max(most, left - connections)
    if descriptors < RESERVE + 2:
        _log.warn(
            "the limit of {descriptors} file descriptors is too low: {reserve} are reserved, and each session needs "
            "2 more; raise the hard limit (ulimit -Hn, or LimitNOFILE in the systemd unit)",
            descriptors=descriptors,
            reserve=RESERVE,
        )
    if asked is None:
        return most
    if asked > most:
        _log.warn(
            "--max-connections {asked} lowered to {most}: it needs {needed} file descriptors, but the limit is "
            "{descriptors}; raise the hard limit (ulimit -Hn, or LimitNOFILE in the systemd unit)",
            asked=asked,
            most=most,
            needed=RESERVE + asked + (asked if connections is None else min(asked, connections)),
            descriptors=descriptors,
        )
    return min(asked, most)


def network(text: str) -> Network:
    """Parse a network in CIDR notation, or a single address.

    An IPv4-mapped IPv6 network is returned as the IPv4 network.

    :raises ValueError: `text` is neither; the message says what would be valid.
    """
    try:
        if "%" in text:
            raise ValueError("a network has no zone")
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a network; expected one such as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7"
        ) from None
    if found.network_address != ipaddress.ip_interface(text).ip:
        raise ValueError(f"{text!r} has bits set beyond its prefix; expected {found}, or an address alone")
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= 96 and found.network_address.ipv4_mapped:
        return ipaddress.IPv4Network((found.network_address.ipv4_mapped, found.prefixlen - 96))
    return found


class Gates:
    """The gates of all listeners, which share one limit."""

    def __init__(self) -> None:
        self._gates: deque[Gate] = deque()

    def add(self, gate: Gate) -> None:
        """Add the gate of a listener."""
        self._gates.append(gate)

    def resume(self) -> None:
        """Accept again if there is room; the listeners take turns at being the first."""
        self._gates.rotate()
        for gate in self._gates:
            gate.resume()

    @property
    def are_open(self) -> bool:
        """Whether all listeners accept new clients at once."""
        return all(gate.is_open for gate in self._gates)

    @property
    def loop(self) -> bool:
        """Whether the proxy has connected to itself within the last `LOOP_MEMORY` seconds."""
        return any(gate.loops for gate in self._gates)


class Gate(Acceptor):
    """Decides which clients `port` accepts, and when.

    While `sessions` has `limit` entries, or file descriptors have run out, the port is paused.  Call `resume` whenever
    a session ends.

    If `allowed` is not empty, TCP clients from other networks are closed as soon as they are accepted; so are
    connections that this process made itself, by `trail`.  `turn_away` is called for each, with the reason.  `pauses`
    counts how often the port was paused, by cause: ``limit`` or ``descriptors``.  The log has one line when pausing
    begins and one when it is over, however many clients waited.
    """

    log = Logger()

    def __init__(
        self,
        port: Any,
        sessions: Collection[Any],
        limit: int,
        clock: IReactorTime,
        pauses: MutableMapping[str, int],
        allowed: Collection[Network] = (),
        turn_away: Callable[[str], object] = lambda reason: None,
        trail: Trail | None = None,
    ) -> None:
        super().__init__(port, clock)
        self._sessions = sessions
        self._limit = limit
        self._pauses = pauses
        self._allowed = allowed
        self._turn_away = turn_away
        self._trail = trail
        self._looped_at = float("-inf")
        if trail is not None:
            trail.listens(self.socket)

    def accept(self) -> tuple[Any, Any]:
        """Accept the next client that is allowed.

        :raises BlockingIOError: there is none at the moment.
        """
        while True:
            if not self.has_room:
                self.pause("limit", "")
                raise nobody()
            client, address = super().accept()
            if self._trail is not None and self._trail.was_made_here(client, address):
                self._turn_away("loop")
                self._tell_of_loop()
            elif not self._allowed or self._allows(address):
                return client, address
            else:
                self._turn_away("not_allowed")
                # So that a wrong --allow is noticed.
                self.log.info(
                    "rejected a client from {host}, which no --allow covers",
                    host=shown_host(address[0]),
                    limited="rejected clients",
                )
            client.close()

    def _tell_of_loop(self) -> None:
        """Record and log that the proxy has connected to itself."""
        self._looped_at = self.clock.seconds()
        self.log.warn(
            "rejected a connection that this proxy made itself: --forward leads back to --listen; "
            "set --forward to the Foo server's address",
            limited="connections of the proxy to itself",
        )

    @property
    def loops(self) -> bool:
        """Whether the proxy has been its own client lately."""
        return self.clock.seconds() - self._looped_at <= LOOP_MEMORY

    @property
    def has_room(self) -> bool:
        """Whether the number of sessions is below the limit."""
        return len(self._sessions) < self._limit

    def paused(self, cause: str, why: str, is_news: bool) -> None:
        """Count a pause, and log the first one."""
        self._pauses[cause] += 1
        if is_news:
            line = "cannot accept clients: {error}; new clients wait"
            fields: dict[str, Any] = {"error": why}
            if cause == "limit":
                line = "session limit of {limit} reached; new clients wait until a session ends"
                fields = {"limit": self._limit}
            self.log.warn(line, **fields, limited="pauses of accepting")

    def recovered(self) -> None:
        """Log that clients are accepted without waiting again."""
        self.log.info("accepting clients again", limited="pauses of accepting")

    def _allows(self, address: Any) -> bool:
        """Return whether a client from `address` is allowed; one on a unix socket, without an IP address, always is."""
        if not isinstance(address, tuple):
            return True
        host = ipaddress.ip_address(address[0])
        host = getattr(host, "ipv4_mapped", None) or host
        return any(host in network for network in self._allowed)
