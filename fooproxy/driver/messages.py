"""The driver's own reading and writing of the Foo protocol: bytes in, requests out, no sockets and no clock.

A reply carries a digest of its request's data, so that a client can tell whether the server got what it sent.
The digest is taken while the data streams in: a line of any length costs the same small memory and linear time.
Data is opaque bytes; one CR before the LF belongs to the line's end and not to the data.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

CANNOT_DECODE = b"NAK 0 ERRDECODE\n"

_REQUEST = re.compile(rb"REQ[ \t]+([+-]?[0-9]+)(?:[ \t]+(.*))?")
_REQUEST_START = re.compile(rb"REQ[ \t]+([+-]?[0-9]+)[ \t]+(?=[^ \t])")

# A line is kept whole up to this length; what a longer one has beyond only passes through the digest.
# A longer line must come to its data within this length, or it cannot be decoded.
_KEPT = 4096


class Request(NamedTuple):
    """One request as a server knows it: its seq as it was written, and the digest of its data."""

    seq: bytes
    digest: bytes


def digest(data: bytes) -> bytes:
    """Digest `data` into 16 hexadecimal digits."""
    return _hexadecimal(_hash(data))


def request(seq: int, data: bytes) -> bytes:
    """Write a request; `data` must hold no newline and not start with whitespace."""
    return b"REQ %d %s\n" % (seq, data) if data else b"REQ %d\n" % seq


def reply(kind: bytes, request: Request) -> bytes:
    """Write the reply of `kind` (ACK or NAK) to `request`."""
    return b"%s %s %s\n" % (kind, request.seq, request.digest)


class RequestReader:
    """Turns a stream of bytes, cut anywhere, into requests; `None` stands for a line that is not one."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._long: _LongLine | None = None

    def feed(self, chunk: bytes) -> list[Request | None]:
        """Take the next bytes; give what the newlines among them complete."""
        *ends, rest = chunk.split(b"\n")
        requests = [self._finish(end) for end in ends]
        if rest:
            self._keep(rest)
        return requests

    def end(self) -> list[Request | None]:
        """Take the end of the stream; give the last line when no newline ended it."""
        return [self._finish(b"")] if self._kept or self._long else []

    def _finish(self, end: bytes) -> Request | None:
        """Complete a line of which `end` are the last bytes."""
        if self._long is not None:
            long, self._long = self._long, None
            long.feed(end)
            return long.end()
        if self._kept:
            end = bytes(self._kept + end)
            self._kept.clear()
        return _parse(end)

    def _keep(self, rest: bytes) -> None:
        if self._long is not None:
            self._long.feed(rest)
            return
        self._kept += rest
        if len(self._kept) > _KEPT:
            self._long = _LongLine(bytes(self._kept))
            self._kept.clear()


class _LongLine:
    """A line too long to keep, of which `line` came first: the start is parsed once, the rest of it only hashed."""

    def __init__(self, line: bytes) -> None:
        match = _REQUEST_START.match(line[:_KEPT])
        self._seq = match[1] if match else None
        self._hash = _hash()
        self._held = b""
        if match:
            self.feed(line[match.end() :])

    def feed(self, piece: bytes) -> None:
        if not piece or self._seq is None:
            return
        self._hash.update(self._held)
        # The last CR is held back: only the next bytes tell whether it belongs to the line's end.
        self._held = piece[-1:] if piece.endswith(b"\r") else b""
        self._hash.update(piece[:-1] if self._held else piece)

    def end(self) -> Request | None:
        return None if self._seq is None else Request(self._seq, _hexadecimal(self._hash))


def _parse(line: bytes) -> Request | None:
    if len(line) > _KEPT:
        # The same way as if it had come in pieces, so that the answer does not depend on the cuts.
        return _LongLine(line).end()
    match = _REQUEST.fullmatch(line.removesuffix(b"\r"))
    return Request(match[1], digest(match[2] or b"")) if match else None


def _hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=8)


def _hexadecimal(hashed: hashlib.blake2b) -> bytes:
    return hashed.hexdigest().encode("ascii")
