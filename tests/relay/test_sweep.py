"""The sweep: which sessions and peers it gives up, and when; and that thousands of them do not share one turn."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock

from fooproxy.relay.interceptor import Interceptor
from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts


class IdleSession:
    """A session that is idle, and takes a millisecond to close."""

    client: Any = None
    upstream: Any = None
    state = "open"
    stirred = float("-inf")
    idle = 100.0
    pauses = 0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.observer = self
        self.expired = False

    def expire(self) -> None:
        self.expired = True
        self._clock.rightNow += 0.001


def test_a_turn_closes_only_some_of_many_idle_sessions() -> None:
    clock = Clock()
    sessions: list[Any] = [IdleSession(clock) for _ in range(50)]
    timeouts = Timeouts(idle=10)
    sweep = Sweep(sessions, timeouts, clock, lambda: None)
    sweep.start()
    clock.rightNow += timeouts.interval
    # The first turn lets the event loop read what has arrived.
    for _ in range(2):
        turn: Any
        (turn,) = clock.getDelayedCalls()
        clock.calls.clear()
        turn.func(*turn.args)
    assert 1 <= sum(session.expired for session in sessions) <= 4
    clock.advance(0)
    assert all(session.expired for session in sessions)
    sweep.stop()


class Unread:
    """A leg whose peer takes nothing of what waits for it."""

    lost = False
    transport = SimpleNamespace(disconnecting=True)


class UnreadSession(IdleSession):
    """A session whose client takes nothing."""

    idle = 0.0

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.client = Unread()

    def unread(self, leg: Any) -> None:
        assert leg is self.client
        leg.lost = True
        self.expire()


def test_a_turn_gives_up_only_some_of_many_peers_that_do_not_read() -> None:
    clock = Clock()
    sessions: list[Any] = [UnreadSession(clock) for _ in range(50)]
    sweep = Sweep(sessions, Timeouts(send=10), clock, lambda: None)
    sweep.start()
    for _ in range(10):
        clock.advance(1)
    assert not any(session.expired for session in sessions)
    sessions[7].pauses += 1
    turns = []
    clock.rightNow += 1
    while calls := [call for call in clock.calls if call.getTime() <= clock.seconds()]:
        before = sum(session.expired for session in sessions)
        clock.calls.remove(calls[0])
        calls[0].func(*calls[0].args)
        turns.append(sum(session.expired for session in sessions) - before)
        # Who reads between two turns is let be.
        sessions[-1].pauses = len(turns)
    assert max(turns) <= 4
    assert [session.expired for session in sessions] == [n not in (7, 49) for n in range(50)]
    sweep.stop()


NOTHING: Any = None


class Transport(FileDescriptor):
    """The bottom of a leg's transport, on one end of a pair of unix sockets."""

    def __init__(self) -> None:
        super().__init__(Clock())  # type: ignore[arg-type]
        self.socket, self.peer = socket.socketpair()
        self.protocol: Any = None

    def fileno(self) -> int:
        return self.socket.fileno()


class Leg:
    """A leg that may be lost."""

    def __init__(self) -> None:
        self.lost = False
        self.transport = Transport()


class Judged:
    """A session with both its legs that notes what the sweep does to it."""

    def __init__(self) -> None:
        self.client, self.upstream = Leg(), Leg()
        for leg in (self.client, self.upstream):
            leg.transport.protocol = Interceptor(SimpleNamespace(session=self), NOTHING, int)
        self.state = "open"
        self.stirred = float("-inf")
        self.pauses = 0
        self.observer = SimpleNamespace(idle=0.0, waited=0.0)
        self.judgements: list[Any] = []

    def expire(self) -> None:
        self.judgements.append("idle")

    def give_up_replies(self) -> None:
        self.judgements.append("no reply")

    def unread(self, leg: Any) -> None:
        self.judgements.append("client" if leg is self.client else "upstream")
        leg.lost = True

    def close(self) -> None:
        for leg in (self.client, self.upstream):
            leg.transport.socket.close()
            leg.transport.peer.close()


