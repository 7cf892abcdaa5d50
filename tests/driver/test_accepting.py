"""How the server accepts while it is out of file descriptors, without a kernel."""

from __future__ import annotations

import errno
import os

import pytest
from twisted.internet.task import Clock

from fooproxy.driver.accepting import QUIET, RETRY, Acceptor

GONE = OSError(errno.ECONNABORTED, "gone")


def exhausted(number: int = errno.EMFILE) -> OSError:
    return OSError(number, os.strerror(number))


class Listener:
    """A port and its socket in one; `waiting` is what accepting meets."""

    def __init__(self, *waiting: OSError | str) -> None:
        self.waiting = list(waiting)
        self.reading = True
        self.closed = False
        self.told: list[OSError] = []
        self.clock = Clock()
        self.socket = self
        Acceptor(self, self.clock, self.told.append)

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
        assert not listener.reading
        listener.clock.advance(RETRY)
        assert listener.reading
    assert listener.socket.accept() == ("client", None)


def test_exhaustion_is_reported_once_until_it_has_been_over_for_a_while() -> None:
    listener = Listener(*(exhausted() for _ in range(11)))
    for _ in range(10):
        with pytest.raises(BlockingIOError):
            listener.socket.accept()
        listener.clock.advance(QUIET / 2)
    assert len(listener.told) == 1
    listener.clock.advance(QUIET / 2)
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    assert len(listener.told) == 2


def test_other_errors_are_twisteds_business() -> None:
    listener = Listener(GONE)
    with pytest.raises(OSError, match="gone"):
        listener.socket.accept()
    assert listener.reading and not listener.told


def test_closing_leaves_no_timer_behind() -> None:
    listener = Listener(exhausted())
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    listener.socket.close()
    assert listener.closed and not listener.clock.getDelayedCalls()
