"""Every fault of either peer in every phase of a session, and what must hold afterwards in any case.

The bytes that arrive are a prefix of those that were sent, and all of them unless a peer failed.  The counts are those
of what the proxy read.  No file descriptor, delayed call or session is left, and each session ended for one reason.
"""

from __future__ import annotations

import gc
import itertools
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from fooproxy.relay.session import Session
from tests.helpers.bed import Bed, reactor, until
from tests.helpers.faults import (
    LITTLE,
    FaultyPeer,
    Step,
    bytewise,
    close,
    delay,
    expect,
    expect_end,
    flood,
    half_close,
    read_on,
    reset,
    send,
    stop_reading,
)
from tests.helpers.fooserver import counted

ensure = pytest_twisted.ensureDeferred

EVER = 100.0
"""Seconds longer than any deadline of the bridge."""

LINE = b"REQ 7 " + b"x" * 250 + b"\n"
REPLY = b"ACK 7 " + b"y" * 250 + b"\n"


class _Remembered(Session[Any]):
    """A session of which a test knows whether it is still there."""

    __slots__ = ("__weakref__",)


class Stage(Bed):
    """A bed with faulty peers and a single session."""

    session_type = _Remembered

    def __init__(self, transports: str) -> None:
        super().__init__(transports)
        self.sockets = _sockets()
        self.caller: FaultyPeer | None = None
        """The client."""
        self.upstream: FaultyPeer | None = None
        self.drained: Deferred[None] | None = None
        self.sessions: list[weakref.ref[Session[Any]]] = []
        self.observers: list[Any] = []
        observe = self.bridge.observe
        self.bridge.observe = lambda: self._remember(observe())

    def _remember(self, observer: Any) -> Any:
        self.observers.append(observer)
        return observer

    async def start(self) -> None:
        await super().start()
        await self.ports[0].stopListening()  # type: ignore[misc]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
        self.listener.setblocking(False)
        self.ports[0] = _Port(self.listener)  # type: ignore[call-overload]

    def turn(self) -> None:
        """Give each peer a turn."""
        if self.upstream is None:
            try:
                skt, _ = self.listener.accept()
            except BlockingIOError:
                pass
            else:
                self.upstream = FaultyPeer(skt)
        for peer in self.peers:
            peer.turn()

    @property
    def peers(self) -> list[FaultyPeer]:
        return [peer for peer in (self.caller, self.upstream) if peer is not None]

    async def turns(self, count: int) -> None:
        """Run the peers and the proxy for `count` turns."""
        for _ in range(count):
            self.turn()
            await deferLater(reactor, 0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Run the peers and the proxy until `condition` holds."""

        def holds() -> object:
            self.turn()
            return condition()

        await until(holds)

    async def connect(self) -> FaultyPeer:
        """Connect the client; the upstream is connected once the gate opens."""
        client = await self.dial()
        self.sessions.append(weakref.ref(self.session()))
        return client

    async def dial(self) -> FaultyPeer:
        address: Any = self.ports[1].getHost()
        skt = socket.socket()
        skt.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
        skt.setblocking(False)
        skt.connect_ex(("127.0.0.1", address.port))
        self.caller = FaultyPeer(skt)
        await until(lambda: self.bridge.sessions)
        return self.caller

    async def open(self) -> tuple[FaultyPeer, FaultyPeer]:
        """Connect the client and the upstream."""
        client = await self.connect()
        # The upstream's end of a connection exists before the proxy has noticed its own.
        await self.until(lambda: self.upstream is not None and self.session().state == "open")
        assert self.upstream is not None
        return client, self.upstream

    async def follow(self, peer: FaultyPeer, *steps: Step) -> None:
        """Run until `peer` has done all `steps`."""
        peer.do(*steps)
        await self.until(lambda: peer.done)

    def paused(self, leg: str) -> bool:
        """Return whether `leg` is not read because the other leg cannot be written to."""
        return all(leg in session.paused for session in self.bridge.sessions)


class _Port:
    """The part of a listening port that a bed uses."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._port = listener.getsockname()[1]

    def getHost(self) -> Any:
        return type("Address", (), {"host": "127.0.0.1", "port": self._port})

    def stopListening(self) -> None:
        self._listener.close()


@pytest_twisted.async_yield_fixture(params=["ours", pytest.param("twisted's", marks=pytest.mark.slow)])
async def stage(twin: str, request: Any) -> AsyncIterator[Stage]:
    stage = Stage(request.param)
    await stage.start()
    yield stage
    for peer in stage.peers:
        peer.close()
    await stage.stop()
    await until(lambda: _sockets() == stage.sockets)


def _sockets() -> int:
    """Return the number of open sockets of this process; its other descriptors belong to the reactor."""
    links = [entry.readlink().name for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


# Phases: each brings a session to the point where the fault happens.


async def connecting(stage: Stage) -> None:
    stage.gate = Deferred()
    client = await stage.connect()
    client.do(send(b"REQ 1\n"))


async def idle(stage: Stage) -> None:
    await stage.open()


async def in_flight(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\nREQ 2 data\n"))
    await stage.follow(upstream, expect(17))


async def mid_message(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\nREQ 2 ha"))
    await stage.follow(upstream, expect(14))


async def mid_reply(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\nREQ 2\n"))
    upstream.do(expect(12), send(b"ACK 1\nACK 2 ha"))
    await stage.follow(client, expect(14))


async def half_closed_by_client(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\nREQ 2\n"), half_close())
    await stage.follow(upstream, expect_end(), send(b"ACK 1\n"))


async def half_closed_by_upstream(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\nREQ 2\n"))
    upstream.do(expect(12), send(b"ACK 1\n"), half_close())
    await stage.follow(client, expect_end())


async def draining(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\n"))
    await stage.follow(upstream, expect(6))
    stage.drained = stage.bridge.drain()


async def client_does_not_read(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\n"), stop_reading())
    await stage.follow(upstream, expect(6), flood(REPLY, lambda: stage.paused("upstream")))


async def upstream_does_not_read(stage: Stage) -> None:
    client, upstream = await stage.open()
    upstream.do(stop_reading())
    await stage.follow(client, flood(LINE, lambda: stage.paused("client")))


PHASES = (
    connecting,
    idle,
    in_flight,
    mid_message,
    mid_reply,
    half_closed_by_client,
    half_closed_by_upstream,
    draining,
    # Filling the kernel's buffers takes time.
    pytest.param(client_does_not_read, marks=pytest.mark.slow, id="client_does_not_read"),
    pytest.param(upstream_does_not_read, marks=pytest.mark.slow, id="upstream_does_not_read"),
)

UNDISTURBED = (idle, in_flight, mid_message, mid_reply)

# Faults: what a peer does next.  Those in `ENDING` end its side; after those in `LASTING` it is still connected.

NOISE = bytes(range(256)) * 8 + b"\n"
BURST = 400


def _burst() -> list[Step]:
    """Return a step that sends a lot, for a limited number of turns, as perhaps nobody reads it."""
    turns = itertools.count()
    return [flood(LINE, lambda: next(turns) > BURST // 8)]


ENDING: dict[str, Callable[[], list[Step]]] = {
    "reset": lambda: [reset()],
    "close": lambda: [close()],
    "half-close": lambda: [half_close()],
    "cut mid-message, close": lambda: [send(b"ACK 3 REQ 3 cu"), close()],
    "cut mid-message, reset": lambda: [send(b"REQ 3 ACK 3 cu"), reset()],
    "flood, reset": lambda: [*_burst(), reset()],
    "stop reading, half-close": lambda: [stop_reading(), half_close()],
}
LASTING: dict[str, Callable[[], list[Step]]] = {
    "nothing": list,
    "flood": _burst,
    "stop reading": lambda: [stop_reading(), delay(3)],
    "one byte at a time": lambda: [bytewise(b"NAK 4 one byte at a time\n")],
    "noise": lambda: [send(NOISE)],
}
FAULTS = {**ENDING, **LASTING}


@ensure
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("who", ["client", "upstream"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
async def test_a_fault_costs_its_session_at_most(
    stage: Stage, phase: Callable[[Stage], Any], who: str, fault: str
) -> None:
    await phase(stage)
    if who == "upstream" and stage.upstream is None:
        stage.gate.callback(None)
        await stage.until(lambda: stage.upstream is not None)
    faulty = stage.caller if who == "client" else stage.upstream
    assert faulty is not None
    faulty.do(*FAULTS[fault]())
    # Let the proxy notice the fault before anything else happens.
    await stage.turns(5)
    await _all_end(stage)
    (reason,) = [reason for reason, count in stage.stats.connections_closed.items() if count]
    if phase in UNDISTURBED:
        assert reason in _sensible(who, fault)
    _check(stage, all_arrives=fault in LASTING and phase is not draining)


def _sensible(who: str, fault: str) -> set[str]:
    """Return the reasons that are right for a session whose peers were both connected and reading."""
    if fault in LASTING:
        return {"client_closed", "half_close_timeout"}
    if "reset" in fault:
        return {f"{who}_reset"}
    # Data sent to a closed peer causes a reset, and a peer that has closed sends no more replies.
    return {f"{who}_closed", f"{who}_reset", "half_close_timeout" if who == "client" else ""}


async def _all_end(stage: Stage) -> None:
    """Let both peers read to the end and close if they still can; then let all deadlines pass."""
    if not stage.gate.called:
        stage.gate.callback(None)
    for peer in stage.peers:
        peer.do(read_on())
    moved = None
    while moved != (moved := [len(peer.sent) + len(peer.received) for peer in stage.peers]):
        await stage.turns(20)
    # The upstream closes after the client; the client closes in any case.
    if stage.caller is not None:
        stage.caller.do(half_close(), expect_end(), close())
    if stage.upstream is not None:
        stage.upstream.do(expect_end(), half_close())
    if stage.drained is not None:
        # As the service does at --drain-timeout; the FIN of a client that is not read is not noticed.
        await stage.turns(20)
        stage.bridge.abort()
    for _ in range(6):
        await stage.turns(20)
        if not stage.bridge.sessions:
            break
        stage.clock.advance(EVER)
    assert not stage.bridge.sessions
    assert stage.drained is None or stage.drained.called


def _check(stage: Stage, all_arrives: bool) -> None:
    """Check what must hold in any case, and with `all_arrives` that everything sent has arrived."""
    client, upstream = stage.caller, stage.upstream
    assert client is not None
    (observer,) = stage.observers
    report = stage.stats.report()
    from_client = bytes(client.sent[: observer.client.bytes])
    from_upstream = bytes(upstream.sent[: observer.upstream.bytes]) if upstream else b""
    if upstream is not None:
        assert from_client.startswith(upstream.received)
        assert from_upstream.startswith(client.received)
        if upstream.fin and not (upstream.broken or client.left):
            # Only a client's own FIN becomes a FIN where a server would take it for the end of a line.
            assert not upstream.received or upstream.received.endswith(b"\n")
    if all_arrives:
        assert upstream is not None
        assert upstream.received == client.sent
        assert client.received == upstream.sent
    due = counted([from_client], [from_upstream])
    assert {name: report[name] for name in due} == due
    assert report["connections_active"] == report["requests_in_flight"] == 0
    assert report["connections_total"] == 1 == sum(report["connections_closed"].values())
    for peer in stage.peers:
        peer.close()
    del observer
    gc.collect()
    assert [session() for session in stage.sessions] == [None]
    # When the bed stops, it checks that no delayed call is left.


@ensure
@pytest.mark.parametrize("end", [reset, close], ids=["reset", "close"])
async def test_replies_reach_a_client_that_is_still_sending_as_its_upstream_ends(
    stage: Stage, end: Callable[[], Step]
) -> None:
    await upstream_does_not_read(stage)
    client, upstream = stage.caller, stage.upstream
    assert client is not None
    assert upstream is not None
    client.do(stop_reading())
    session, observer = stage.session(), stage.observers[0]
    await stage.follow(upstream, send(REPLY * 20))
    await stage.until(lambda: observer.upstream.counts.bytes == len(upstream.sent))
    await stage.follow(upstream, end())
    await stage.until(lambda: session.state == "closing")
    # What the client sends from now on is dropped, and no reset is sent, which would overtake the replies.
    client.do(read_on(), send(LINE * 100), expect_end())
    await stage.until(lambda: client.done)
    assert not client.broken
    assert client.received == upstream.sent
    client.close()
    await stage.until(lambda: not stage.bridge.sessions)
