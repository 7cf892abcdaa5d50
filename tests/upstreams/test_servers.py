"""Several servers: each client is connected to one of them, as long as one can be had."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionRefusedError, TimeoutError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from fooproxy.upstreams.balance import Least
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers

TIMEOUT = 5.0


class Endpoint:
    """A server that is ``up``, ``down`` (refuses), ``silent`` (never answers), or ``slow`` (answers when told to)."""

    def __init__(self, clock: Clock, mode: str = "up") -> None:
        self.clock = clock
        self.mode = mode
        self.tries: list[float] = []
        self.slow: list[tuple[Deferred[Any], Factory]] = []
        self.lines: list[Line] = []

    def connect(self, factory: Factory) -> Deferred[Any]:
        self.tries.append(self.clock.seconds())
        if self.mode == "down":
            return fail(ConnectionRefusedError())
        if self.mode == "up":
            return succeed(self._connected(factory))
        attempt: Deferred[Any] = Deferred()
        self.slow.append((attempt, factory))
        return attempt

    def answer(self) -> None:
        attempt, factory = self.slow.pop(0)
        attempt.callback(self._connected(factory))

    def _connected(self, factory: Factory) -> Any:
        protocol: Any = factory.buildProtocol(None)
        self.lines.append(Line(protocol))
        protocol.makeConnection(self.lines[-1])
        return protocol


class Line(StringTransport):
    """A connection that is gone as soon as it is closed."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.is_lost = False

    def loseConnection(self) -> None:
        self.is_lost = True
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Watched(Protocol):
    """A session's end of a connection."""

    when_lost: Any = staticmethod(lambda: None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.when_lost()


class Counts:
    def __init__(self) -> None:
        self.load = self.in_flight = self.stuck = self.ejections = 0
        self.waits = 0
        self.replied = float("-inf")
        self.checks = {"passed": 0, "failed": 0}
        self.connect_failures = dict.fromkeys(["refused", "timeout", "unreachable"], 0)

    def waiting(self, since: float) -> int:
        return self.waits

    def is_answering(self, since: float) -> bool:
        return self.replied > since


class Client:
    def __init__(self, host: str = "192.0.2.1") -> None:
        self.host = host
        self.server: Server | None = None

    def served_by(self, server: Server) -> None:
        self.server = server


class World:
    def __init__(
        self,
        *modes: str,
        weights: tuple[int, ...] = (),
        backups: tuple[int, ...] = (),
        limits: tuple[int, ...] = (),
        queue_timeout: float = 10.0,
    ) -> None:
        self.clock = Clock()
        self.endpoints = [Endpoint(self.clock, mode) for mode in modes]
        self.counts = [Counts() for _ in modes]
        self.servers: list[Server] = []
        for number, endpoint in enumerate(self.endpoints):
            where: Any = endpoint
            weight, backup = weights[number] if weights else 1, number in backups
            limit = limits[number] if limits else 0
            name = f"server-{number}"
            server = Server(where, name, self.clock, number=number, weight=weight, backup=backup, limit=limit)
            server.counted_by(self.counts[number])
            self.servers.append(server)
        self.all = Servers(self.servers, self.clock, TIMEOUT, Least(Random(1)), queue_timeout)
        self.clients: list[Client] = []
        self.results: list[Any] = []

    def join(self, count: int = 1, stay: bool = True) -> Deferred[Any]:
        """Connect clients, of which each stays; return the last one's Deferred."""
        connecting: Deferred[Any] = Deferred()
        for _ in range(count):
            client = Client()
            self.clients.append(client)
            connecting = self.all.connect(Factory.forProtocol(Watched), client)
            connecting.addBoth(self.results.append)
            if stay and client.server is not None:
                self.counts[client.server.number].load += 1
        return connecting

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)

    @property
    def served(self) -> list[int]:
        """How many clients each server got."""
        numbers = [client.server.number for client in self.clients if client.server is not None]
        return [numbers.count(number) for number in range(len(self.servers))]

    @property
    def failed(self) -> int:
        return sum(isinstance(result, Failure) for result in self.results)

    @property
    def states(self) -> list[str]:
        return [server.state for server in self.servers]


def test_clients_are_shared_out_among_the_servers() -> None:
    world = World("up", "up", weights=(3, 1))
    world.join(40)
    assert world.served == [30, 10]
    assert world.states == ["up", "up"]


def test_a_client_of_a_server_that_refuses_gets_the_next_one_at_once() -> None:
    world = World("down", "up")
    world.join(20)
    assert world.served == [0, 20]
    assert world.failed == 0


def test_a_client_of_a_server_that_does_not_answer_gets_the_next_one_after_a_second() -> None:
    world = World("silent", "up")
    world.join(8)
    world.pass_time(1.1)
    assert world.served == [0, 8]
    # Nobody else is made to wait for it.
    world.join(20)
    assert world.served == [0, 28]
    assert world.counts[0].connect_failures["timeout"] >= 1


