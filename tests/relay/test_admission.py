"""Admission: the gate on its own, on each kind of listening port, and in the real process."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from fooproxy.net.accepting import CALM, RETRY
from fooproxy.net.addresses import client_endpoint
from fooproxy.net.trail import Trail
from fooproxy.net.turns import SHARE
from fooproxy.net.turnstile import Turnstile
from fooproxy.relay.admission import RESERVE, Gate, Gates, network, session_limit
from tests.helpers.anybed import KINDS, AnyBed, any_bed
from tests.helpers.bed import Peer, Peers, publisher, reactor, until
from tests.helpers.fooserver import PATIENCE, FooServer, connect, read_lines, read_to_end
from tests.helpers.proxyprocess import TWISTD, Proxy, eventually, fooproxy, settles

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

TEST_NET = network("192.0.2.0/24")


# Parsing networks


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::7", "2001:db8::7/128"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
    ],
)
def test_a_network_is_read(text: str, means: str) -> None:
    assert network(text) == ip_network(means)


@pytest.mark.parametrize("text", ["", "everybody", "192.0.2.0/33", "192.0.2", "192.0.2.7/24", "foo.example"])
def test_what_is_no_network_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(repr(text))} .*192\.0\.2\."):
        network(text)


# The gate on its own


class Listener:
    """A listening port and its socket in one: accepts the clients in `waiting`, and records whether it is paused."""

    def __init__(self) -> None:
        self.socket: Any = self
        self.reading = True
        self.closed = False
        self.waiting: list[Any] = []

    def accept(self) -> Any:
        coming = self.waiting.pop(0) if self.waiting else BlockingIOError(errno.EAGAIN, "nobody")
        if isinstance(coming, Exception):
            raise coming
        return coming

    def close(self) -> None:
        self.closed = True

    def getsockname(self) -> str:
        return "the socket's own"

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def doRead(self) -> None:
        """Begin a turn; the test itself accepts."""


class Caller:
    """A client's socket that records whether it is open."""

    open = True
    family = socket.AF_INET
    name = ("127.0.0.1", 8002)

    def close(self) -> None:
        self.open = False

    def getsockname(self) -> Any:
        return self.name

    def getpeername(self) -> Any:
        raise OSError("not connected")


class Place:
    """A gate on a fake listener, with a clock, counting the clients it rejected."""

    def __init__(self, limit: int = 2, allowed: tuple[str, ...] = ()) -> None:
        self.listener, self.clock, self.sessions = Listener(), Clock(), set[Any]()
        self.pauses = {"limit": 0, "descriptors": 0}
        self.away = 0
        self.cost = 0.0
        """Seconds that rejecting a client takes."""
        Turnstile(self.listener, self.clock)
        self.gate = Gate(
            *(self.listener, self.sessions, limit, self.clock, self.pauses),
            *(list(map(network, allowed)), self.turn_away),
        )

    def turn_away(self, reason: str) -> None:
        assert reason == "not_allowed"
        self.away += 1
        self.clock.advance(self.cost)

    def comes(self, *addresses: str) -> list[Caller]:
        """Add a waiting client for each address."""
        callers = [Caller() for _ in addresses]
        self.listener.waiting += [(caller, (address, 99)) for caller, address in zip(callers, addresses, strict=True)]
        return callers

    def accept(self) -> int:
        """Accept until no client is left, as a port does in its turn; return how many were accepted."""
        before = len(self.sessions)
        self.listener.doRead()
        with pytest.raises(BlockingIOError) as raised:
            while True:
                client, _ = self.listener.socket.accept()
                self.sessions.add(client)
        assert raised.value.errno == errno.EAGAIN
        return len(self.sessions) - before


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The lines that the gate and the limit log, each as "level: text" or "level, kind: text"."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        if event.get("log_namespace", "").startswith("fooproxy.relay.admission"):
            kind = f", {event['limited']}" if "limited" in event else ""
            lines.append(f"{event['log_level'].name}{kind}: {event['log_format'].format(**event)}")

    publisher.addObserver(observe)
    yield lines
    publisher.removeObserver(observe)


def test_a_batch_does_not_overshoot_the_limit_and_a_session_that_ends_makes_room() -> None:
    place = Place(limit=2)
    place.comes(*["192.0.2.1"] * 5)
    assert place.accept() == 2
    assert not place.listener.reading
    place.gate.resume()
    assert not place.listener.reading
    place.sessions.pop()
    place.gate.resume()
    assert place.listener.reading
    assert place.accept() == 1
    assert place.pauses == {"limit": 2, "descriptors": 0}


