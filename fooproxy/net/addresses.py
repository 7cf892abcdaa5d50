"""Turns an address as operators write it into a Twisted endpoint.

Short forms name TCP: ``8001``, ``:8001``, ``host:8001``, ``[::1]:8001``.  Everything else is parsed as one of
Twisted's endpoint descriptions (``unix:/run/foo.sock``, ``tls:foo.example:8001``, ``haproxy:tcp:8002``).
The proxy's options and the test driver's commands share this one grammar.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet import endpoints
from twisted.internet.abstract import isIPAddress, isIPv6Address

from fooproxy.net.arrival import ArrivalEndpoint, Noting
from fooproxy.net.descriptions import EXPECTED, WORDS, check_connecting, check_listening, in_words, word
from fooproxy.net.endpoints import Listener, ServerEndpoint, tcp_client, unix_client
from fooproxy.net.named import NamedEndpoint
from fooproxy.net.peers import shown as shown
from fooproxy.net.private import connect_by
from fooproxy.net.proxy_header import BelowTls, ProxyHeaderEndpoint
from fooproxy.net.trial import check_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import (
        IStreamClientEndpoint,
        IStreamServerEndpoint,
    )

    from fooproxy.net.poller import Poller
    from fooproxy.net.trail import Trail

_SHORT = re.compile(r"(?:(?:\[(?P<bracketed>[^][]+)\]|(?P<host>[^][:\s/=]*)):)?(?P<port>[0-9]+)")

_POLLED = frozenset({"tcp", "tcp4", "tcp6", "unix", "systemd"})
"""The descriptions of listeners whose connections may have our own transports."""

_PLAIN = re.compile(
    r"(?i:(?P<word>tcp|tls)):(?:host=)?(?P<host>(?:[^:=\\]|\\:)+):(?:port=)?(?P<port>[0-9]+)"
    r"(?::(?:certificate|privateKey|trustRoots)=(?:[^:\\]|\\.)*)*"
)
"""Descriptions of TCP and TLS connections without the arguments that only Twisted's endpoints support."""

_OF_TWISTED = re.compile(r":(timeout|lockfile)=")
"""Arguments for connecting to a unix socket that only Twisted's endpoint supports."""

# Twisted's default of 50 overflows when many clients connect at once; each dropped client waits a second, or is refused
# if it comes by a unix socket.
_BACKLOG = 4096

_BEFORE_BACKLOG = {"tcp": 2, "tcp4": 2, "tcp6": 1, "ssl": 5, "tls": 2, "unix": 2}
"""How many arguments without a name may come before the backlog, by the word that starts a description."""

_COLON = re.compile(r"(?<!\\):")
"""The separator of a description's arguments."""

_NAME = re.compile(r"\w+=")
"""The start of an argument that has a name."""


class HostPort(NamedTuple):
    """A TCP address; `host` is a name, an IP address without brackets, or ``""`` if omitted."""

    host: str
    port: int


def host_port(text: str) -> HostPort | None:
    """Parse a short form; `None` means that `text` is not one (it is an endpoint description, or invalid).

    :raises ValueError: `text` is a short form with an invalid port or IPv6 address.
    """
    match = _short(text)
    if match is None:
        return None
    port = int(match["port"])
    if port > 65535:
        raise ValueError(f"{text!r} names port {port}; expected a port up to 65535")
    if match["bracketed"] is not None and not isIPv6Address(match["bracketed"]):
        raise ValueError(f"{text!r} does not have an IPv6 address in its brackets; {EXPECTED}")
    return HostPort(match["bracketed"] or match["host"] or "", port)


def _short(text: str) -> re.Match[str] | None:
    match = _SHORT.fullmatch(text)
    return None if match is None or (match["host"] or "").lower() in WORDS else match


def server_endpoint(
    reactor: Any, text: str, interface: str = "", poller: Poller | None = None
) -> IStreamServerEndpoint:
    """Make an endpoint that listens at `text`, on `interface` if `text` names no host (``""``: all of IPv4).

    With a `poller`, connections have our own transports, which it polls, instead of Twisted's, below TLS too.

    :raises ValueError: `text` is not an address; the message says what is expected.
    """
    short = host_port(text)
    if short is None:
        listener = Listener(reactor, poller)
        if expects_proxy_header(text):
            balancers: IStreamServerEndpoint = _balancers(listener, text)
            return balancers
        endpoint: IStreamServerEndpoint = _listening(listener, text, text)
        return endpoint
    host = short.host or interface
    if poller is not None:
        return ServerEndpoint(poller, short.port, _BACKLOG, host)
    if isIPv6Address(host):
        return endpoints.TCP6ServerEndpoint(reactor, short.port, _BACKLOG, host)
    return endpoints.TCP4ServerEndpoint(reactor, short.port, _BACKLOG, host)


