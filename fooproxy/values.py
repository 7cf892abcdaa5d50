"""Converts the text of an option to its value, or says what is wrong with the text and what would be right.

Each check raises a `ValueError` that quotes the text; `fooproxy.commandline` adds which option or variable it came
from.
"""

from __future__ import annotations

import math
import re
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.logger import LogLevel

from fooproxy.logs.formats import FORMATS
from fooproxy.net.addresses import client_endpoint, host_port, server_endpoint
from fooproxy.net.descriptions import check_listening, word
from fooproxy.relay.admission import network
from fooproxy.upstreams.balance import BALANCES
from fooproxy.upstreams.checks import KINDS as CHECKS
from fooproxy.upstreams.forward import Forward, read_forward
from fooproxy.web.hosts import read_host_name as host

__all__ = [
    "BALANCES",
    "CHECKS",
    "LEVELS",
    "LOG_FORMATS",
    "OFF",
    "POOLS",
    "balance",
    "check",
    "checks",
    "connections",
    "control",
    "host",
    "level",
    "listening",
    "listening_if_at_all",
    "log_format",
    "name_server",
    "network",
    "path",
    "pool",
    "positive_seconds",
    "seconds",
    "sessions",
    "switch",
    "upstream",
]

OFF = "off"
"""The value that stands for no ADDRESS, for options that allow it."""

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

LEVELS = ("debug", "info", "warn", "error")
LOG_FORMATS = tuple(FORMATS)
POOLS = ("off", "session", "burst")


def level(text: str) -> Any:
    """Parse the lowest level of log lines to show; return one of Twisted's levels."""
    if text not in LEVELS:
        raise ValueError(f"{text!r} is not a level; expected one of {', '.join(LEVELS)}")
    return LogLevel.levelWithName(text)


def log_format(text: str) -> str:
    """Check the name of a format of the log."""
    if text not in LOG_FORMATS:
        raise ValueError(f"{text!r} is not a format of the log; expected one of {', '.join(LOG_FORMATS)}")
    return text


def pool(text: str) -> str:
    """Check how connections to servers are reused."""
    if text not in POOLS:
        raise ValueError(f"{text!r} is not a kind of pool; expected one of {', '.join(POOLS)}")
    return text


def listening(text: str) -> str:
    """Check an ADDRESS to listen on, and return it unchanged."""
    # Imported here, because --reactor must have been processed first.
    from twisted.internet import reactor

    server_endpoint(reactor, text)
    return text


def listening_if_at_all(text: str) -> str:
    """Check an ADDRESS to listen on, or the word ``off``."""
    return text if text == OFF else listening(text)


def upstream(text: str) -> Forward:
    """Read a server to forward to, and check its ADDRESS."""
    from twisted.internet import reactor

    found = read_forward(text)
    if found.source is None:
        client_endpoint(reactor, found.address)
    return found


def name_server(text: str) -> tuple[str, int]:
    """Read the address of a name server: an IP address, with a port if it is not 53."""
    try:
        place = host_port(text)
    except ValueError:
        place = None
    host, port = (text, 53) if place is None else place
    if not (isIPAddress(host) or isIPv6Address(host)) or not port:
        raise ValueError(f"{text!r} is not an IP address; expected one such as 192.0.2.53, or 127.0.0.1:5353")
    return host, port


def balance(text: str) -> str:
    """Check the name of a way to choose among servers."""
    if text not in BALANCES:
        raise ValueError(f"{text!r} is not a way to choose a server; expected one of {', '.join(BALANCES)}")
    return text


def check(text: str) -> str:
    """Check the name of a kind of checks."""
    if text not in CHECKS:
        raise ValueError(f"{text!r} is not a kind of checks; expected one of {', '.join(CHECKS)}")
    return text


def checks(text: str) -> int:
    """Read a number of checks in a row, at least 1."""
    if not re.fullmatch("0*[1-9][0-9]{0,2}", text):
        raise ValueError(f"{text!r} is not a number of checks; expected 1 to 999")
    return int(text)


def seconds(text: str) -> float:
    """Read a time, which may be 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"{text!r} is not a time; expected a number of seconds, such as 10 or 2.5")
    return found


def positive_seconds(text: str) -> float:
    """Read a time of more than 0 seconds."""
    found = seconds(text)
    if not found:
        raise ValueError(f"{text!r} is too short; expected more than 0 seconds, such as 5 or 0.5")
    return found


def sessions(text: str) -> int | None:
    """Read a number of sessions; `None` for ``auto``."""
    if text == "auto":
        return None
    # int() takes underscores, blanks and other scripts' digits as well.
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise ValueError(f"{text!r} is not a number of sessions; expected 1 to 999999999, or auto")
    return int(text)


def connections(text: str) -> int:
    """Read a number of connections; 0 for any number."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{text!r} is not a number of connections; expected 0 to 999999999")
    return int(text)


def control(text: str) -> str:
    """Check the address of the control socket, which is ``unix:PATH`` and nothing else."""
    if word(text) != "unix" or set(check_listening(text, text)) != {"address"}:
        raise ValueError(
            f"{text!r} is not unix: and a path; expected an address such as unix:/run/fooproxy/control.sock, "
            "whose mode is always 600"
        )
    return text


def path(text: str) -> str:
    """Check the path of a file."""
    if not text or "\0" in text:
        raise ValueError(f"{text!r} does not name a file; expected a path such as .data/recovery.json")
    return text


def switch(text: str) -> bool:
    """Read whether a flag is on."""
    try:
        return _SWITCH[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither on nor off; expected one of {', '.join(_SWITCH)}") from None