def test_the_gate_is_the_socket_in_everything_else() -> None:
    assert Place().listener.socket.getsockname() == "the socket's own"


def test_an_error_that_is_none_of_its_business_is_passed_on() -> None:
    place = Place()
    place.listener.waiting = [OSError(errno.ECONNABORTED, "gone")]
    with pytest.raises(OSError, match="gone"):
        place.listener.socket.accept()
    assert place.listener.reading and not any(place.pauses.values())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_accepting_waits_and_is_tried_again(number: int, logged: list[str]) -> None:
    place = Place()
    place.listener.waiting = [OSError(number, os.strerror(number)) for _ in range(3)]
    place.comes("192.0.2.1")
    for _ in range(3):
        assert place.accept() == 0
        assert not place.listener.reading
        place.clock.advance(RETRY)
        assert place.listener.reading
    assert place.accept() == 1
    assert place.pauses == {"limit": 0, "descriptors": 3}
    (line,) = logged
    assert line.startswith("warn, pauses of accepting: ") and os.strerror(number) in line


def test_the_log_is_told_once_when_the_limit_is_reached_and_once_when_it_is_over(logged: list[str]) -> None:
    place = Place(limit=2)
    for _ in range(20):
        # The number of sessions stays around the limit.
        place.comes("192.0.2.1", "192.0.2.1")
        place.accept()
        place.clock.advance(CALM / 2)
        place.sessions.pop()
        place.gate.resume()
    assert place.pauses["limit"] == 20
    (line,) = logged
    assert line.startswith("warn, pauses of accepting: ") and "session limit of 2" in line
    place.listener.waiting.clear()
    place.clock.pump([RETRY] * 20)
    (_, line) = logged
    assert line.startswith("info, pauses of accepting: ")
    assert not place.clock.getDelayedCalls()
    place.comes(*["192.0.2.1"] * 5)
    place.accept()
    assert len(logged) == 3


def test_a_gate_that_is_closed_closes_the_socket_and_leaves_nothing_to_be_done() -> None:
    place = Place(limit=1)
    place.comes("192.0.2.1", "192.0.2.1")
    place.accept()
    place.listener.socket.close()
    assert place.listener.closed
    assert not place.clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("address", "comes_in"),
    [
        ("192.0.2.7", True),
        ("192.0.3.7", False),
        ("::ffff:192.0.2.7", True),
        ("::ffff:192.0.3.7", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("fe80::1%eth0", False),
    ],
)
def test_only_clients_from_the_networks_that_are_named_come_in(address: str, comes_in: bool) -> None:
    place = Place(allowed=("192.0.2.0/24", "2001:db8::/32"))
    (caller,) = place.comes(address)
    assert place.accept() == comes_in
    assert caller.open is comes_in
    assert place.away == (not comes_in)


def test_others_do_not_hold_up_those_who_may_come_in_and_do_not_use_up_the_limit(logged: list[str]) -> None:
    place = Place(limit=3, allowed=("192.0.2.0/24",))
    place.comes(*["192.0.3.1"] * 50, "192.0.2.1", *["192.0.3.1"] * 40, "192.0.2.1")
    assert place.accept() == 2
    assert place.away == 90
    assert not any(place.pauses.values())
    # The log leaves out most of these.
    assert logged == 90 * ["info, rejected clients: rejected a client from 192.0.3.1, which no --allow covers"]


def test_so_many_others_at_once_let_everything_else_have_its_turn() -> None:
    place = Place(allowed=("192.0.2.0/24",))
    place.cost = SHARE / 10
    place.comes(*["192.0.3.1"] * 100, "192.0.2.1")
    turns = 0
    while not place.accept():
        turns += 1
    assert turns >= 5


