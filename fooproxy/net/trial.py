"""A trial of a TLS description: makes the TLS context that the endpoint will need, before there is any connection.

Twisted makes the context of ``ssl:`` when it is first needed.  A key that OpenSSL rejects, for example because it is
too small, would then cause an exception for each connection, and sessions that never end.

`fooproxy.net.addresses` calls this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Factory

from fooproxy.net.failures import words

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure


def check_context(from_string: Callable[[Any, str], Any], text: str, whole: str) -> None:
    """Check that OpenSSL accepts the files in a description, a part of `whole`; `from_string` makes the endpoint.

    :raises ValueError: OpenSSL rejects them; the message says why.
    """
    endpoint = from_string(_Trial(), text)
    failures: list[Failure] = []
    tried = endpoint.listen(Factory()) if hasattr(endpoint, "listen") else endpoint.connect(Factory())
    tried.addErrback(failures.append)
    if failures:
        raise ValueError(
            f"{whole!r} cannot be used for TLS ({words(failures[0].value)}); "
            "expected keys, certificates and parameters that OpenSSL accepts"
        )


class _Trial:
    """Takes the place of the reactor, so that an endpoint makes its TLS context without listening or connecting."""

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, *_: Any, **__: Any) -> None:
        """Make the context for clients."""
        _make_context(contextFactory)

    def connectSSL(self, host: str, port: int, factory: Any, contextFactory: Any, *_: Any, **__: Any) -> None:
        """Make the context for a server."""
        _make_context(contextFactory)


def _make_context(factory: Any) -> None:
    # Contexts that check host names have been made already.
    if hasattr(factory, "getContext"):
        factory.getContext()
