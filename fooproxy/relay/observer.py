"""The observer of a session: what the relay needs from whoever understands its traffic, which the relay does not.

It counts what passes, and answers the questions on which the end of a session depends.  The statistics of a session
are one, by `fooproxy.stats.session`; the relay knows nothing else about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.net.pump import Tap


class Observer(Protocol):
    """Understands the traffic, which the session does not: answers questions about it and records what happens."""

    @property
    def client(self) -> Tap:
        """What is shown each chunk that the client leg receives."""

    @property
    def upstream(self) -> Tap:
        """What is shown each chunk that the upstream leg receives."""

    @property
    def settled(self) -> bool:
        """Whether the client is waiting for nothing and no message is incomplete."""

    @property
    def idle(self) -> float:
        """Seconds since a chunk was received from either leg."""

    @property
    def waited(self) -> float:
        """Seconds that the oldest request has waited for a reply from the server; 0 if none has."""

    @property
    def between_requests(self) -> bool:
        """Whether what the client has sent so far ends with a complete request; its FIN completes the last one."""

    def pair(self) -> None:
        """Compare which requests the replies say they answer with those that there are, from now on."""

    @property
    def is_paired(self) -> bool:
        """Whether the replies are those to the requests, as far as they say; asked once there is one for each."""

    @property
    def is_regular(self) -> bool:
        """Whether both peers have said nothing but what can be asked and answered: each line has one reply."""

    @property
    def passed(self) -> int:
        """Bytes received from both legs."""

    def when_settled(self, then: Callable[[], None] | None) -> None:
        """Call `then` whenever the session has become settled, after the batch of events that did it; or cease to."""

    def released(self) -> None:
        """Record that the session has no connection to a server for now."""

    def needs_link(self) -> None:
        """Record that the client has said something, and needs a pooled connection."""

    def got_link(self) -> None:
        """Record that the client has got one."""

    def forwarded(self) -> None:
        """Record that the server gets what the client has sent so far only now."""

    def abandoned(self) -> None:
        """Record that the client is gone, and that further replies are read and dropped."""

    def stop_after(self, chunk: bytes) -> int:
        """Return how much of `chunk`, the client's last, completes requests; if there is any, forget the rest."""

    def accepted(self, address: str) -> None:
        """Record that the client at `address` was accepted; again if a PROXY header names another address."""

    def finished(self) -> None:
        """Record that the client will send nothing more."""

    def paused(self, leg: str) -> None:
        """Record that `leg`, ``client`` or ``upstream``, is not read for now because the other leg cannot write."""

    def resumed(self, leg: str) -> None:
        """Record that a paused leg is read again."""

    def ignored(self, leg: str) -> None:
        """Record that what `leg`, ``client`` or ``upstream``, receives is dropped from now on, not relayed."""

    def ended(self, reason: str) -> None:
        """Record that both legs are gone, and why."""
