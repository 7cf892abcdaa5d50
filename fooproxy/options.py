"""The command line: every option, its default, and what is wrong with a value that cannot be used.

It builds nothing; the service reads it.  A usage error says which option, which value, and what would be right.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any

from twisted.python import usage

from fooproxy import __version__
from fooproxy.net.addresses import client_endpoint, host_port, is_introduced, server_endpoint
from fooproxy.relay.admission import network

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SECONDS = (
    "connect-timeout",
    "idle-timeout",
    "client-fin-timeout",
    "send-timeout",
    "drain-timeout",
    "recovery-max-age",
)
_NEVER_ZERO = {
    "connect-timeout": "no time to connect",
    "client-fin-timeout": "no time for a reply",
    "send-timeout": "no time to read",
}


_THIS_MACHINE = {"", "0.0.0.0", "127.0.0.1", "localhost"}


class Options(usage.Options):
    """What an operator may say.  Addresses stay as they were written, times become floats.

    ``max-connections`` becomes a number, `None` for ``auto``; ``allow`` is a list of networks, empty when all may come.
    """

    synopsis = "[options]"
    longdesc = """\
Relays the Foo protocol between clients and a server, counts the messages, and shows the statistics: as JSON on
standard output at SIGUSR2, and over HTTP.

An ADDRESS is a port (8001), host:port, [IPv6 address]:port, or one of Twisted's endpoint descriptions, such as
unix:/run/foo.sock, tls:foo.example:8001, systemd:domain=INET:index=0 or haproxy:tcp:8002."""

    optParameters = [
        ["listen", "l", ":8002", "ADDRESS where clients connect."],
        ["forward", "f", ":8001", "ADDRESS of the Foo server; on this machine when it names no host."],
        ["http", None, "127.0.0.1:8088", "ADDRESS of the statistics page; 127.0.0.1 when it names no host."],
        ["max-connections", None, "auto", "Sessions at once; auto is as many as the file descriptors are enough for."],
        ["recovery-path", None, ".data/recovery.json", "File that keeps the statistics over a restart."],
        ["recovery-max-age", None, "10", "Seconds after which saved statistics are too old to go on from."],
        ["connect-timeout", None, "5", "Seconds to keep trying to connect to the Foo server for a client."],
        ["idle-timeout", None, "0", "Seconds after which a session in which nothing passes is ended; 0 for never."],
        ["client-fin-timeout", None, "10", "Seconds that a client which has closed its side waits for each reply."],
        ["send-timeout", None, "60", "Seconds after which a peer that reads nothing of what waits for it is given up."],
        ["drain-timeout", None, "10", "Seconds that a stop waits for replies that are still outstanding."],
    ]

    optFlags = [
        ["log-sessions", None, "Log the end of each session, with its counts, and not only ends that are no good."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["allow"] = []

    def opt_allow(self, text: str) -> None:
        """Network (192.0.2.0/24) or address whose clients may connect, and others not; may be repeated."""
        try:
            self["allow"].append(network(text))
        except ValueError as error:
            raise usage.UsageError(f"--allow: {error}") from None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse; under twistd or twist a usage error ends the process with one line, not with the whole help."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            if getattr(self, "parent", None) is None:
                raise
            print(f"fooproxy: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def parseArgs(self, *arguments: str) -> None:
        """Refuse arguments: a forgotten dash must not go unnoticed."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}; everything is said by options (see --help)")

    def postOptions(self) -> None:
        """Check the values."""
        # Imported late: by now a --reactor option has been heard.
        from twisted.internet import reactor

        self._check_address("listen", server_endpoint, reactor)
        self._check_address("forward", client_endpoint, reactor)
        self._check_address("http", server_endpoint, reactor)
        listen, forward = host_port(self["listen"]), host_port(self["forward"])
        if listen and forward and listen.port == forward.port and {listen.host, forward.host} <= _THIS_MACHINE:
            raise usage.UsageError(f"--forward: {self['forward']!r} is where the proxy itself listens; name the server")
        for name in _SECONDS:
            self[name] = self._seconds(name)
        self["max-connections"] = self._max_connections()
        if self["allow"] and is_introduced(self["listen"]):
            raise usage.UsageError(
                f"--allow: cannot be told with --listen {self['listen']}, where the client's address comes too late; "
                "expected it without haproxy:, or a rule such as 'tcp-request connection reject' in what connects here"
            )
        if not self["recovery-path"]:
            raise usage.UsageError("--recovery-path: '' names no file; expected a path such as .data/recovery.json")

    def opt_version(self) -> None:
        """Print fooproxy's version and exit."""
        print(f"fooproxy {__version__}")
        raise SystemExit(0)

    def _check_address(self, name: str, endpoint: Callable[[Any, str], object], reactor: Any) -> None:
        try:
            endpoint(reactor, self[name])
        except ValueError as error:
            raise usage.UsageError(f"--{name}: {error}") from error

    def _max_connections(self) -> int | None:
        text = self["max-connections"]
        if text == "auto":
            return None
        # int() takes underscores, blanks and other scripts' digits as well.
        if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
            raise usage.UsageError(
                f"--max-connections: {text!r} is no number of sessions; expected one from 1 to 999999999, or auto"
            )
        return int(text)

    def _seconds(self, name: str) -> float:
        text = self[name]
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise usage.UsageError(f"--{name}: {text!r} is not a time; expected seconds, such as 10 or 2.5")
        if name in _NEVER_ZERO and not seconds:
            raise usage.UsageError(f"--{name}: {text!r} leaves {_NEVER_ZERO[name]}; expected seconds, such as 5 or 0.5")
        return seconds