def test_a_connection_that_we_made_ourselves_is_closed_and_counted_and_told(logged: list[str]) -> None:
    listener, reasons = Listener(), list[str]()
    trail = Trail()
    Gate(listener, set(), 5, Clock(), {}, (), reasons.append, trail)
    us, them, ours = Caller(), Caller(), Caller()
    ours.name = ("127.0.0.1", 99)
    trail.listens(us)
    for _ in range(3):
        trail.note(ours, them.name)
        listener.waiting = [(us, ("127.0.0.1", 99)), (them, ("127.0.0.1", 98))]
        assert listener.socket.accept()[0] is them
    assert them.open and not us.open
    assert reasons == ["loop"] * 3
    # The log leaves out most of these.
    assert len(logged) == 3
    assert logged[0].startswith("warn, connections of the proxy to itself: ") and "--forward" in logged[0]


def two_listeners() -> tuple[Gates, set[Any], list[Listener]]:
    """Two listeners with a gate each, and a limit of one session for both."""
    gates, sessions, listeners = Gates(), set[Any](), [Listener(), Listener()]
    for listener in listeners:
        gates.add(Gate(listener, sessions, 1, Clock(), {"limit": 0}))
    return gates, sessions, listeners


def test_listeners_share_one_limit() -> None:
    gates, sessions, (one, other) = two_listeners()
    one.waiting, other.waiting = [(Caller(), ("192.0.2.1", 1))], [(Caller(), ("192.0.2.2", 2))]
    sessions.add(one.socket.accept()[0])
    assert gates.are_open
    with pytest.raises(BlockingIOError):
        other.socket.accept()
    assert not gates.are_open
    sessions.clear()
    gates.resume()
    assert gates.are_open
    other.socket.accept()


def test_listeners_take_turns_when_a_session_ends() -> None:
    gates, sessions, listeners = two_listeners()
    sessions.add("the only one")
    resumed: list[Listener] = []
    for listener in listeners:
        listener.resumeProducing = partial(resumed.append, listener)  # type: ignore[method-assign]
    for _ in range(2):
        for listener in listeners:
            with pytest.raises(BlockingIOError):
                listener.socket.accept()
        sessions.clear()
        gates.resume()
        sessions.add("the next one")
    first, second = resumed[:2]
    assert first is not second
    assert resumed[2:] == [second, first]


def test_a_proxy_that_was_its_own_client_says_so_for_fifteen_seconds() -> None:
    listener, other, clock = Listener(), Listener(), Clock()
    trail = Trail()
    us, ours = Caller(), Caller()
    ours.name = ("127.0.0.1", 99)
    gates = Gates()
    gates.add(Gate(other, set(), 5, clock, {}))
    gates.add(Gate(listener, set(), 5, clock, {}, (), lambda reason: None, trail))
    assert not gates.loop
    trail.listens(us)
    trail.note(ours, us.name)
    listener.waiting = [(us, ("127.0.0.1", 99))]
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    clock.advance(15)
    assert gates.loop
    clock.advance(0.1)
    assert not gates.loop


def test_a_client_on_a_unix_socket_is_allowed_whatever_the_networks() -> None:
    place = Place(allowed=("192.0.2.0/24",))
    place.listener.waiting = [(Caller(), "")]
    assert place.accept() == 1


def test_a_listener_is_open_only_if_all_are() -> None:
    gates, sessions, (one, _) = two_listeners()
    sessions.add("the only one")
    with pytest.raises(BlockingIOError):
        one.socket.accept()
    assert not gates.are_open


# The limit


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft and the hard limit of file descriptors."""
    found = [1024, 2164]

    def change(which: int, to: tuple[int, int]) -> None:
        found[:] = to

    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(found))
    monkeypatch.setattr(resource, "setrlimit", change)
    return found


@pytest.mark.parametrize(
    ("asked", "connections", "limit"),
    [
        (None, None, 1000),
        (1000, None, 1000),
        (300, None, 300),
        # A server that has fewer connections leaves descriptors for clients that wait.
        (None, 500, 1500),
        (None, 1500, 1000),
        (1500, 500, 1500),
    ],
)
def test_there_may_be_as_many_sessions_as_the_hard_limit_of_descriptors_allows(
    limits: list[int], logged: list[str], asked: int | None, connections: int | None, limit: int
) -> None:
    assert session_limit(asked, connections) == limit
    assert limits == [2164, 2164]
    assert not logged


@pytest.mark.parametrize(
    ("asked", "connections", "limit", "needed"), [(1001, None, 1000, 2166), (1600, 500, 1500, 2264)]
)
def test_more_sessions_than_descriptors_allow_are_lowered_and_the_log_says_what_they_need(
    limits: list[int], logged: list[str], asked: int, connections: int | None, limit: int, needed: int
) -> None:
    assert session_limit(asked, connections) == limit
    (line,) = logged
    assert f"{asked} lowered to {limit}: it needs {needed} file descriptors, but the limit is 2164" in line


@pytest.mark.parametrize(("hard", "warned"), [(166, 0), (165, 1), (100, 1)])
def test_with_too_few_descriptors_there_is_one_session_and_a_warning(
    limits: list[int], logged: list[str], hard: int, warned: int
) -> None:
    limits[:] = hard, hard
    assert session_limit(None) == 1
    assert len(logged) == warned


def test_a_hard_limit_that_cannot_be_had_leaves_the_soft_one(
    limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(which: int, to: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert session_limit(None) == 430


# The gate on real ports


bed = any_bed(*KINDS)


def put_up(bed: AnyBed, limit: int, *allowed: Any) -> None:
    """Install a gate on the relay's port."""
    stats = bed.stats
    sessions = bed.bridge.sessions
    gate = Gate(bed.ports[1], sessions, limit, bed.clock, stats.accepts_paused, allowed, stats.turned_away)
    stats.on_end = lambda session, reason: gate.resume()