class World:
    """A sweep of one session, on a clock that a test advances."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.session = Judged()
        self.sweep: Any = None

    def begin(self, poller: Any = None, **timeouts: float) -> None:
        sessions: Any = {self.session}
        self.timeouts = Timeouts(**timeouts)
        self.sweep = Sweep(sessions, self.timeouts, self.clock, lambda: None, poller)
        self.sweep.start()

    def sweeps(self, times: int = 1) -> list[Any]:
        """Let so many sweeps pass, and return all that was done to the session so far."""
        for _ in range(times):
            self.clock.advance(self.timeouts.interval)
            self.clock.advance(0)
        return self.session.judgements

    def end(self) -> None:
        self.sweep.stop()
        self.session.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.end()


def test_the_first_sweep_is_one_interval_from_the_start_and_counts(world: World) -> None:
    world.session.observer.idle = 100.0
    world.begin(idle=10)
    world.clock.advance(0)
    assert world.session.judgements == []
    assert world.sweeps() == ["idle"]


@pytest.mark.parametrize("state", ["open", "half-closed", "draining"])
def test_a_request_that_has_waited_for_exactly_the_timeout_is_given_up_and_nothing_else(
    world: World, state: str
) -> None:
    world.session.state = state
    world.session.observer.idle = 100.0
    world.begin(reply=5, idle=10)
    world.session.observer.waited = 4.9
    world.session.observer.idle = 0.0
    assert world.sweeps() == []
    world.session.observer.waited = 5.0
    world.session.observer.idle = 100.0
    assert world.sweeps() == ["no reply"]


@pytest.mark.parametrize("state", ["closing", "connecting", "waiting"])
def test_a_session_that_is_not_with_its_server_does_not_wait_for_replies(world: World, state: str) -> None:
    world.session.state = state
    world.session.observer.waited = 100.0
    world.begin(reply=5)
    assert world.sweeps() == []


@pytest.mark.parametrize(
    ("state", "done"),
    [("open", ["idle"]), ("idle", ["idle"]), ("half-closed", []), ("draining", []), ("closing", []), ("waiting", [])],
)
def test_only_a_session_that_is_open_is_idle(world: World, state: str, done: list[str]) -> None:
    world.session.state = state
    world.session.observer.idle = 100.0
    world.begin(idle=10)
    assert world.sweeps() == done


def test_a_session_is_idle_after_exactly_the_timeout(world: World) -> None:
    world.begin(idle=10)
    world.session.observer.idle = 9.9
    assert world.sweeps() == []
    world.session.observer.idle = 10.0
    assert world.sweeps() == ["idle"]


def test_a_session_is_idle_when_its_peer_had_taken_everything_for_exactly_the_timeout(world: World) -> None:
    world.session.observer.idle = 100.0
    world.begin(idle=10)
    transport = world.session.client.transport
    transport.dataBuffer = b"ACK 1\n"
    assert world.sweeps() == []
    transport.dataBuffer = b""
    assert world.sweeps(9) == []
    assert world.sweeps() == ["idle"]


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_peer_that_takes_nothing_is_given_up_after_exactly_the_timeout(world: World, side: str) -> None:
    world.begin(send=10)
    getattr(world.session, side).transport.dataBuffer = b"REQ 1\n"
    # It is first seen by the first sweep.
    assert world.sweeps(10) == []
    assert world.sweeps() == [side]


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_peer_for_which_only_the_kernel_holds_bytes_makes_the_session_busy_and_is_given_up(
    world: World, side: str
) -> None:
    world.session.observer.idle = 100.0
    world.begin(idle=10, send=10)
    getattr(world.session, side).transport.socket.send(b"REQ 1\n")
    assert world.sweeps(10) == []
    # With nothing on the way any more, it is idle as well.
    assert world.sweeps()[0] == side


@pytest.mark.parametrize("progress", ["taken", "paused again"])
def test_a_peer_that_takes_a_little_has_the_whole_timeout_again(world: World, progress: str) -> None:
    world.begin(send=10)
    transport = world.session.client.transport
    transport.dataBuffer = b"ACK 1\n"
    world.sweeps(10)
    if progress == "taken":
        transport.dataBuffer = b"1\n"
    else:
        world.session.pauses += 1
    assert world.sweeps(10) == []
    assert world.sweeps() == ["client"]


def test_a_leg_that_is_lost_is_not_given_up_and_keeps_no_session_open(world: World) -> None:
    world.session.observer.idle = 100.0
    world.begin(idle=10, send=1)
    world.session.client.lost = True
    world.session.client.transport.dataBuffer = b"ACK 1\n"
    assert world.sweeps() == ["idle"]
    assert "client" not in world.sweeps(20)


def test_after_a_long_stall_nothing_is_concluded_until_the_next_sweep(world: World) -> None:
    world.session.observer.idle = 100.0
    world.begin(idle=10)
    world.clock.advance(2.5 * world.timeouts.interval)
    for _ in range(100):
        world.clock.advance(0)
    assert world.session.judgements == []
    world.clock.advance(world.timeouts.interval / 2)
    world.clock.advance(0)
    assert world.session.judgements == ["idle"]


def test_a_stall_that_was_over_long_ago_is_forgotten(world: World) -> None:
    world.begin(idle=10)
    world.sweeps(30)
    world.session.observer.idle = 100.0
    assert world.sweeps() == ["idle"]


def test_with_a_poller_only_sessions_with_bytes_waiting_are_looked_at(world: World) -> None:
    writers: list[Any] = [SimpleNamespace()]
    world.begin(SimpleNamespace(getWriters=lambda: writers), send=10)
    transport = world.session.client.transport
    transport.dataBuffer = b"ACK 1\n"
    assert world.sweeps(20) == []
    writers.append(transport)
    world.sweeps()
    # The rest is in the kernel now: the poller has forgotten it, the sweep has not.
    transport.dataBuffer = b""
    transport.socket.send(b"ACK 1\n")
    del writers[:]
    assert world.sweeps(10) == []
    assert world.sweeps() == ["client"]


@pytest.mark.parametrize("timeout", ["idle", "reply"])
def test_with_a_poller_all_sessions_are_looked_at_if_they_may_be_idle_or_wait_too_long(
    world: World, timeout: str
) -> None:
    world.session.observer = SimpleNamespace(idle=100.0, waited=100.0)
    world.begin(SimpleNamespace(getWriters=list), **{timeout: 10.0})
    assert world.sweeps() == [{"idle": "idle", "reply": "no reply"}[timeout]]


@pytest.mark.parametrize("meanwhile", ["read", "lost"])
def test_a_peer_that_reads_or_leaves_while_others_are_given_up_is_let_be(world: World, meanwhile: str) -> None:
    first, other = world.session, Judged()

    def unread(leg: Any) -> None:
        leg.lost = True
        if meanwhile == "read":
            other.client.transport.dataBuffer = b"1\n"
        else:
            other.client.lost = True

    first.unread = unread  # type: ignore[method-assign]
    sessions: Any = [first, other]
    world.timeouts = Timeouts(send=10)
    world.sweep = Sweep(sessions, world.timeouts, world.clock, lambda: None)
    world.sweep.start()
    for session in sessions:
        session.client.transport.dataBuffer = b"ACK 1\n"
    world.sweeps(11)
    assert first.client.lost
    assert other.judgements == []
    other.close()