def client_endpoint(
    reactor: Any, text: str, poller: Poller | None = None, trail: Trail | None = None
) -> IStreamClientEndpoint:
    """Make an endpoint that connects to `text`, or to 127.0.0.1 if `text` names no host.

    With a `poller`, connections of the short forms, to unix sockets and below ``tls:`` have our own transports.
    Connections are noted in `trail`.

    :raises ValueError: `text` is not an address; the message says what is expected.
    """
    short = host_port(text)
    noting = reactor if trail is None else Noting(reactor, trail)
    if short is None:
        path = check_connecting(text, text).get("path")
        described: IStreamClientEndpoint = _described(endpoints.clientFromString, noting, text, text)
        if poller is not None and path is not None and connects_polled(text):
            return unix_client(poller, trail, path)
        plain = _PLAIN.fullmatch(text)
        if poller is not None and plain is not None:
            polled = _polled(reactor, poller, trail, plain["host"].replace("\\:", ":"), int(plain["port"]))
            if connects_polled(text):
                return polled
            described = connect_by(described, polled)
        return ArrivalEndpoint(described, trail)
    host, port = short.host or "127.0.0.1", short.port
    if port == 0:
        raise ValueError(f"{text!r} names port 0, which nothing can connect to; expected the server's port")
    if poller is not None:
        return _polled(reactor, poller, trail, host, port)
    if isIPAddress(host):
        return ArrivalEndpoint(endpoints.TCP4ClientEndpoint(noting, host, port))
    if isIPv6Address(host):
        return ArrivalEndpoint(endpoints.TCP6ClientEndpoint(noting, host, port))
    return ArrivalEndpoint(endpoints.HostnameEndpoint(noting, host, port))


def _polled(reactor: Any, poller: Poller, trail: Trail | None, host: str, port: int) -> IStreamClientEndpoint:
    to_address = partial(tcp_client, poller, trail, port)
    literal = isIPAddress(host) or isIPv6Address(host)
    return to_address(host) if literal else NamedEndpoint(reactor, host, to_address)


def tcp_place(text: str, *, listens: bool) -> HostPort | None:
    """Return the host and port of an address that uses TCP, also below TLS or a PROXY header; `None` for others.

    :raises ValueError: `text` is not an address.
    """
    short = host_port(text)
    if short is not None:
        return short
    if listens:
        if expects_proxy_header(text):
            text = text.partition(":")[2]
        arguments = check_listening(text, text)
        host = arguments.get("interface", "::" if word(text) in ("tcp6", "tls") else "")
    else:
        arguments = check_connecting(text, text)
        if "endpoint" in arguments:
            return tcp_place(arguments["endpoint"], listens=False)
        host = arguments.get("host", "")
    return HostPort(host, int(arguments["port"])) if "port" in arguments else None


def unix_path(text: str, *, listens: bool) -> str | None:
    """Return the path of an address that is a unix socket, also below a PROXY header; `None` for others.

    :raises ValueError: `text` is not an address.
    """
    if listens and expects_proxy_header(text):
        text = text.partition(":")[2]
    if word(text) != "unix":
        return None
    arguments = check_listening(text, text) if listens else check_connecting(text, text)
    return arguments["address" if listens else "path"]


def listens_polled(text: str) -> bool:
    """Whether the protocols of clients of this address have our own transports if there is a poller."""
    return host_port(text) is not None or word(text) in _POLLED


def connects_polled(text: str) -> bool:
    """Whether connections to this address have our own transports if there is a poller."""
    if word(text) == "tcp":
        return _PLAIN.fullmatch(text) is not None
    return host_port(text) is not None or (word(text) == "unix" and not _OF_TWISTED.search(text))


def expects_proxy_header(text: str) -> bool:
    """Whether connections to an address start with a PROXY header."""
    return word(text) == "haproxy" and ":" in text


def takes_passed_socket(text: str) -> bool:
    """Whether an address to listen on is a socket that was passed to this process."""
    return word(text.partition(":")[2] if expects_proxy_header(text) else text) == "systemd"


def _balancers(reactor: Any, text: str) -> Any:
    """Make the endpoint that load balancers connect to."""
    description = text.partition(":")[2]
    if ":" not in description or _short(description) or word(description) in ("haproxy", "tls"):
        raise ValueError(
            f"{text!r} is not an address; expected haproxy: and an endpoint description that starts with tcp:, ssl:, "
            "unix: or systemd:, such as haproxy:tcp:8002"
        )
    if word(description) == "ssl":
        return _listening(BelowTls(reactor), description, text)
    return ProxyHeaderEndpoint(_listening(reactor, description, text))


def _listening(reactor: Any, text: str, whole: str) -> Any:
    """Make an endpoint that listens at a description, a part of `whole` or all of it."""
    check_listening(text, whole)
    return _described(_server, reactor, text, whole)


def _server(reactor: Any, text: str) -> Any:
    """Let Twisted parse a description to listen at, with a backlog for many clients at once unless it names one."""
    before = _BEFORE_BACKLOG.get(word(text), 0)
    arguments = _COLON.split(text)[1:]
    unnamed = sum(not _NAME.match(argument) for argument in arguments)
    is_named = any(argument.startswith("backlog=") for argument in arguments)
    suffix = "" if not before or is_named or unnamed > before else f":backlog={_BACKLOG}"
    return endpoints.serverFromString(reactor, text + suffix)


def _described(from_string: Callable[[Any, str], Any], reactor: Any, text: str, whole: str) -> Any:
    """Let Twisted parse a description, a part of `whole`; turn its many kinds of exceptions into `ValueError`."""
    try:
        # For a listener, Twisted wants its keywords in lower case.
        text = word(text) + text[len(word(text)) :]
        endpoint = from_string(reactor, text)
    except Exception as error:
        raise ValueError(in_words(error, text, whole)) from error
    if word(text) == "ssl":
        check_context(from_string, text, whole)
    return endpoint