@ensure
async def test_clients_beyond_the_limit_wait_and_are_served_when_others_leave(bed: AnyBed) -> None:
    put_up(bed, 3)
    clients = [await bed.client() for _ in range(10)]
    await until(lambda: len(bed.bridge.sessions) == 3 and bed.stats.accepts_paused["limit"])
    for ended in range(10):
        await until(lambda: len(bed.bridge.sessions) == min(3, 10 - ended))  # noqa: B023 (awaited in the same turn)
        assert bed.stats.connections_total == min(10, ended + 3)
        session = next(iter(bed.bridge.sessions))
        session.close()
        await until(lambda: session not in bed.bridge.sessions)  # noqa: B023 (awaited in the same turn)
    await until(lambda: all(map(gone, clients)))


def gone(peer: Peer) -> bool:
    return peer.fin or peer.lost


@ensure
@pytest.mark.parametrize("bed", ["ours", "twisted's", "unix", "ssl"], indirect=True)
async def test_clients_that_are_not_allowed_are_closed_before_there_is_an_upstream_leg(bed: AnyBed) -> None:
    put_up(bed, 3, TEST_NET)
    client = await bed.client()
    if bed.kind == "unix":
        # Unix socket clients have no IP address; file permissions decide who may connect.
        await until(lambda: bed.bridge.sessions)
        return
    await until(lambda: gone(client))
    assert not bed.upstreams.built
    report = bed.stats.report()
    assert (report["connections_active"], report["connections_total"]) == (0, 1)
    assert report["connections_closed"]["not_allowed"] == 1


@ensure
@pytest.mark.parametrize(
    "text", ["127.0.0.1:{}", "localhost:{}", "tcp:127.0.0.1:{}", "tcp:localhost:{}", "tls:localhost:{}"]
)
async def test_a_connection_by_twisteds_transports_is_recognized_when_it_is_accepted(text: str) -> None:
    trail, reasons, inside = Trail(), list[str](), Peers()
    port: Any = reactor.listenTCP(0, inside, interface="127.0.0.1")
    Gate(port, set(), 5, reactor, {}, (), reasons.append, trail)
    attempts: list[Any] = []
    for _ in range(10):
        attempt = client_endpoint(reactor, text.format(port.getHost().port), None, trail).connect(Peers())
        attempt.addBoth(attempts.append)
    await until(lambda: len(reasons) == len(attempts) == 10)
    assert not inside.built
    await until(lambda: all(getattr(peer, "fin", True) for peer in attempts))
    for peer in attempts:
        if isinstance(peer, Peer):
            peer.transport.abortConnection()
    await until(lambda: all(getattr(peer, "lost", True) for peer in attempts))
    await port.stopListening()


# The real process


def allowing(soft: int, hard: int) -> tuple[str, ...]:
    """Return the command that runs twistd with these limits of file descriptors."""
    return ("sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh", *TWISTD, "-n")


@contextmanager
def clients(count: int, port: int) -> Iterator[list[socket.socket]]:
    """Connect `count` clients, and close them at the end of the context."""
    connected: list[socket.socket] = []
    try:
        for _ in range(count):
            connected.append(connect(port))
        yield connected
    finally:
        for client in connected:
            client.close()


