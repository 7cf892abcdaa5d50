"""The observer of a session: understands its traffic; the relay does not.

An observer counts what passes, and answers the questions on which the end of a session depends.
`fooproxy.stats.session` implements it; the relay knows nothing else about the statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.net.pump import Tap


class Observer(Protocol):
    """Answers a session's questions about its traffic, and records what happens."""

    @property
    def client(self) -> Tap:
        """The tap that sees each chunk that the client leg receives."""

    @property
    def upstream(self) -> Tap:
        """The tap that sees each chunk that the upstream leg receives."""

    @property
    def settled(self) -> bool:
        """Whether the client is waiting for nothing and no message is incomplete."""

    @property
    def idle(self) -> float:
        """Seconds since a chunk was received from either leg."""

    @property
    def waited(self) -> float:
        """Seconds that the oldest open request has waited for the server; 0 without one."""

    @property
    def between_requests(self) -> bool:
        """Whether the client's data so far ends with a complete request; its FIN completes an unfinished one."""

    def pair(self) -> None:
        """Compare the seqs of the replies with those of the requests from now on."""

    @property
    def is_paired(self) -> bool:
        """Whether the replies had the seqs of the requests; valid once every request has a reply."""

    @property
    def is_regular(self) -> bool:
        """Whether the client has sent only requests, and the server only one reply for each."""

    @property
    def passed(self) -> int:
        """Bytes received from both legs."""

    def when_settled(self, then: Callable[[], None] | None) -> None:
        """Call `then` after each batch of events in which the session has become settled; `None` ends this."""

    def released(self) -> None:
        """Record that the session has no connection to a server for now."""

    def needs_link(self) -> None:
        """Record that the client has sent something, and needs a pooled connection."""

    def got_link(self) -> None:
        """Record that the client has got a pooled connection."""

    def forwarded(self) -> None:
        """Record that the server gets the client's data so far only now."""

    def abandoned(self) -> None:
        """Record that the client is gone, and that further replies are read and dropped."""

    def stop_after(self, chunk: bytes) -> int:
        """Return how many bytes of `chunk`, the client's last, complete requests; if any, do not count the rest."""

    def accepted(self, address: str) -> None:
        """Record that the client at `address` was accepted; again if a PROXY header names another address."""

    def finished(self) -> None:
        """Record that the client will send nothing more."""

    def paused(self, leg: str) -> None:
        """Record that `leg`, ``client`` or ``upstream``, is not read for now because the other leg cannot write."""

    def resumed(self, leg: str) -> None:
        """Record that a paused leg is read again."""

    def ignored(self, leg: str) -> None:
        """Record that data received by `leg`, ``client`` or ``upstream``, is dropped from now on, not relayed."""

    def ended(self, reason: str) -> None:
        """Record that both legs are gone, and why."""
