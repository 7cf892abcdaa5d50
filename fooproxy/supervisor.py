"""The supervisor that started the process, such as systemd, and what it is told: ready, stopping, alive.

systemd names its socket in ``NOTIFY_SOCKET`` (``Type=notify``), and in ``WATCHDOG_USEC`` the time after which it takes
a process that says nothing for dead (``WatchdogSec=``).  Both are described in sd_notify(3) and sd_watchdog_enabled(3).
Without them nothing happens.  The service calls this; the proxy itself is not known here.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.task import LoopingCall

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.interfaces import IReactorTime

_PATIENCE = 1.0
"""Seconds to wait for a busy supervisor to take word that is said only once."""


class Supervisor:
    """Tells the supervisor that `environment` names how the process is; the pings come from `clock`.

    So a process whose event loop hangs is one that says nothing.
    """

    def __init__(self, environment: Mapping[str, str], clock: IReactorTime) -> None:
        # Connected early: a change of root or of user may put its path out of reach.
        self._socket = _connected(environment.get("NOTIFY_SOCKET", ""))
        self._interval = _interval(environment)
        self._pings = LoopingCall(self._say, "WATCHDOG=1")
        self._pings.clock = clock

    def ready(self) -> None:
        """Say that the proxy serves its clients, and from now on that it is alive."""
        self._say("READY=1", _PATIENCE)
        if self._socket is not None and self._interval:
            self._pings.start(self._interval)

    def stopping(self) -> None:
        """Say that the proxy has begun to stop; it stays alive meanwhile."""
        self._say("STOPPING=1", _PATIENCE)

    def stopped(self) -> None:
        """Say nothing more."""
        if self._pings.running:
            self._pings.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, state: str, patience: float = 0.0) -> None:
        # A supervisor that does not listen is no reason to stop relaying.
        with suppress(OSError):
            if self._socket is not None:
                self._socket.settimeout(patience)
                self._socket.send(state.encode())


def _connected(address: str) -> socket.socket | None:
    if not address.startswith(("/", "@")):
        return None
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # An @ stands for the null byte that starts the name of an abstract socket.
        found.connect(os.fsencode(address.replace("@", "\0", 1) if address[0] == "@" else address))
    except OSError:
        found.close()
        return None
    return found


def _interval(environment: Mapping[str, str]) -> float:
    """Return the seconds between two pings, half of what the supervisor allows; 0 if it expects none of us."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    allowed = environment.get("WATCHDOG_USEC", "")
    return int(allowed) / 2e6 if allowed.isdecimal() else 0.0
