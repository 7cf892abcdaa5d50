"""The start of a session: from an accepted client to its upstream leg.

A load balancer must first send its PROXY header, and a client over TLS must finish its handshake.  While the upstream
leg is not connected, the client is not read; a check every `LOOK_INTERVAL` notices if it leaves.
`fooproxy.relay.session` states the rules of the whole session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet.protocol import ClientFactory

from fooproxy.net.failures import counted_as
from fooproxy.relay.leg import Leg

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from fooproxy.relay.leg import Owner

    class Opened(Owner, Interface):
        """What an opening needs from its session."""

        client: Leg
        upstream: Leg | None

        def because(self, reason: str) -> None:
            """Record why the session ends."""

        def close(self) -> None:
            """End the session."""

        def connect_failed(self, reason: str) -> None:
            """End the session, since there is no upstream leg."""

        def expect(self, timeout: float, then: Callable[[], None]) -> None:
            """Call `then` in `timeout` seconds, in place of any earlier deadline of the session."""


HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a client has for its PROXY header and its TLS handshake together."""

LOOK_INTERVAL = 1.0
"""Seconds between two checks whether a client that waits for its upstream leg is still there."""


class Opening:
    """Leads a `session` to its upstream leg, which `connect` connects; the leg itself then calls the session.

    The Deferred from `connect` may have an attribute `is_waiting`: whether the client waits in a queue.
    """

    __slots__ = ("_connect", "_connecting", "session")

    def __init__(self, session: Opened, connect: Callable[[UpstreamFactory], Deferred[Any]]) -> None:
        self.session = session
        self._connect = connect
        self._connecting: Deferred[Any] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the client waits in the queue for a server, and not for an attempt to connect."""
        return bool(getattr(self._connecting, "is_waiting", False))

    @property
    def is_connecting(self) -> bool:
        """Whether the client waits for its upstream leg."""
        return self._connecting is not None

    def begin(self) -> None:
        """Connect to the upstream, now or after the client's PROXY header and TLS handshake."""
        client = self.session.client
        if client.awaits_header or client.over_tls:
            self.session.expect(HANDSHAKE_TIMEOUT, self._is_late)
        else:
            self.connect()

    def connect(self) -> None:
        """Connect to the upstream; the client is held if that takes time."""
        session = self.session
        connecting = self._connect(UpstreamFactory(session))
        if session.upstream is None:
            session.client.hold()
            self._connecting = connecting
            session.expect(LOOK_INTERVAL, self._look_after_client)
            connecting.addErrback(self._failed)

    def cancel(self) -> None:
        """Give up connecting."""
        if self._connecting is not None:
            self._connecting.cancel()

    def _is_late(self) -> None:
        self.session.because("proxy_header" if self.session.client.awaits_header else "client_tls")
        self.session.close()

    def _look_after_client(self) -> None:
        how = self.session.client.departed
        if how is None:
            self.session.expect(LOOK_INTERVAL, self._look_after_client)
        else:
            self.session.because(f"client_{how}")
            self.session.close()

    def _failed(self, failure: Failure) -> None:
        self.session.connect_failed(counted_as(failure.value))


class UpstreamFactory(ClientFactory):
    """Builds the upstream leg of one session."""

    noisy = False

    def __init__(self, session: Owner) -> None:
        self.session = session

    def buildProtocol(self, addr: IAddress | None) -> Leg:  # type: ignore[override]
        """Build the upstream leg."""
        return Leg(self.session, "upstream")