def test_the_last_server_has_all_the_time_that_is_left() -> None:
    world = World("silent", "slow")
    world.servers[1].connecting = -1
    world.join()
    world.pass_time(4)
    assert not world.results
    world.endpoints[1].answer()
    assert (world.served, world.failed) == ([0, 1], 0)


def test_a_server_that_fails_is_left_alone_but_for_single_attempts_that_get_rare() -> None:
    world = World("down", "up")
    world.join()
    for _ in range(600):
        world.join(5)
        world.pass_time(0.1)
    assert world.failed == 0
    assert 8 <= len(world.endpoints[0].tries) <= 20
    *_, before, last = world.endpoints[0].tries
    assert last - before >= 4


def test_three_failures_in_a_row_make_a_server_down_and_fewer_do_not() -> None:
    with capturedLogs() as events:
        world = World("down", "up")
        while not world.endpoints[0].tries:
            world.join()
        assert world.states[0] == "unknown"
        world.clock.advance(0.04)
        world.endpoints[0].mode = "up"
        world.pass_time(1)
        assert world.states[0] == "up"
        assert world.servers[0].since < 1
        assert not events
        world.endpoints[0].mode = "down"
        while world.servers[0].failures < 3:
            world.join()
            world.pass_time(0.05)
        assert world.states == ["down", "up"]
        assert world.servers[0].error is not None and world.all.error is None
        assert world.all.counts == (1, 2)
    assert [event["log_format"] for event in events] == ["cannot connect to upstream {upstream}: {error}"]
    assert events[0]["upstream"] == "server-0"


def test_a_server_that_is_back_is_found_without_a_client_and_gets_its_share_slowly() -> None:
    world = World("down", "up")
    world.join(40)
    world.pass_time(5)
    assert world.states[0] == "down"
    world.endpoints[0].mode = "up"
    for _ in range(1500):
        if not world.servers[0].failing:
            break
        # The peer keeps the connection of the trial.
        world.pass_time(0.01)
    assert not world.servers[0].failing
    assert world.served[0] == 0
    world.join(10)
    assert 0 < world.served[0] <= 8
    world.pass_time(12)
    assert world.states == ["up", "up"]
    world.join(60)
    assert abs(world.served[0] - world.served[1]) <= 2


def test_a_backup_gets_clients_only_while_no_other_server_can() -> None:
    world = World("up", "up", "up", backups=(2,))
    world.join(20)
    assert world.served[2] == 0
    world.endpoints[0].mode = world.endpoints[1].mode = "down"
    world.join(5)
    assert world.served[2] == 5
    world.endpoints[0].mode = "up"
    world.pass_time(15)
    world.join(5)
    assert world.served[2] == 5


def test_when_all_are_down_clients_wait_and_share_the_attempts() -> None:
    world = World("down", "down")
    world.join(500)
    world.pass_time(3)
    assert not world.results
    assert all(5 <= len(endpoint.tries) <= 15 for endpoint in world.endpoints)
    assert world.all.state == "down"
    assert len(world.all.waiting) == 500
    assert world.all.oldest_wait == pytest.approx(3, abs=0.02)
    assert world.all.unreachable(10) is not None
    world.endpoints[1].mode = "up"
    world.pass_time(1.9)
    assert (world.served, world.failed) == ([0, 500], 0)
    assert world.all.oldest_wait is None
    assert max(map(world.endpoints[1].tries.count, world.endpoints[1].tries)) <= 20


def test_a_client_fails_when_its_time_is_over_and_no_server_could_be_had() -> None:
    world = World("down", "silent")
    world.join()
    world.pass_time(TIMEOUT + 0.1)
    assert world.results[0].check(ConnectionRefusedError, TimeoutError)
    assert not world.all.waiting


def test_a_client_that_leaves_while_it_is_connected_elsewhere_costs_nobody_anything() -> None:
    world = World("silent", "silent")
    connecting = world.join()
    world.pass_time(0.1)
    connecting.cancel()
    assert sum(server.connecting for server in world.servers) == 0
    assert [server.state for server in world.servers] == ["unknown", "unknown"]


def test_clients_that_are_being_connected_count_as_load() -> None:
    world = World("slow", "slow")
    world.join(20)
    assert [len(endpoint.slow) for endpoint in world.endpoints] == [10, 10]
    for endpoint in world.endpoints:
        while endpoint.slow:
            endpoint.answer()
    assert world.served == [10, 10]
    assert [server.connecting for server in world.servers] == [0, 0]


def test_a_probe_asks_all_servers_and_one_that_answers_suffices() -> None:
    world = World("down", "up")
    probing = Deferred.fromCoroutine(world.all.probe(1.0))
    world.pass_time(0.3)
    assert probing.called
    assert world.all.state == "up"
    assert world.all.silence < 1


@pytest.mark.parametrize("modes", [("up",), ("up", "up")])
def test_nothing_is_left_when_all_clients_are_connected(modes: tuple[str, ...]) -> None:
    world = World(*modes)
    world.join(10)
    assert not world.clock.getDelayedCalls()
