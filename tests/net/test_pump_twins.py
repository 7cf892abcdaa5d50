"""Both pumps do the same over real sockets, whatever the peers do and however sources and sinks are paired."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.foo import counting
from fooproxy.foo.latency import Latency
from fooproxy.net import pump
from fooproxy.net.pump import CLOSED, IN, LARGEST_READ, SMALLEST_READ
from tests.helpers.twins import MUST_BE_BUILT

pytestmark = pytest.mark.skipif(counting.COMPILED is None and not MUST_BE_BUILT, reason="fooproxy._core was not built")

SESSIONS = 3
LEGS = 2 * SESSIONS
NOBODYS = 1 << 30
"""A file descriptor that nothing here has open."""


class Sink:
    """A leg's socket as the pump sees a transport: what cannot be written waits here, and closes the outlet."""

    def __init__(self, skt: socket.socket) -> None:
        self.socket = skt
        self.unsent = b""
        self._inflow: Any = None

    @property
    def inflow(self) -> Any:
        return self._inflow

    @inflow.setter
    def inflow(self, tap: Any) -> None:
        if self._inflow is not None:
            self._inflow.outlet = CLOSED
        self._inflow = tap
        self.update()

    def update(self) -> None:
        if self._inflow is not None:
            self._inflow.outlet = CLOSED if self.unsent else self.socket.fileno()

    def write(self, data: bytes) -> None:
        self.unsent += data
        self.update()

    def flush(self) -> str:
        """Send what waits; return the error, if any, which loses it."""
        error = ""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError as problem:
            self.unsent, error = b"", errno.errorcode[problem.errno or 0]
        self.update()
        return error