@pytest.mark.slow
def test_the_limit_is_what_the_hard_limit_of_descriptors_allows_and_everybody_is_served(tmp_path: Path) -> None:
    command = allowing(soft=170, hard=200)
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=command) as proxy:
        limit = (200 - RESERVE) // 2
        assert proxy.stats("connections_limit") == {"connections_limit": limit}
        with clients(limit + 20, proxy.port) as waiting:
            for client in waiting:
                client.sendall(b"REQ 1 a\n")
            for client in waiting[:limit]:
                assert read_lines(client, 1) == b"ACK 1 a\n"
            settles(lambda: proxy.stats("accepts_paused")["accepts_paused"], {"limit": 1, "descriptors": 0})
            assert "clients_waiting" in proxy.get("/ready")[1]["warnings"]
            assert len(server.sessions) == limit
            for number, client in enumerate(waiting):
                assert number < limit or read_lines(client, 1) == b"ACK 1 a\n"
                client.close()
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
        eventually(lambda: "clients_waiting" not in proxy.get("/ready")[1]["warnings"])
        assert proxy.stats("connections_total", "msg_ack") == {"connections_total": limit + 20, "msg_ack": limit + 20}
        proxy.says(f"session limit of {limit} reached", times=1)


@pytest.mark.slow
def test_limits_of_the_servers_leave_descriptors_for_more_clients(tmp_path: Path) -> None:
    more = ("--pool", "burst", "--upstream-max-connections", "3")
    with FooServer() as server, fooproxy(tmp_path, *more, upstream=server.port, command=allowing(200, 200)) as proxy:
        limit = 200 - RESERVE - 3
        assert proxy.stats("connections_limit") == {"connections_limit": limit}
        # One more than are allowed: those who just fill the limit need not be noticed.
        with clients(limit + 1, proxy.port) as all_at_once:
            for client in all_at_once[:limit]:
                client.sendall(b"REQ 1 a\n")
            assert [read_lines(client, 1) for client in all_at_once[:limit]] == [b"ACK 1 a\n"] * limit
            settles(lambda: proxy.stats("accepts_paused"), {"accepts_paused": {"limit": 1, "descriptors": 0}})


@pytest.mark.slow
def test_a_number_that_the_descriptors_are_not_enough_for_is_lowered_with_a_warning(tmp_path: Path) -> None:
    with fooproxy(tmp_path, "--max-connections", "5000", command=allowing(200, 200)) as proxy:
        limit = (200 - RESERVE) // 2
        assert proxy.stats("connections_limit") == {"connections_limit": limit}
        (line,) = proxy.says("#warn]", times=1)
        assert "--max-connections 5000" in line and f"to {limit}" in line and "LimitNOFILE" in line


@pytest.mark.slow
def test_a_number_that_is_less_is_taken_and_who_leaves_makes_room_at_once(tmp_path: Path) -> None:
    # So many that the last one would time out if each had to wait for the retry timer.
    count = int(PATIENCE / RETRY) + 10
    with FooServer() as server, fooproxy(tmp_path, "--max-connections", "1", upstream=server.port) as proxy:
        with clients(count, proxy.port) as waiting, ThreadPoolExecutor(1) as pool:
            for client in waiting:
                client.sendall(b"REQ 1\n")
            last = pool.submit(read_lines, waiting[-1], 1)
            read_lines(waiting[0], 1)
            settles(lambda: proxy.stats("connections_active"), {"connections_active": 1})
            assert proxy.stats("connections_limit") == {"connections_limit": 1}
            for client in waiting[:-1]:
                assert client is waiting[0] or read_lines(client, 1) == b"ACK 1 \n"
                client.close()
            assert last.result() == b"ACK 1 \n"
        (line,) = proxy.says("#warn]", times=1)
        assert "session limit of 1 reached" in line


@pytest.mark.slow
def test_waiting_clients_do_not_keep_it_from_stopping(tmp_path: Path) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, "--max-connections", "1", upstream=server.port) as proxy,
        clients(3, proxy.port),
    ):
        settles(lambda: proxy.stats("accepts_paused"), {"accepts_paused": {"limit": 1, "descriptors": 0}})
        proxy.process.terminate()
        assert proxy.wait() == 0


