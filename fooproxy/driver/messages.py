"""The driver's own parser and writer for the Foo protocol: bytes in, requests out, no sockets and no clock.

A reply carries a digest of its request's data, so that a client can check what the server received.
The digest is computed while the data arrives: memory is bounded and time is linear, whatever the line's length.
Data is opaque bytes; one CR before the LF is part of the line ending, not of the data.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

CANNOT_DECODE = b"NAK 0 ERRDECODE\n"

_REQUEST = re.compile(rb"REQ[ \t]+([+-]?[0-9]+)(?:[ \t]+(.*))?")
_REQUEST_START = re.compile(rb"REQ[ \t]+([+-]?[0-9]+)[ \t]+(?=[^ \t])")

# Bytes.  A line up to this length is buffered whole; the rest of a longer one is only hashed.
# The data of a longer line must start within this length, or the line cannot be decoded.
_KEPT = 4096


class Request(NamedTuple):
    """One request: its seq as received, and the digest of its data."""

    seq: bytes
    digest: bytes


def digest(data: bytes) -> bytes:
    """Return the digest of `data`: 16 hexadecimal digits."""
    return _hexadecimal(_hash(data))


def request(seq: int, data: bytes) -> bytes:
    """Encode a request; `data` must contain no newline and not start with whitespace."""
    return b"REQ %d %s\n" % (seq, data) if data else b"REQ %d\n" % seq


def reply(kind: bytes, request: Request) -> bytes:
    """Encode the reply of `kind` (ACK or NAK) to `request`."""
    return b"%s %s %s\n" % (kind, request.seq, request.digest)


class RequestReader:
    """Turns a byte stream, split anywhere, into requests; `None` stands for a line that is not a request."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._long: _LongLine | None = None

    def feed(self, chunk: bytes) -> list[Request | None]:
        """Take the next bytes and return the requests that they complete."""
        *ends, rest = chunk.split(b"\n")
        requests = [self._finish(end) for end in ends]
        if rest:
            self._keep(rest)
        return requests

    def end(self) -> list[Request | None]:
        """End the stream and return its last line if that had no newline."""
        return [self._finish(b"")] if self._kept or self._long else []

    def _finish(self, end: bytes) -> Request | None:
        """Complete a line whose last bytes are `end`."""
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
    """A line too long to buffer, beginning with `line`: the start is parsed once, the rest is only hashed."""

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
        # Hold back a final CR: only the next bytes show whether it is part of the line ending.
        self._held = piece[-1:] if piece.endswith(b"\r") else b""
        self._hash.update(piece[:-1] if self._held else piece)

    def end(self) -> Request | None:
        return None if self._seq is None else Request(self._seq, _hexadecimal(self._hash))


def _parse(line: bytes) -> Request | None:
    if len(line) > _KEPT:
        # As if it had arrived in pieces, so that the result does not depend on how the stream was split.
        return _LongLine(line).end()
    match = _REQUEST.fullmatch(line.removesuffix(b"\r"))
    return Request(match[1], digest(match[2] or b"")) if match else None


def _hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=8)


def _hexadecimal(hashed: hashlib.blake2b) -> bytes:
    return hashed.hexdigest().encode("ascii")