class World:
    """Some sessions over one pump; the legs of session n are 2 n, the client's, and 2 n + 1, the upstream's."""

    def __init__(self, twin: counting.Twin, make_pump: Any) -> None:
        pairs = [socket.socketpair() for _ in range(LEGS)]
        self.peers, self.legs = [far for far, _ in pairs], [near for _, near in pairs]
        for near, far in zip(self.legs, self.peers, strict=True):
            near.setblocking(False)
            far.setblocking(False)
            # Little is enough for a write that the kernel takes in part.
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
        self.latency = Latency()
        self.clients = twin.Analysis(self.latency, True)
        self.upstreams = twin.Analysis(self.latency, False, self.clients)
        self.exchanges = [twin.Exchange(self.latency) for _ in range(SESSIONS)]
        both = (self.clients, self.upstreams)
        self.taps = [twin.Analyzer(both[leg & 1], self.exchanges[leg // 2]) for leg in range(LEGS)]
        self.sinks = [Sink(skt) for skt in self.legs]
        self.now = 1000
        self.pump = make_pump(self.upstreams.catch_up, self.clock)
        self.numbers = {skt.fileno(): leg for leg, skt in enumerate(self.legs)}
        self.epoll = select.epoll()
        for fd in self.numbers:
            self.epoll.register(fd, IN)
        for leg in range(LEGS):
            self.start(leg, leg ^ 1)

    def clock(self) -> int:
        """Pass a while whenever the pump asks."""
        self.now += 3
        return self.now

    def close(self) -> None:
        self.epoll.close()
        for skt in self.peers + self.legs:
            skt.close()

    # What may happen; each returns what both worlds must agree on.

    def send(self, leg: int, data: bytes) -> Any:
        """Have the peer of a leg send `data`."""
        with contextlib.suppress(OSError):
            return self.peers[leg].send(data)

    def receive(self, leg: int) -> Any:
        """Have the peer of a leg read once."""
        with contextlib.suppress(OSError):
            return self.peers[leg].recv(1 << 13)

    def fin(self, leg: int) -> Any:
        """Have the peer of a leg send a FIN."""
        with contextlib.suppress(OSError):
            self.peers[leg].shutdown(socket.SHUT_WR)

    def reset(self, leg: int) -> Any:
        """Have the peer of a leg close; that is a reset if it has not read everything."""
        self.peers[leg].close()

    def flush(self, leg: int) -> Any:
        """Send what waits for the peer of a leg."""
        return self.sinks[leg].flush()

    def start(self, leg: int, other: int) -> Any:
        """Pair a leg anew, and stop the one that has written to that sink: no order of two streams is right."""
        inflow = self.sinks[other].inflow
        if inflow is not None:
            self.stop(self.taps.index(inflow))
        self.pump.start(self.legs[leg].fileno(), self.sinks[other], self.taps[leg])

    def stop(self, leg: int) -> Any:
        """Do not relay from a leg any more."""
        self.pump.stop(self.legs[leg].fileno())

    def read(self, leg: int, size: int) -> Any:
        """Read from a leg by so many bytes from now on."""
        self.taps[leg].room = size

    def resumed(self, leg: int) -> Any:
        """Mark the open requests of a leg's session."""
        self.upstreams.catch_up()
        self.exchanges[leg // 2].resumed()

    def relay(self, later: int, order: list[int]) -> Any:
        """Relay from the legs in `order`, `later` after the clock was last read; other numbers are nobody's."""
        self.now += later
        numbers = [self.legs[leg].fileno() if leg < LEGS else NOBODYS for leg in order]
        return self.left(*self.pump.relay([(fd, IN) for fd in numbers], self.now))

    def relay_on(self, most: int, budget: int) -> Any:
        """Relay what is ready, up to `most` events at a time, as the compiled pump does without Python."""
        before, end = self.now, self.now + budget
        if hasattr(self.pump, "go_on"):
            others, stuck, now = self.pump.go_on(self.epoll.fileno(), most, 0, before, end, 1 << 40)
        else:
            others, stuck, now = self.go_on(most, before, end)
        return now - before, self.left(others, stuck)

    def go_on(self, most: int, now: int, end: int) -> Any:
        """Do what the compiled pump's method of this name does."""
        others: Any = []
        stuck: Any = []
        while now <= end and not (others or stuck):
            events = self.epoll.poll(0, most)
            if not events or any(event != IN or fd not in self.pump._taps for fd, event in events):
                break
            now = max(self.clock(), now + 1)
            others, stuck = self.pump.relay(events, now)
        return others, stuck, now

    def left(self, others: Any, stuck: Any) -> Any:
        """Write what could not be written at once; return what is left to the poller."""
        rests: dict[Any, bytes] = defaultdict(bytes)
        for sink, rest, lost in stuck:
            sink.write(rest)
            rests[self.sinks.index(sink), lost] += rest
        return [(self.numbers.get(fd), event, why) for fd, event, why in others], rests

    def figures(self) -> Any:
        """Return everything that both worlds must agree on between two events."""
        self.upstreams.catch_up()
        return [
            list(self.latency.numbers),
            [list(analysis.total.numbers) for analysis in (self.clients, self.upstreams)],
            [exchange.state() for exchange in self.exchanges],
            [[*tap.state(), tap.room, self.numbers.get(tap.outlet)] for tap in self.taps],
            [None if sink.inflow is None else self.taps.index(sink.inflow) for sink in self.sinks],
        ]


LINES = st.sampled_from([b"REQ 1\n", b"ACK 1\n", b"NAK 2 no\n", b"REQ 3 ab", b"c\n", b"?\n", b"REQ", b" 4\nREQ 5\n"])
LEG = st.integers(0, LEGS - 1)
SENT = st.builds(
    lambda lines, times: b"".join(lines) * times,
    st.lists(LINES, min_size=1, max_size=3),
    st.sampled_from([1, 1, 3, 700, 3000]),
)
HAPPENINGS = st.lists(
    st.tuples(st.just("send"), LEG, SENT)
    | st.tuples(
        # The time of a batch may be before that of the last chunk: the pump puts its clock on if it stands still.
        st.just("relay"),
        st.sampled_from([-1, 0, 1, 40, 1 << 20]),
        st.lists(st.integers(0, LEGS), min_size=1, max_size=9),
    )
    | st.tuples(st.just("relay_on"), st.integers(1, 7), st.sampled_from([0, 2, 20, 1000]))
    | st.tuples(st.sampled_from(["receive", "flush"]), LEG)
    | st.tuples(st.sampled_from(["resumed", "stop", "fin", "reset"]), LEG)
    | st.tuples(st.just("start"), LEG, LEG)
    | st.tuples(st.just("read"), LEG, st.sampled_from([1, SMALLEST_READ, 1 << 14, LARGEST_READ])),
    min_size=10,
    max_size=60,
)


@given(HAPPENINGS)
def test_whatever_happens_both_pumps_do_the_same(happenings: list[Any]) -> None:
    assert counting.COMPILED is not None
    worlds = [World(counting.PURE, pump.Pump), World(counting.COMPILED, pump.compiled)]
    try:
        for happening in happenings:
            what, *how = happening
            pure, compiled = (getattr(world, what)(*how) for world in worlds)
            assert pure == compiled
            pure, compiled = (world.figures() for world in worlds)
            assert pure == compiled
    finally:
        for world in worlds:
            world.close()
