"""Why a connection could not be made: a word for the statistics, and text for the operator.

This module knows the exceptions of the kernel, Twisted and OpenSSL, and nothing about the purpose of a connection.
Sessions and upstreams call it; `fooproxy.net.arrival` raises `HandshakeError`.
"""

from __future__ import annotations

import errno
from typing import Any

from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet import error
from twisted.python.failure import Failure

_TLS = (TLSError, VerificationError)

_KINDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (error.ConnectionRefusedError, "refused"),
    (error.DNSLookupError, "unresolved"),
    (error.TimeoutError, "timeout"),
)

_WORDS = {
    errno.EAGAIN: "its queue of new connections is full",
    errno.EADDRNOTAVAIL: "no free local port or address",
}
"""The meaning of some errors of connect whose system text is misleading."""

_HINTS = {
    "wrong version number": "does it speak TLS?",
    "packet length too long": "does it speak TLS?",
    "record layer failure": "does it speak TLS?",
    "certificate verify failed": "is its issuer in trustRoots, and is it still valid?",
}


class HandshakeError(error.ConnectError):
    """The connection was made, but its TLS handshake failed; `text` says why."""

    def __init__(self, text: str) -> None:
        super().__init__(string=text)

    def __str__(self) -> str:
        return f"TLS handshake failed: {self.args[0]}"


class HandshakeCancelled(error.ConnectingCancelledError):
    """The attempt was cancelled while it waited for the peer's part of the TLS handshake."""


class NotServed(Exception):
    """No connection was made, though no attempt failed; `reason` is the word by which the session is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_tls(reason: Any) -> bool:
    """Return whether an exception says that TLS failed, and not the connection below it."""
    return isinstance(reason, (*_TLS, HandshakeError))


def kind(reason: Any) -> str:
    """Return a word for an exception: ``refused``, ``unresolved``, ``timeout``, ``tls``, else ``unreachable``."""
    if is_tls(reason):
        return "tls"
    return next((word for classes, word in _KINDS if isinstance(reason, classes)), "unreachable")


def counted_as(reason: Any) -> str:
    """Return the reason by which a session that could not be connected is counted, such as ``upstream_refused``."""
    if isinstance(reason, NotServed):
        return reason.reason
    word = kind(reason)
    return "connect_timeout" if word == "timeout" else f"upstream_{word}"


def words(reason: Any) -> str:
    """Return the meaning of an exception as text, without line ends, tracebacks or tuples."""
    if isinstance(reason, VerificationError):
        return "its certificate is for another host name"
    if isinstance(reason, TLSError):
        return _tls_words(reason)
    if isinstance(reason, error.ConnectError) and reason.args and isinstance(reason.args[0], Failure):
        return words(reason.args[0].value)
    number: Any = getattr(reason, "osError", None) or getattr(reason, "errno", None)
    return _WORDS.get(number) or str(reason) or type(reason).__name__


def _tls_words(reason: Any) -> str:
    """Return the text of OpenSSL's last error; each error is a tuple whose last item is its text."""
    errors = reason.args[0] if reason.args else ()
    if not isinstance(errors, (list, tuple)) or not errors:
        return str(reason) or type(reason).__name__
    text = str(errors[-1][-1])
    hint = _HINTS.get(text)
    return f"{text} ({hint})" if hint else text
