"""Counts the traffic on either side of the soak, and knows the reply to each line; shares no code with fooproxy."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINE = re.compile(rb"(REQ|ACK|NAK)[ \t]+[-+]?[0-9]+(?:[ \t].*|\r?)", re.DOTALL)
_REQUEST = re.compile(rb"REQ ([0-9]+)(?: (.*))?", re.DOTALL)


class Tally:
    """Counts of both directions: ``sent_req``, ``received_ack`` and so on, and of ``connections`` and behaviours."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Add to one count."""
        with self._lock:
            self.counts[name] += count

    def lines(self, direction: str, lines: Iterable[bytes]) -> None:
        """Count whole lines, without their ends, by a plain reading of the grammar."""
        matches = map(_LINE.fullmatch, lines)
        types = Counter(match[1].decode().lower() if match else "invalid" for match in matches)
        with self._lock:
            for kind, count in types.items():
                self.counts[f"{direction}_{kind}"] += count

    def failed(self, what: str) -> None:
        """Remember a failure, unless there are too many already."""
        with self._lock:
            self.counts["errors"] += 1
            if len(self.errors) < 10:
                self.errors.append(what)

    def told(self) -> str:
        """Return all of it as one line of JSON."""
        return json.dumps({"counts": self.counts, "errors": self.errors})


def reply_to(line: bytes) -> bytes:
    """Return the reply to a line, both without their newlines."""
    request = _REQUEST.fullmatch(line)
    if request is None:
        return b"NAK 0 ERRDECODE"
    seq, data = request[1], request[2] or b""
    return b"%s %s %s" % (b"NAK" if b" " in data else b"ACK", seq, data)


def reset(peer: socket.socket) -> None:
    """Close with a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
