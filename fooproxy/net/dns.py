"""Asks name servers for records: by UDP, by TCP if an answer was truncated, one server after the other.

The system's own look-ups (`fooproxy.net.resolver`) return neither TTLs nor SRV records.  The client in `twisted.names`
ignores the search list, and logs each port that it opens; here only its message classes are used.  An answer counts if
it comes from the server that was asked, with the same ID and the same question.  ``/etc/hosts`` is not read.
`fooproxy.upstreams.discovery` calls this module.
"""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, connectionDone
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

RESOLV_CONF = Path("/etc/resolv.conf")

_TIMES = (1.0, 2.0)
"""Seconds that each server has for its answer, in each round."""

_DATAGRAM = socket.SOCK_DGRAM | getattr(socket, "SOCK_NONBLOCK", 0)
_LARGEST = 1 << 16

_MOST_SERVERS = 3
"""Maximum number of servers to ask, as in the system's own look-ups."""

_LONGEST, _LONGEST_LABEL = 253, 63
"""Maximum characters of a name, and of one label."""

_CHAIN = 8
"""Maximum number of look-ups for one name, as aliases (CNAME) are followed."""

_CODES = {
    dns.EFORMAT: "FORMERR",
    dns.ESERVER: "SERVFAIL",
    dns.ENAME: "NXDOMAIN",
    dns.ENOTIMP: "NOTIMP",
    dns.EREFUSED: "REFUSED",
}


class LookupFailed(Exception):
    """No name server gave a usable answer; the text says why."""


class NoSuchName(LookupFailed):
    """The name does not exist, or is not a valid name."""


@dataclass(frozen=True)
class Answer:
    """The records of the type asked for, perhaps none, and their TTL in seconds."""

    records: Sequence[Any] = ()
    ttl: float = 0.0


@dataclass(frozen=True)
class Settings:
    """The name servers to ask, and how to complete short names."""

    servers: Sequence[tuple[str, int]] = (("127.0.0.1", dns.PORT),)
    search: Sequence[str] = ()
    dots: int = 1
    """A name with fewer dots is completed before it is tried as it is."""

    def candidates(self, name: str) -> list[str]:
        """Return the names to try for `name`, which is complete if it ends with a dot."""
        if name.endswith("."):
            return [name[:-1]]
        completed = [f"{name}.{domain}" for domain in self.search]
        return [name, *completed] if name.count(".") >= self.dots else [*completed, name]


def read_settings(lines: Iterable[str]) -> Settings:
    """Read the lines of a ``resolv.conf``."""
    servers: list[tuple[str, int]] = []
    search: list[str] = []
    dots = 1
    for line in lines:
        word, *rest = line.split() or [""]
        if word == "nameserver" and rest:
            servers.append((rest[0], dns.PORT))
        elif word in ("search", "domain"):
            search = [domain.strip(".") for domain in rest if domain != "."]
        elif word == "options":
            found = [option[6:] for option in rest if option.startswith("ndots:")]
            dots = next((int(text) for text in found if text.isdecimal()), dots)
    return Settings(servers[:_MOST_SERVERS] or Settings.servers, search, dots)


@dataclass
class NameServers:
    """The name servers of this machine, or `servers` if it names any."""

    reactor: Any
    servers: Sequence[tuple[str, int]] = ()
    path: Path = RESOLV_CONF
    times: Sequence[float] = _TIMES
    _settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        """Read the file once, since a later change of root may put it out of reach."""
        self.settings()

    def settings(self) -> Settings:
        """Return the current settings; if the file cannot be read, the previous ones."""
        with suppress(OSError):
            self._settings = read_settings(self.path.read_text("utf-8", "replace").splitlines())
        found = self._settings
        return Settings(self.servers, found.search, found.dots) if self.servers else found

    async def look_up(self, name: str, kind: int) -> Answer:
        """Return the records of type `kind` for the first completion of `name` that has any.

        :raises LookupFailed: there was no answer, or the name does not exist (`NoSuchName`).
        """
        settings = self.settings()
        answer: Answer | None = None
        for candidate in settings.candidates(name):
            try:
                found = await self._follow(candidate, kind, settings.servers)
            except NoSuchName:
                continue
            if found.records:
                return found
            answer = answer or found
        if answer is None:
            raise NoSuchName("NXDOMAIN: there is no such name")
        return answer

    async def _follow(self, name: str, kind: int, servers: Sequence[tuple[str, int]]) -> Answer:
        """Return the records of a name, following aliases (CNAME)."""
        ttl = inf
        for _ in range(_CHAIN):
            end, records, seconds = _found(await self._ask(name, kind, servers), name, kind)
            ttl = min(ttl, seconds)
            if records or end.lower() == name.lower():
                return Answer(records, ttl)
            name = end
        raise LookupFailed("too many aliases (CNAME) in a row")

    async def _ask(self, name: str, kind: int, servers: Sequence[tuple[str, int]]) -> Any:
        """Return the first answer from any of `servers`; skip servers that cannot answer."""
        if len(name) > _LONGEST or not all(0 < len(label) <= _LONGEST_LABEL for label in name.split(".")):
            raise NoSuchName("the name or a part of it is too long, or a part is empty")
        query = dns.Query(name.encode(), kind, dns.IN)
        why = ""
        for seconds in self.times:
            for server in servers:
                try:
                    message = await self._ask_one(server, query, seconds)
                except LookupFailed as error:
                    why = f"{server[0]}: {error}"
                    continue
                if message.rCode == dns.OK:
                    return message
                word = _CODES.get(message.rCode, f"error {message.rCode}")
                if message.rCode == dns.ENAME:
                    raise NoSuchName(f"{word} from {server[0]}")
                why = f"{word} from {server[0]}"
        raise LookupFailed(why or "no name server is configured")

    async def _ask_one(self, server: tuple[str, int], query: dns.Query, seconds: float) -> Any:
        try:
            message = await _Datagrams(self.reactor, server, query, seconds).answer
            if message.trunc:
                message = await self._ask_by_tcp(server, query, seconds)
        except OSError as error:
            raise LookupFailed(error.strerror or str(error)) from None
        return message

    async def _ask_by_tcp(self, server: tuple[str, int], query: dns.Query, seconds: float) -> Any:
        stream = _Stream(self.reactor, query, seconds)
        endpoint = TCP6ClientEndpoint if isIPv6Address(server[0]) else TCP4ClientEndpoint
        factory = Factory.forProtocol(lambda: stream)
        factory.noisy = False
        try:
            await endpoint(self.reactor, *server, timeout=seconds).connect(factory)
        except Exception as error:
            stream.end()
            raise LookupFailed(f"TCP: {error}") from None
        return await stream.answer


