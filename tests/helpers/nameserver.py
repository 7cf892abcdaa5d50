"""A name server on loopback, over UDP and TCP, with answers that a test sets; it uses threads and blocking sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Any

from twisted.names import dns

from tests.helpers.fooserver import PATIENCE

CODES = {"SERVFAIL": dns.ESERVER, "NXDOMAIN": dns.ENAME, "REFUSED": dns.EREFUSED}


class NameServer:
    """Answers from `records`: for each name, the result of `host`, `service` or `alias`, or a word.

    The words: a code from `CODES`; ``silent`` for no answer at all; ``empty``; ``noise`` for bytes that are not a
    message; ``other`` for an answer to another question; ``number`` for an answer with another ID; ``query`` for the
    question itself; ``mute`` for a truncated answer over UDP, and none over TCP.  Names without a record do not exist.
    """

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self.truncates = False
        """Whether answers over UDP are truncated."""
        self.asked: list[tuple[str, str]] = []
        """The names that were asked for, each with its transport, in order."""
        self._streams = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._streams.getsockname()[1]
        self._datagrams = socket.socket(type=socket.SOCK_DGRAM)
        self._datagrams.bind(("127.0.0.1", self.port))
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._by_udp, self._by_tcp)]

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> NameServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._streams.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join(PATIENCE)
        self._streams.close()
        self._datagrams.close()

    def host(self, name: str, *addresses: str, ttl: int = 1) -> None:
        """Give a name these addresses."""
        self.records[name] = [
            (name, dns.Record_AAAA(address, ttl) if ":" in address else dns.Record_A(address, ttl), ttl)
            for address in addresses
        ]

    def service(self, name: str, *targets: tuple[int, int, int, str], ttl: int = 1) -> None:
        """Give a service these targets: priority, weight, port, host."""
        self.records[name] = [(name, dns.Record_SRV(*target, ttl), ttl) for target in targets]

    def alias(self, name: str, of: str, ttl: int = 1) -> None:
        """Make a name an alias; the answer has what the other one has."""
        self.records[name] = [(name, dns.Record_CNAME(of, ttl), ttl), *self.records.get(of, [])]

    def _by_udp(self) -> None:
        while True:
            query, peer = self._datagrams.recvfrom(1 << 16)
            if not query:
                return
            answer = self._answer(query, "udp")
            if answer is not None:
                self._datagrams.sendto(answer, peer)

    def _by_tcp(self) -> None:
        while True:
            try:
                peer, _ = self._streams.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError), peer.makefile("rb") as stream:
                peer.settimeout(PATIENCE)
                (size,) = struct.unpack("!H", stream.read(2))
                answer = self._answer(stream.read(size), "tcp")
                if answer is not None:
                    peer.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, query: bytes, by: str) -> bytes | None:
        message = dns.Message()
        message.fromStr(query)
        (question,) = message.queries
        name = question.name.name.decode()
        self.asked.append((name, by))
        found = self.records.get(name.lower(), "NXDOMAIN")
        if found == "silent":
            return None
        if found == "noise":
            return query[:2] + b"\xff" * 40
        message.answer = 0 if found == "query" else 1
        if found == "mute" and by == "tcp":
            return None
        if found == "mute":
            message.trunc = 1
        if found == "number":
            message.id ^= 1
        if found == "other":
            message.queries = [dns.Query(b"other.example", question.type, dns.IN)]
            found = [("other.example", dns.Record_A("192.0.2.99"), 1)]
        if isinstance(found, str):
            message.rCode = CODES.get(found, dns.OK)
            return bytes(message.toStr())
        if by == "udp" and self.truncates:
            message.trunc = 1
            return bytes(message.toStr())
        message.answers = [
            dns.RRHeader(owner, record.TYPE, dns.IN, ttl, record)
            for owner, record, ttl in found
            if record.TYPE in (question.type, dns.CNAME)
        ]
        return bytes(message.toStr())