@contextmanager
def descriptors(proxy: Proxy, spare: int) -> Iterator[None]:
    """Limit the process to `spare` more file descriptors for the duration of the context."""
    number = resource.RLIMIT_NOFILE
    soft, hard = resource.prlimit(proxy.pid, number)
    resource.prlimit(proxy.pid, number, (lowest_free(proxy) + spare, hard))
    try:
        yield
    finally:
        resource.prlimit(proxy.pid, number, (soft, hard))


def lowest_free(proxy: Proxy) -> int:
    """Return the file descriptor that the process would open next, not counting those of saves and HTTP."""
    looks: list[int] = []

    def the_same_ten_times() -> bool:
        used = {int(entry.name) for entry in Path(f"/proc/{proxy.pid}/fd").iterdir()}
        looks.append(min(set(range(len(used) + 1)) - used))
        return looks[-10:].count(min(looks)) == 10

    eventually(the_same_ten_times)
    return min(looks)


@pytest.mark.slow
def test_without_descriptors_clients_wait_and_those_who_are_there_are_served(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        with closing(connect(proxy.port)) as before:
            before.sendall(b"REQ 1 a\n")
            assert read_lines(before, 1) == b"ACK 1 a\n"
            with descriptors(proxy, 0), closing(connect(proxy.port)) as waiting:
                proxy.says("cannot accept clients")
                waiting.sendall(b"REQ 2 b\n")
                before.sendall(b"REQ 2 a\n")
                assert read_lines(before, 1) == b"ACK 2 a\n"
                used = cpu_seconds(proxy)
                # About three retries happen in this time.
                before.settimeout(2.5)
                with pytest.raises(TimeoutError):
                    before.recv(1)
                assert cpu_seconds(proxy) - used < 1.0
                resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
                assert read_lines(waiting, 1) == b"ACK 2 b\n"
        pauses = proxy.stats("accepts_paused")["accepts_paused"]
        assert pauses["limit"] == 0
        assert 1 <= pauses["descriptors"] <= 10
        proxy.says("cannot accept clients", times=1)


def cpu_seconds(proxy: Proxy) -> float:
    """Return the CPU time in seconds that the process has used so far."""
    fields = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize("forward", ["127.0.0.1:{}", "tcp:127.0.0.1:{}:timeout=30", "localhost:{}"])
def test_without_a_descriptor_for_the_upstream_a_client_waits_for_one_until_the_connect_timeout(
    tmp_path: Path, forward: str
) -> None:
    with FooServer() as server:
        options = ("--connect-timeout", "1", "--forward", forward.format(server.port))
        with fooproxy(tmp_path, *options, upstream=server.port) as proxy:
            with descriptors(proxy, 1), closing(connect(proxy.port)) as client:
                assert read_to_end(client) == b""
            settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
            (failures,) = proxy.stats("upstream_connect_failures").values()
            assert failures == 1
            if not forward.startswith("localhost"):
                proxy.says("Too many open files")
            with closing(connect(proxy.port)) as client:
                client.sendall(b"REQ 1 a\n")
                assert read_lines(client, 1) == b"ACK 1 a\n"


@pytest.mark.slow
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::]:0"])
def test_who_is_not_allowed_is_closed_at_once_and_counted_and_named(tmp_path: Path, listen: str) -> None:
    options = ("--listen", listen, "--allow", "192.0.2.0/24", "--allow", "2001:db8::7", "--log-sessions")
    with FooServer() as server, fooproxy(tmp_path, *options, upstream=server.port) as proxy:
        for _ in range(5):
            with closing(connect(proxy.port)) as client:
                assert client.recv(1) == b""
        settles(lambda: proxy.stats("connections_closed")["connections_closed"]["not_allowed"], 5)
        assert sum(proxy.stats("connections_closed")["connections_closed"].values()) == 5
        assert not server.sessions
        rejected = "rejected a client from 127.0.0.1, which no --allow covers"
        assert all(line.endswith(rejected) for line in proxy.says("a client", times=5))


@pytest.mark.slow
def test_who_is_allowed_is_served(tmp_path: Path) -> None:
    options = ("--allow", "192.0.2.0/24", "--allow", "127.0.0.1")
    with (
        FooServer() as server,
        fooproxy(tmp_path, *options, upstream=server.port) as proxy,
        closing(connect(proxy.port)) as client,
    ):
        client.sendall(b"REQ 1 a\n")
        assert read_lines(client, 1) == b"ACK 1 a\n"
