"""The behaviours of the soak's clients, each with a connection of its own; `benchmarks.churn` runs them.

Faults that may lose lines use only lines that are not messages; `benchmarks.churn` says why.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.tally import reply_to, reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.tally import Tally

TIMEOUT = 30.0
"""Seconds after which a waiting client gives up."""


class Client:
    """A client's connection, whose lines are counted."""

    def __init__(self, port: int, tally: Tally) -> None:
        tally.add("connections")
        self.tally = tally
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._begun = b""

    def send(self, *lines: bytes) -> None:
        """Send whole lines."""
        self.tally.lines("sent", lines)
        self.socket.sendall(b"".join(line + b"\n" for line in lines))

    def read(self, count: int) -> list[bytes]:
        """Read so many replies."""
        replies: list[bytes] = []
        while len(replies) < count:
            chunk = self.socket.recv(1 << 18)
            if not chunk:
                raise ConnectionError(f"closed after {len(replies)} of {count} replies")
            *lines, self._begun = (self._begun + chunk).split(b"\n")
            replies += lines
        self.tally.lines("received", replies)
        return replies

    def ask(self, *lines: bytes) -> None:
        """Send lines, and read and check their replies."""
        self.send(*lines)
        self.check(lines)

    def check(self, lines: Iterable[bytes]) -> None:
        """Read the replies to lines, and check them."""
        due = [reply_to(line) for line in lines]
        if self.read(len(due)) != due:
            raise ConnectionError("wrong replies")

    def expect_end(self) -> None:
        """Read a FIN, or a reset, and nothing before it."""
        with suppress(ConnectionResetError):
            if self.socket.recv(1):
                raise ConnectionError("an unsolicited reply")


def requests(count: int, size: int = 20) -> list[bytes]:
    """Make requests, some of which the server is to reject."""
    return [b"REQ %d %s" % (seq, b"x" * size if seq % 7 else b"x y") for seq in range(1, count + 1)]


def _one_by_one(client: Client) -> None:
    for line in requests(20):
        client.ask(line)


def _pipelined(client: Client) -> None:
    client.ask(*requests(300))


def _long_line(client: Client) -> None:
    client.ask(b"REQ 1 " + b"x" * random.randrange(1 << 20))


def _noise(client: Client) -> None:
    client.ask(*(random.randbytes(40).replace(b"\n", b"").replace(b"REQ", b"") for _ in range(50)))


def _idles(client: Client) -> None:
    client.ask(*requests(1))
    time.sleep(random.uniform(0, 3))
    client.ask(*requests(2))


def _leaves_at_once(client: Client) -> None:
    """Close without sending anything."""


def _half_closes(client: Client) -> None:
    lines = requests(100)
    client.send(*lines)
    client.socket.shutdown(socket.SHUT_WR)
    client.check(lines)
    client.expect_end()


def _stops_reading(client: Client) -> None:
    lines = requests(4000, 500)
    sender = threading.Thread(target=client.send, args=lines)
    sender.start()
    time.sleep(random.uniform(0.2, 1.5))
    client.check(lines)
    sender.join()


def _is_slow(client: Client) -> None:
    line = b"REQ 1 slow"
    for byte in line:
        client.socket.sendall(bytes([byte]))
        time.sleep(random.uniform(0, 0.2))
    client.tally.lines("sent", [line])
    client.socket.sendall(b"\n")
    client.check([line])


def _leaves_mid_message(client: Client) -> None:
    client.ask(*requests(3))
    client.socket.sendall(b"RE")


def _resets(client: Client) -> None:
    client.ask(*requests(5))
    reset(client.socket)


def _resets_in_flight(client: Client) -> None:
    client.ask(*requests(5))
    client.send(*[b"nothing that counts as a message"] * 200)
    reset(client.socket)


def _is_reset(client: Client) -> None:
    client.ask(*requests(5))
    client.send(b"please reset")
    client.expect_end()


def _is_closed(client: Client) -> None:
    client.ask(*requests(5))
    client.send(b"please close")
    client.expect_end()


BEHAVIOURS: dict[Callable[[Client], None], int] = {
    _one_by_one: 6,
    _pipelined: 6,
    _long_line: 2,
    _noise: 2,
    _idles: 4,
    _leaves_at_once: 2,
    _half_closes: 2,
    _stops_reading: 1,
    _is_slow: 2,
    _leaves_mid_message: 2,
    _resets: 2,
    _resets_in_flight: 2,
    _is_reset: 2,
    _is_closed: 2,
}
"""The behaviours, each with its relative frequency."""
