"""Notifications to the supervisor that started the process, such as systemd: ready, stopping, alive.

systemd names its socket in ``NOTIFY_SOCKET`` (``Type=notify``), and in ``WATCHDOG_USEC`` the time after which it
considers a silent process dead (``WatchdogSec=``); see sd_notify(3) and sd_watchdog_enabled(3).  Without these
variables, nothing happens.  The service calls this module, which does not know the proxy.
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
"""Seconds to wait for a busy supervisor to accept a message that is sent only once."""


class Supervisor:
    """Tells the supervisor named in `environment` about the state of the process; `clock` times the pings.

    So a process whose event loop hangs sends no pings.
    """

    def __init__(self, environment: Mapping[str, str], clock: IReactorTime) -> None:
        # Connect early: a change of root or of user may put the socket's path out of reach.
        self._socket = _connected(environment.get("NOTIFY_SOCKET", ""))
        self._interval = _interval(environment)
        self._pings = LoopingCall(self._say, "WATCHDOG=1")
        self._pings.clock = clock

    def ready(self) -> None:
        """Report that the proxy is ready, and begin to report that it is alive."""
        self._say("READY=1", _PATIENCE)
        if self._socket is not None and self._interval:
            self._pings.start(self._interval)

    def stopping(self) -> None:
        """Report that the proxy has begun to stop; the pings go on."""
        self._say("STOPPING=1", _PATIENCE)

    def stopped(self) -> None:
        """Stop the pings."""
        if self._pings.running:
            self._pings.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, state: str, patience: float = 0.0) -> None:
        # A supervisor that does not listen must not stop the relay.
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
    """Return the seconds between two pings, half of what the supervisor allows; 0 if it expects none from us."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    allowed = environment.get("WATCHDOG_USEC", "")
    return int(allowed) / 2e6 if allowed.isdecimal() else 0.0
