"""How a port accepts while file descriptors are exhausted, without a kernel; tests/relay/test_admission.py has more."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from twisted.internet.task import Clock

from fooproxy.net.accepting import CALM, RETRY, Acceptor

GONE = OSError(errno.ECONNABORTED, "gone")


def exhausted(number: int = errno.EMFILE) -> OSError:
    return OSError(number, os.strerror(number))


class Told(Acceptor):
    """Records what a user of an acceptor is told."""

    def __init__(self, port: Any, clock: Clock) -> None:
        super().__init__(port, clock)
        self.told: list[str] = []

    def paused(self, cause: str, why: str, is_news: bool) -> None:
        if is_news:
            self.told.append(f"{cause}: {why}")

    def recovered(self) -> None:
        self.told.append("over")


class Listener:
    """A port and its socket in one; `waiting` is what accepting meets."""

    def __init__(self, *waiting: OSError | str) -> None:
        self.waiting = list(waiting)
        self.reading = True
        self.closed = False
        self.clock = Clock()
        self.socket: Any = self
        self.acceptor = Told(self, self.clock)

    def accept(self) -> tuple[str, None]:
        client = self.waiting.pop(0)
        if isinstance(client, OSError):
            raise client
        return client, None

    def close(self) -> None:
        self.closed = True

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_the_port_is_not_read_until_the_next_try(number: int) -> None:
    listener = Listener(exhausted(number), exhausted(number), "client")
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            listener.socket.accept()
        assert not listener.reading and not listener.acceptor.is_open
        listener.clock.advance(RETRY)
        assert listener.reading
    assert listener.socket.accept() == ("client", None)


def test_exhaustion_is_told_once_until_it_has_been_over_for_a_while() -> None:
    listener = Listener(*(exhausted() for _ in range(11)))
    for _ in range(10):
        with pytest.raises(BlockingIOError):
            listener.socket.accept()
        listener.clock.advance(CALM / 2)
    assert listener.acceptor.told == [f"descriptors: {os.strerror(errno.EMFILE)}"]
    listener.clock.pump([RETRY] * 20)
    assert listener.acceptor.told[1:] == ["over"]
    assert not listener.clock.getDelayedCalls()
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    assert len(listener.acceptor.told) == 3


def test_other_errors_are_twisteds_business() -> None:
    listener = Listener(GONE)
    with pytest.raises(OSError, match="gone"):
        listener.socket.accept()
    assert listener.reading and not listener.acceptor.told


def test_closing_leaves_no_timer_behind() -> None:
    listener = Listener(exhausted())
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    listener.socket.close()
    assert listener.closed and not listener.clock.getDelayedCalls()
