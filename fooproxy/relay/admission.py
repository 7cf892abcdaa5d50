"""Who may come in, and when: the gate before the listening socket, and how many sessions there may be.

It knows neither sessions nor the Foo protocol; the service puts the gate up, and tells it when a session has ended.
"""

from __future__ import annotations

import errno
import ipaddress
import resource
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, MutableMapping

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

RESERVE = 164
"""File descriptors kept for all but sessions: listeners, log, saves, look-ups of names, and the web side's clients."""

RETRY = 1.0
"""Seconds after which accepting is tried again when there were no file descriptors."""

CALM = 5.0
"""Seconds without a pause after which it is told that clients are accepted again."""

TELL_INTERVAL = 60.0
"""Seconds between two log lines on clients that are turned away."""

_BATCH = 100
"""Clients that are turned away at once, before others have their turn."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


_log = Logger()


def session_limit(asked: int | None) -> int:
    """Have this process allowed as many file descriptors as it may allow itself; give how many sessions there may be.

    That is what is `asked` for, or if that is `None` or more, what the descriptors are enough for: a session takes two.
    """
    descriptors, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        descriptors = hard
    most = max((descriptors - RESERVE) // 2, 1)
    if descriptors < RESERVE + 2:
        _log.warn(
            "only {descriptors} file descriptors are allowed, and {reserve} are wanted for all but sessions; "
            "raise their hard limit (ulimit -Hn, or LimitNOFILE in the unit)",
            descriptors=descriptors,
            reserve=RESERVE,
        )
    if asked is None:
        return most
    if asked > most:
        _log.warn(
            "--max-connections {asked} is lowered to {most}: it needs {needed} file descriptors, and {descriptors} "
            "are allowed; raise their hard limit (ulimit -Hn, or LimitNOFILE in the unit)",
            asked=asked,
            most=most,
            needed=2 * asked + RESERVE,
            descriptors=descriptors,
        )
    return min(asked, most)


def network(text: str) -> Network:
    """Read a network in CIDR notation, or an address alone.

    :raises ValueError: it is neither; the message says what would be.
    """
    try:
        if "%" in text:
            raise ValueError("networks have no zones")
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


class Gate:
    """Stands in for the socket of `port`, one of Twisted's listening ports or ours, when it accepts.

    While there are `limit` things in `sessions`, and while the kernel has no file descriptors, the port is not read:
    clients wait in the kernel's backlog.  When a session has ended, `let_in` has to be called.

    Of clients by TCP only those from the networks in `allowed` are let in, unless that is empty; others are closed at
    once, and `turn_away` is called.  In `pauses` it counts how often it stopped the reading, by cause: ``limit`` or
    ``descriptors``.  The log is told when it begins and when it is over, however many clients that concerned.
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
        turn_away: Callable[[], object] = lambda: None,
    ) -> None:
        self._port = port
        self._socket = port.socket
        self._sessions = sessions
        self._limit = limit
        self._clock = clock
        self._pauses = pauses
        self._allowed = allowed
        self._turn_away = turn_away
        self._paused = False
        self._changed = 0.0
        """When accepting was paused or resumed last."""
        self._told: set[str] = set()
        """The causes that the log knows of."""
        self._told_at = float("-inf")
        self._timer: IDelayedCall | None = None
        port.socket = self

    def __getattr__(self, name: str) -> Any:
        """Be the socket in everything else."""
        return getattr(self._socket, name)

    def accept(self) -> tuple[Any, Any]:
        """Accept the next client that may come in.

        :raises BlockingIOError: there is none now.
        """
        for _ in range(_BATCH):
            if len(self._sessions) >= self._limit:
                self._pause("limit", "the limit of {limit} sessions is reached; new clients wait until others leave")
                raise _nobody()
            try:
                client, address = self._socket.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause("descriptors", f"new clients wait, since none can be accepted: {error.strerror}")
                    raise _nobody() from None
                raise
            if not self._allowed or self._allows(address):
                return client, address
            client.close()
            self._turn_away()
            self._tell_of(address[0])
        raise _nobody()

    def _tell_of(self, host: str) -> None:
        """Name one of those who are turned away now and then, so that a wrong --allow is found out."""
        now = self._clock.seconds()
        if now - self._told_at >= TELL_INTERVAL:
            self._told_at = now
            self.log.info(
                "no --allow names {host}, so that its clients are turned away; others may be too, see not_allowed",
                host=host,
            )

    @property
    def is_open(self) -> bool:
        """Whether clients are accepted as they come."""
        return not self._paused

    def let_in(self) -> None:
        """Accept again, if there is room again."""
        if self._paused and len(self._sessions) < self._limit:
            self._paused = False
            self._changed = self._clock.seconds()
            # Not when it is closed, or about to be.
            self._port.resumeProducing()

    def close(self) -> None:
        """Close the socket, as the port does when it stops listening, and have nothing happen later any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._socket.close()

    def _allows(self, address: Any) -> bool:
        """Tell whether a client from `address` may come in; one by a unix socket has none that could say no."""
        if not isinstance(address, tuple):
            return True
        host = ipaddress.ip_address(address[0])
        host = getattr(host, "ipv4_mapped", None) or host
        return any(host in network for network in self._allowed)

    def _pause(self, cause: str, words: str) -> None:
        self._paused = True
        self._changed = self._clock.seconds()
        self._port.pauseProducing()
        self._pauses[cause] += 1
        if cause not in self._told:
            self._told.add(cause)
            self.log.warn(words, limit=self._limit)
        if self._timer is None:
            self._timer = self._clock.callLater(RETRY, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self.let_in()
        if self._paused or self._clock.seconds() - self._changed < CALM:
            self._timer = self._clock.callLater(RETRY, self._look_again)
        else:
            self._told.clear()
            self.log.info("clients are accepted again as they come")


def _nobody() -> OSError:
    """Make what a socket raises that has no client now."""
    return BlockingIOError(errno.EAGAIN, "no client may come in now")
