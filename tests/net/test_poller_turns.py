"""What the poller does with each kind of event, step by step, on a reactor and a clock that stand still."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet import main
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from fooproxy.net.poller import Poller
from fooproxy.net.pump import IN
from fooproxy.net.sockets import TIMED_OUT

OUT = 4


class Loop:
    """A reactor that does things later when the test says so."""

    def __init__(self) -> None:
        self.readers: list[Any] = []
        self.addReader = self.readers.append
        self.later: list[Callable[[], Any]] = []

    def callLater(self, delay: float, do: Callable[[], Any]) -> None:
        self.later.append(do)

    def run(self) -> None:
        later, self.later[:] = self.later[:], []
        for do in later:
            do()


class Pump:
    """Leaves all events to the poller, unless the test says something else."""

    def __init__(self, look: Callable[[], None], clock: Callable[[], int]) -> None:
        self.relay: Any = lambda events, now: ([(fd, event, None) for fd, event in events], [])


class End:
    """A selectable over one end of a socket pair; it does what the test says."""

    disconnecting = False
    brings_traffic = False

    def __init__(self, bed: Bed) -> None:
        self.socket, self.peer = socket.socketpair()
        self.bed = bed
        self.done: list[Any] = []
        self.on_read: Callable[[], Any] = lambda: None
        self.on_write: Callable[[], Any] = lambda: None

    def fileno(self) -> int:
        return self.socket.fileno()

    def doRead(self) -> Any:
        self.done.append("read")
        self.socket.recv(100)
        return self.on_read()

    def doWrite(self) -> Any:
        self.done.append("write")
        return self.on_write()

    def readConnectionLost(self, reason: Failure) -> None:
        self.done.append("fin")

    def connectionLost(self, reason: Failure) -> None:
        self.done.append(reason.value)
        self.bed.poller.forget(self)


class Knocking(End, Port):  # type: ignore[misc]
    """A port at which clients wait."""


class Bed:
    """A poller on a clock of which each look takes `tick` microseconds."""

    def __init__(self) -> None:
        self.loop: Any = Loop()
        self.now, self.tick = 1, 0
        self.poller = Poller(self.loop, clock=self.clock, pump=Pump)
        self.ends: list[End] = []

    def clock(self) -> int:
        self.now += self.tick
        return self.now

    def end(self, kind: type[End] = End) -> End:
        end = kind(self)
        self.ends.append(end)
        self.poller.addReader(end)
        return end

    def crowd(self, count: int) -> list[End]:
        """Make ends that have something to say, of which a turn handles only some."""
        ends = [self.end() for _ in range(count)]
        for end in ends:
            end.peer.send(b"x")
        return ends

    def close(self) -> None:
        for end in self.ends:
            self.poller.forget(end)
            end.socket.close()
            end.peer.close()
        if self.poller._epoll is not None:
            self.poller._epoll.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    bed = Bed()
    yield bed
    bed.close()


# Reading and writing


def once(bed: Bed, end: End) -> None:
    """Have `end` wait to write once."""
    end.on_write = lambda: bed.poller.removeWriter(end)
    bed.poller.addWriter(end)


def test_an_end_is_read_when_it_can_be_read_and_written_when_it_can_be_written(bed: Bed) -> None:
    end = bed.end()
    once(bed, end)
    bed.poller.doRead()
    assert end.done == ["write"]
    once(bed, end)
    end.peer.send(b"x")
    bed.poller.doRead()
    assert end.done[1:] == ["read", "write"]
    end.peer.send(b"x")
    bed.poller.doRead()
    assert end.done[3:] == ["read"]


def test_only_those_that_wait_to_write_are_listed_as_writers(bed: Bed) -> None:
    reading, writing = bed.end(), bed.end()
    bed.poller.addWriter(writing)
    assert bed.poller.getWriters() == [writing]
    assert reading not in bed.poller.getWriters()


def test_one_that_only_writes_is_not_read(bed: Bed) -> None:
    end = bed.end()
    once(bed, end)
    bed.poller.removeReader(end)
    end.peer.send(b"x")
    bed.poller.doRead()
    assert end.done == ["write"]


def test_one_that_waits_to_write_is_only_read_while_the_kernel_takes_nothing(bed: Bed) -> None:
    end = bed.end()
    end.socket.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            end.socket.send(bytes(1 << 16))
    once(bed, end)
    end.peer.send(b"x")
    bed.poller.doRead()
    assert end.done == ["read"]


def test_one_that_is_closed_by_its_read_is_not_written(bed: Bed) -> None:
    end = bed.end()
    bed.poller.addWriter(end)
    end.on_read = lambda: bed.poller.forget(end)
    end.peer.send(b"x")
    bed.poller.doRead()
    assert end.done == ["read"]


def test_a_fin_is_told_and_not_read_again(bed: Bed) -> None:
    end = bed.end()
    end.on_read = lambda: main.CONNECTION_DONE
    end.peer.shutdown(socket.SHUT_WR)
    for _ in range(3):
        bed.poller.doRead()
    assert end.done == ["read", "fin"]


def test_a_fin_ends_a_connection_that_is_closing(bed: Bed) -> None:
    end = bed.end()
    end.disconnecting = True
    end.on_read = lambda: main.CONNECTION_DONE
    end.peer.shutdown(socket.SHUT_WR)
    bed.poller.doRead()
    assert [type(what) for what in end.done] == [str, ConnectionDone]


@pytest.mark.parametrize(("why", "reason"), [(main.CONNECTION_LOST, ConnectionLost), (TIMED_OUT, type(TIMED_OUT))])
def test_a_loss_is_told_with_its_reason(bed: Bed, why: Exception, reason: type[Exception]) -> None:
    end = bed.end()
    end.on_read = lambda: why
    end.peer.send(b"x")
    bed.poller.doRead()
    assert [type(what) for what in end.done] == [str, reason]


def fail() -> Any:
    raise RuntimeError("a defect")


def test_one_whose_read_raises_is_closed_even_if_that_raises_too(bed: Bed) -> None:
    bad, good = bed.end(), bed.end()
    bad.on_read = fail

    def lost(reason: Failure) -> None:
        bed.poller.forget(bad)
        fail()

    bad.connectionLost = lost  # type: ignore[method-assign]
    for end in (bad, good):
        end.peer.send(b"x")
    bed.poller.doRead()
    assert (bad.done, good.done) == (["read"], ["read"])
    bad.peer.send(b"x")
    bed.poller.doRead()
    assert bad.done == ["read"]


# What the pump returns


def sink(**does: Any) -> Any:
    return SimpleNamespace(**{"write": fail, "fail": fail, **does})


def test_what_is_stuck_is_written_by_its_sink_or_told_to_it(bed: Bed) -> None:
    told: list[Any] = []
    end = bed.end()
    bad = sink(connectionLost=lambda reason: told.append("closed"))
    stuck = [(bad, b"1", None), (sink(write=told.append), b"2", None), (sink(fail=told.append), b"3", TIMED_OUT)]
    bed.poller.pump.relay = lambda events, now: ([], stuck)
    end.peer.send(b"x")
    bed.poller.afterwards.append(lambda: told.append("afterwards"))
    end.on_read = fail
    bed.poller._reactor.addReader = told.append
    bed.poller.doRead()
    assert told[:4] == ["closed", b"2", TIMED_OUT, "afterwards"]
    assert end.done == []


def test_a_pump_that_fails_costs_what_it_relays_and_leaves_the_rest_to_the_poller(bed: Bed) -> None:
    relayed, other, raising = bed.end(), bed.end(), bed.end()
    given: list[str] = []

    def give_up() -> bool:
        given.append("relayed")
        return True

    relayed.give_up, raising.give_up = give_up, fail  # type: ignore[attr-defined]
    relay, failures = bed.poller.pump.relay, [fail]

    def fail_once(events: Any, now: int) -> Any:
        return failures.pop()() if failures else relay(events, now)

    bed.poller.pump.relay = fail_once
    for end in bed.ends:
        end.peer.send(b"x")
    relayed.on_read = lambda: bed.poller.removeReader(relayed)
    bed.poller.doRead()
    assert given == ["relayed"]
    # In this batch, that is; what is left of it is read in the next one.
    assert (relayed.done, other.done) == (["read"], ["read"])
    assert [type(what) for what in raising.done] == [RuntimeError]


def test_if_there_is_no_memory_to_send_what_is_stuck_its_connections_are_given_up(bed: Bed) -> None:
    given = given_up(bed)
    bed.poller.pump.relay = lambda events, now: ([], Unsendable())
    bed.poller.doRead()
    assert given == ["given up"]


def test_connections_are_given_up_even_if_there_is_no_memory_to_say_so(bed: Bed) -> None:
    given = given_up(bed)
    bed.poller.pump.relay = fail
    bed.poller.log = sink(failure=no_memory)
    with pytest.raises(MemoryError):
        bed.poller.doRead()
    assert given == ["given up"]


def given_up(bed: Bed) -> list[str]:
    """Return what becomes of a connection that has something to relay: whether it was given up."""
    end = bed.end()
    given: list[str] = []

    def give_up() -> bool:
        bed.poller.removeReader(end)
        given.append("given up")
        return True

    end.give_up = give_up  # type: ignore[attr-defined]
    end.peer.send(b"x")
    return given


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


class Unsendable(list[Any]):
    """Stands for what is stuck when there is no memory to look at it."""

    def __bool__(self) -> bool:
        return True

    __iter__ = no_memory


# Turns


def test_a_batch_of_ports_alone_does_not_go_on_in_the_same_turn(bed: Bed) -> None:
    port = bed.end(Knocking)
    port.doRead = lambda: port.done.append("accept")  # type: ignore[method-assign]
    port.peer.send(b"x")
    relay, batches = bed.poller.pump.relay, []

    def counting(events: Any, now: int) -> Any:
        batches.append(now)
        return relay(events, now)

    bed.poller.pump.relay = counting
    bed.poller.doRead()
    assert port.done == ["accept"]
    # In the second one, nothing could be done.
    assert len(batches) == 2
    bed.poller.doRead()
    assert port.done == ["accept"] * 2


def test_beyond_its_share_of_a_turn_what_is_not_relaying_waits_for_the_next_turns(bed: Bed) -> None:
    ends = bed.crowd(20)
    bed.tick = 1000
    bed.poller.doRead()
    served = [end for end in ends if end.done]
    assert 0 < len(served) < 10
    # It is not polled meanwhile, but handled by turns of the reactor that are bounded too.
    bed.poller.doRead()
    assert [end for end in ends if end.done] == served
    turns = 0
    while bed.loop.later:
        bed.loop.run()
        turns += 1
    assert [end.done for end in ends] == [["read"]] * 20
    assert 1 < turns < 10
    for end in ends:
        end.peer.send(b"x")
    bed.tick = 0
    bed.poller.doRead()
    assert [end.done for end in ends] == [["read"] * 2] * 20


def test_the_share_is_one_for_all_batches_of_a_turn(bed: Bed) -> None:
    bed.poller.patience = 0.001
    first, second = bed.end(), bed.end()

    def answer() -> None:
        second.peer.send(b"x")

    first.on_read = answer
    first.peer.send(b"x")
    bed.tick = 700
    bed.poller.doRead()
    assert (first.done, second.done) == (["read"], [])
    bed.loop.run()
    assert second.done == ["read"]


def test_what_brings_traffic_and_what_can_be_written_never_waits(bed: Bed) -> None:
    crowd = bed.crowd(10)
    writing, relaying = bed.end(), bed.end()
    once(bed, writing)
    relaying.brings_traffic = True
    relaying.peer.send(b"x")
    bed.tick = 1000
    bed.poller.doRead()
    assert [] in [end.done for end in crowd]
    assert (writing.done, relaying.done) == (["write"], ["read"])


def test_traffic_is_found_behind_many_events_that_wait(bed: Bed) -> None:
    bed.crowd(270)
    relaying = bed.end()
    relaying.brings_traffic = True
    relaying.peer.send(b"x")
    # Each turn has time for two batches.
    bed.tick = 20_000
    for _ in range(2):
        bed.poller.doRead()
    assert relaying.done == ["read"]


def test_an_end_does_wait_although_the_connection_would_bring_traffic(bed: Bed) -> None:
    bed.crowd(10)
    ending = bed.end()
    ending.brings_traffic = True
    ending.peer.send(b"x")
    ending.peer.close()
    bed.tick = 1000
    bed.poller.doRead()
    assert ending.done == []
    while bed.loop.later:
        bed.loop.run()
    assert "read" in ending.done


def test_what_is_set_aside_may_be_closed_changed_or_not_polled_any_more(bed: Bed) -> None:
    ends = bed.crowd(12)
    bed.tick = 1000
    bed.poller.doRead()
    closed, unpolled, changed, *_ = [end for end in ends if not end.done]
    bed.poller.forget(closed)
    bed.poller.removeReader(unpolled)
    bed.poller.addWriter(changed)
    while bed.loop.later:
        bed.loop.run()
    assert (closed.done, unpolled.done) == ([], [])
    assert changed.done[0] == "read"
    bed.tick = 0
    bed.poller.addReader(unpolled)
    bed.poller.doRead()
    assert unpolled.done == ["read"]
    assert "write" in changed.done


def test_what_is_postponed_is_done_later_in_order_and_may_fail(bed: Bed) -> None:
    done: list[int] = []
    bed.poller.afterwards.append(lambda: done.append(0))
    for number in (1, 2):
        bed.poller.soon(lambda number=number: done.append(number))  # type: ignore[misc]
        bed.poller.soon(fail)
    assert done == []
    bed.loop.run()
    assert done == [1, 2, 0]
    bed.poller.soon(lambda: done.append(3))
    bed.loop.run()
    assert done == [1, 2, 0, 3, 0]


def test_much_that_is_postponed_is_spread_over_turns(bed: Bed) -> None:
    done: list[int] = []
    for number in range(10):
        bed.poller.soon(lambda number=number: done.append(number))  # type: ignore[misc]
    bed.tick = 1500
    bed.loop.run()
    assert 0 < len(done) < 5
    while bed.loop.later:
        bed.loop.run()
    assert done == list(range(10))


def test_a_function_that_fails_after_a_silence_does_not_end_the_batch(bed: Bed) -> None:
    end = bed.end()
    called: list[str] = []
    bed.poller.after_silence += [fail, lambda: called.append("silence")]
    bed.now = 1_000_000
    end.peer.send(b"x")
    bed.poller.doRead()
    assert (called, end.done) == (["silence"], ["read"])
    end.peer.send(b"x")
    bed.poller.doRead()
    assert called == ["silence"]


# The end


def test_when_the_reactor_stops_all_connections_are_closed(bed: Bed) -> None:
    one, other = bed.end(), bed.end()
    bed.poller.connectionLost(Failure(main.CONNECTION_LOST))
    assert one.done == other.done == [main.CONNECTION_LOST]


def test_when_the_reactor_gives_up_the_poller_it_is_read_again(bed: Bed) -> None:
    end = bed.end()
    assert bed.loop.readers == [bed.poller]
    bed.poller.connectionLost(Failure(RuntimeError("a defect")))
    assert bed.loop.readers == [bed.poller] * 2
    assert end.done == []


def test_it_is_read_by_the_reactor_once_it_has_something_to_poll(bed: Bed) -> None:
    assert bed.loop.readers == []
    bed.end()
    bed.end()
    assert bed.loop.readers == [bed.poller]
    assert bed.poller.fileno() > 0
    assert IN | OUT == 5