class _Question:
    """A query that waits for its `answer`."""

    def __init__(self, reactor: Any, query: dns.Query, seconds: float) -> None:
        self.answer: Deferred[Any] = Deferred(lambda _: self.end())
        self.message = dns.Message(secrets.randbelow(1 << 16), recDes=1)
        self.message.queries = [query]
        self._query = query
        self._timer: IDelayedCall | None = reactor.callLater(seconds, self.fail, f"no answer within {seconds:g} s")

    def take(self, data: bytes) -> None:
        """Accept a message, if it answers the query."""
        message = dns.Message()
        try:
            message.fromStr(data)
        except Exception:
            # The real answer may still follow this noise; the timer limits the wait.
            return
        asked = [(_text(each.name).lower(), each.type) for each in message.queries]
        is_ours = message.id == self.message.id and message.answer
        if is_ours and asked == [(_text(self._query.name).lower(), self._query.type)]:
            self._over(message)

    def fail(self, why: str) -> None:
        """Give up: fail `answer` with `LookupFailed`."""
        self._over(LookupFailed(why))

    def _over(self, outcome: Any) -> None:
        self.end()
        if not self.answer.called:
            (self.answer.errback if isinstance(outcome, Exception) else self.answer.callback)(outcome)

    def end(self) -> None:
        """Cancel the timer, and close the socket or connection."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self.close()

    def close(self) -> None:
        """Close the socket or connection."""
        raise NotImplementedError


@implementer(IReadDescriptor)
class _Datagrams(_Question):
    """A query by UDP, on a socket of its own, since Twisted logs a line for each port that it opens or closes."""

    def __init__(self, reactor: Any, server: tuple[str, int], query: dns.Query, seconds: float) -> None:
        self._reactor = reactor
        self._socket: socket.socket | None = None
        super().__init__(reactor, query, seconds)
        try:
            self._socket = socket.socket(socket.AF_INET6 if isIPv6Address(server[0]) else socket.AF_INET, _DATAGRAM)
            # A connected socket, so that the kernel drops datagrams from others.
            self._socket.connect(server)
            self._socket.send(self.message.toStr())
        except OSError as error:
            self.fail(error.strerror or str(error))
        else:
            reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor."""
        return -1 if self._socket is None else self._socket.fileno()

    def doRead(self) -> None:
        """Read the answer, or fail with the socket's error."""
        assert self._socket is not None
        try:
            datagram = self._socket.recv(_LARGEST)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.fail("no name server listens there")
        else:
            self.take(datagram)

    def connectionLost(self, reason: Failure) -> None:
        """Give up, since the reactor reports an error or stops."""
        self.fail("no name server listens there")

    def logPrefix(self) -> str:
        """Return the prefix of log lines about it."""
        return "dns"

    def close(self) -> None:
        """Close the socket."""
        skt, self._socket = self._socket, None
        if skt is not None:
            self._reactor.removeReader(self)
            skt.close()


class _Stream(_Question, Int16StringReceiver):
    """A query by TCP."""

    transport: Any

    def connectionMade(self) -> None:
        """Send the query."""
        self.sendString(self.message.toStr())

    def stringReceived(self, string: bytes) -> None:
        """Accept the server's message, if it answers the query."""
        self.take(string)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Give up, if there was no answer."""
        self.fail("the server closed the connection")

    def close(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.loseConnection()


def _found(message: dns.Message, name: str, kind: int) -> tuple[str, list[Any], float]:
    """Return the name at the end of the aliases in an answer, its records, and the shortest TTL of all in seconds."""
    ttl = inf
    for _ in range(len(message.answers) + 1):
        records = {each.payload: each.ttl for each in message.answers if _is(each, name.lower(), kind)}
        if records:
            return name, list(records), min(ttl, *records.values())
        alias: Any = next((each for each in message.answers if _is(each, name.lower(), dns.CNAME)), None)
        if alias is None:
            break
        name, ttl = _text(alias.payload.name), min(ttl, alias.ttl)
    return name, [], ttl


def _is(record: Any, name: str, kind: int) -> bool:
    """Return whether a record has the type `kind` and the name `name`, which is in lower case."""
    same = record.type == kind and record.cls == dns.IN
    return same and record.payload is not None and _text(record.name).lower() == name


def _text(name: dns.Name) -> str:
    return name.name.decode("ascii", "replace").rstrip(".")


def address_of(record: Any) -> str:
    """Return the address that an A or AAAA record has, as text."""
    if isinstance(record, dns.Record_A):
        return str(record.dottedQuad())
    return socket.inet_ntop(socket.AF_INET6, record.address)


def target_of(record: Any) -> str:
    """Return the host that an SRV record names; empty if the service is not available."""
    return _text(record.target)
