"""Slots: limit the connections of a server at once, including those that are being made.

A slot is taken when an attempt begins, and free again when the attempt has failed or its connection is gone, whichever
is known first, and only once.  `fooproxy.upstreams.servers` knows whether requests wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from fooproxy.upstreams.marking import Marking

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
    from twisted.python.failure import Failure

    class Watched(Interface):
        """A protocol that reports the end of its connection."""

        when_lost: Callable[[], object]
        """Called at the end of `connectionLost`."""


class Slots:
    """The slots of a server, `limit` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.when_free: Callable[[], object] = lambda: None
        """Called when a slot has become free."""

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return self.taken < self.limit

    def connect(self, endpoint: IStreamClientEndpoint, factory: IProtocolFactory) -> Deferred[Any]:
        """Attempt to connect `factory`, whose protocols are `Watched`; the attempt and its connection hold a slot."""
        slot = _Slot(self)
        attempt: Deferred[Any] = endpoint.connect(Marking(factory, when_lost=slot.release))
        return attempt.addErrback(slot.failed)


class _Slot:
    """A slot that is taken."""

    __slots__ = ("_slots",)

    def __init__(self, slots: Slots) -> None:
        slots.taken += 1
        self._slots: Slots | None = slots

    def release(self) -> None:
        """Free the slot, unless it is free already."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.taken -= 1
            slots.when_free()

    def failed(self, failure: Failure) -> Failure:
        """Free the slot, since there is no connection."""
        self.release()
        return failure
