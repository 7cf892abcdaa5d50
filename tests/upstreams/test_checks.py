"""Checks of servers: what passes, and what follows from results in a row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from fooproxy.upstreams.checks import Checks, Rules
from fooproxy.upstreams.ejection import IN_A_ROW, Ejection
from tests.upstreams.test_servers import Endpoint, World

REQUEST = b"are you there?\n"


class Asking:
    """A question in a language of its own: to be answered with ``yes``."""

    request = REQUEST

    def hear(self, chunk: bytes) -> bool | None:
        return None if chunk == b"..." else chunk == b"yes"


class Transport(StringTransport):
    """One end of a connection to a server, which answers as it was told to."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        super().write(data)
        for chunk in self.server.says:
            self.protocol.dataReceived(chunk)
        if self.server.closes:
            self.lose()

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.server.ends.append("closed")
        self.lose()

    def abortConnection(self) -> None:
        self.server.ends.append("aborted")

    def lose(self) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(Failure(ConnectionDone()))


class Server(Endpoint):
    """A server that says something when it is asked."""

    says: tuple[bytes, ...] = (b"yes",)
    closes = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.transports: list[Transport] = []
        self.ends: list[str] = []

    def connect(self, factory: Factory) -> Deferred[Any]:
        if self.mode != "up":
            return super().connect(factory)
        self.tries.append(self.clock.seconds())
        transport = Transport(self)
        self.transports.append(transport)
        protocol: Any = factory.buildProtocol(None)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return succeed(protocol)


class Case(World):
    """Servers that are checked from the start."""

    def __init__(self, count: int = 2, ask: Callable[[], Any] | None = Asking, **rules: Any) -> None:
        super().__init__(*["up"] * count)
        self.peers = [Server(self.clock) for _ in self.endpoints]
        for server, peer in zip(self.servers, self.peers, strict=True):
            where: Any = peer
            server._endpoint = where
        self.tally = {"passed": 0, "failed": 0}
        self.checks = Checks(Rules(**rules), self.clock, Random(1), self.tally, ask)
        for server in self.servers:
            self.checks.join(server)
        self.checks.start()

    def last(self, number: int = 0) -> dict[str, Any]:
        check = self.servers[number].check
        assert check is not None
        return check.report()


def test_a_server_that_answers_is_up_without_any_client() -> None:
    case = Case()
    assert case.states == ["unknown", "unknown"]
    assert case.last()["result"] is None
    case.pass_time(1)
    assert case.states == ["up", "up"]
    assert (case.last()["result"], case.last()["last_error"], case.last()["in_a_row"]) == ("passed", None, 1)


def test_a_check_asks_once_and_closes_in_order() -> None:
    case = Case(1)
    case.pass_time(1)
    assert [transport.value() for transport in case.peers[0].transports] == [REQUEST]
    assert case.peers[0].ends == ["closed"]


def test_a_reply_may_come_in_pieces() -> None:
    case = Case(1)
    case.peers[0].says = (b"...", b"...", b"yes", b"more")
    case.pass_time(1)
    assert case.last()["result"] == "passed"


@pytest.mark.parametrize(
    ("says", "closes", "why"),
    [
        ((b"no",), False, "its answer to a request is not a reply"),
        ((), True, "it closes the connection and does not answer a request"),
        ((), False, "it has not answered a request within 5 s"),
    ],
)
def test_a_server_that_does_not_answer_rightly_fails(says: tuple[bytes, ...], closes: bool, why: str) -> None:
    case = Case()
    case.peers[0].says, case.peers[0].closes = says, closes
    case.pass_time(8)
    assert (case.last()["result"], case.last()["last_error"]) == ("failed", why)
    assert case.peers[0].ends[0] == "closed"
    assert case.states == ["unknown", "up"]
    case.pass_time(10)
    assert case.states == ["down", "up"]
    assert (case.servers[0].error, case.servers[0].reason) == (why, "upstream_check")


@pytest.mark.parametrize(("mode", "why"), [("down", "Connection was refused"), ("slow", "no answer within 5 s")])
@pytest.mark.parametrize("ask", [Asking, None])
def test_a_server_that_cannot_be_connected_fails(mode: str, why: str, ask: Any) -> None:
    case = Case(ask=ask)
    case.peers[0].mode = mode
    case.pass_time(18)
    assert case.states == ["down", "up"]
    assert why in case.last()["last_error"]


def test_a_check_that_only_connects_asks_nothing_and_sees_whether_the_connection_stays() -> None:
    case = Case(ask=None)
    case.peers[0].closes = True
    case.pass_time(2)
    assert [transport.value() for transport in case.peers[0].transports] == [b""]
    assert case.states == ["up", "up"]
    assert case.peers[0].ends == ["closed"]


def test_a_server_that_fails_three_checks_gets_no_clients_until_two_have_passed() -> None:
    with capturedLogs() as events:
        case = Case()
        case.peers[0].says = (b"no",)
        case.pass_time(8)
        case.join(10)
        assert all(case.served)
        case.pass_time(6)
        before = case.served[0]
        case.join(10)
        assert case.served[0] == before
        case.peers[0].says = (b"yes",)
        case.pass_time(5.5)
        assert case.states == ["down", "up"]
        case.pass_time(5.5)
        assert case.states == ["up", "up"]
        case.pass_time(10)
        case.counts[0].load = 0
        case.join(10)
        assert case.served[0] > before
    assert [event["log_format"] for event in events] == [
        "upstream {upstream} fails its checks: {error}",
        "connected to upstream {upstream} again",
    ]


def test_a_single_failure_between_checks_that_pass_changes_nothing() -> None:
    case = Case(1, rise=2, fall=2)
    for answer in (b"yes", b"no", b"yes", b"no", b"yes"):
        case.peers[0].says = (answer,)
        case.pass_time(5)
    assert case.tally["failed"] >= 1
    assert case.states == ["up"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_checks_never_take_the_last_server_away(count: int) -> None:
    case = Case(count)
    for peer in case.peers:
        peer.says = (b"no",)
    case.pass_time(18)
    assert case.states == ["down"] * count
    case.join(10)
    assert sum(case.served) == 10
    # What says so has to be right: clients are served.
    assert case.all.unreachable(10) is None


def test_a_server_that_fails_checks_serves_when_the_others_cannot_be_connected() -> None:
    case = Case()
    case.peers[0].says = (b"no",)
    case.pass_time(18)
    case.peers[1].mode = "down"
    case.join(10)
    assert (case.served, case.failed) == ([10, 0], 0)


def test_a_backup_comes_before_a_server_that_fails_checks() -> None:
    case = Case()
    case.all._tiers = [[case.servers[0]], [case.servers[1]]]
    case.peers[0].says = (b"no",)
    case.pass_time(18)
    case.join(5)
    assert case.served == [0, 5]


def test_checks_count_only_as_checks() -> None:
    case = Case()
    case.peers[0].says = (b"no",)
    case.pass_time(30)
    passed, failed = (sum(count.checks[word] for count in case.counts) for word in ("passed", "failed"))
    assert case.tally == {"passed": passed, "failed": failed}
    assert passed >= 5 and failed >= 5
    assert case.counts[1].checks["failed"] == 0
    assert not any(count for each in case.counts for count in each.connect_failures.values())
    assert not any(each.ejections for each in case.counts)


def test_servers_are_checked_every_few_seconds_and_not_at_the_same_instant() -> None:
    case = Case(4)
    case.pass_time(52)
    starts = [peer.tries for peer in case.peers]
    assert all(10 <= len(times) <= 12 for times in starts)
    assert len({time for times in starts for time in times}) == sum(map(len, starts))
    gaps = {round(later - first, 2) for times in starts for first, later in pairwise(times)}
    assert len(gaps) > 5 and min(gaps) >= 4.4 and max(gaps) <= 5.6


def test_a_check_that_hangs_is_over_before_the_next_begins() -> None:
    case = Case(1, interval=2.0, timeout=2.0)
    case.peers[0].says = ()
    case.pass_time(30)
    opened = [transport for transport in case.peers[0].transports if not transport.disconnecting]
    assert len(opened) <= 1
    assert 10 <= len(case.peers[0].transports) <= 16


def test_a_peer_that_does_not_close_after_us_is_aborted() -> None:
    case = Case(1)
    case.peers[0].says = ()
    case.pass_time(0.9)
    (transport,) = case.peers[0].transports
    transport.protocol, talking = None, transport.protocol
    case.pass_time(8)
    assert case.peers[0].ends[:2] == ["closed", "aborted"]
    talking.connectionLost(Failure(ConnectionDone()))


def test_a_check_brings_back_a_server_that_could_not_be_connected() -> None:
    case = Case(1)
    case.peers[0].mode = "down"
    case.servers[0].failed(ConnectionRefusedError())
    case.pass_time(1)
    assert case.servers[0].failing
    case.peers[0].mode = "up"
    case.pass_time(6)
    assert not case.servers[0].failing


def test_a_server_that_was_taken_out_for_its_requests_comes_back_when_it_has_answered_a_check() -> None:
    case = Case()
    ejection = Ejection(case.servers, case.counts, case.clock.seconds)
    for _ in range(IN_A_ROW):
        ejection.ended(0, True, float("-inf"))
    case.peers[0].says = (b"no",)
    case.pass_time(8)
    assert case.servers[0].ejected
    assert not any(case.counts[0].connect_failures.values())
    case.peers[0].says = (b"yes",)
    case.pass_time(20)
    assert not case.servers[0].ejected


def test_a_server_whose_connections_fail_too_is_up_only_when_both_work() -> None:
    case = Case()
    case.peers[0].mode = "down"
    case.pass_time(18)
    case.peers[1].mode = "down"
    case.join()
    assert case.servers[0].failing and case.servers[0].doubted
    case.peers[0].mode, case.peers[0].says = "up", (b"no",)
    case.pass_time(20)
    assert not case.servers[0].failing
    assert case.states[0] == "down"
    case.peers[0].says = (b"yes",)
    case.pass_time(14)
    assert case.states[0] == "up"


def test_nothing_is_checked_after_the_end_and_nothing_stays_open() -> None:
    case = Case()
    case.peers[0].says = ()
    case.pass_time(2)
    case.checks.leave(case.servers[1])
    case.checks.stop()
    before = dict(case.tally)
    assert case.peers[0].ends == ["closed"]
    case.pass_time(20)
    assert case.tally == before
    assert sum(len(peer.tries) for peer in case.peers) == 2


def test_a_server_that_joins_later_is_checked_too() -> None:
    case = Case()
    case.checks.leave(case.servers[0])
    case.checks.join(case.servers[0])
    case.pass_time(1.1)
    assert case.last()["result"] == "passed"


@pytest.mark.parametrize(("interval", "over"), [(60.0, 1.0), (0.4, 0.4)])
def test_the_first_checks_are_spread_over_a_second_or_the_interval_if_that_is_less(
    interval: float, over: float
) -> None:
    case = Case(4, interval=interval, timeout=interval)
    case.pass_time(over + 0.02)
    step = over / 4
    for number, peer in enumerate(case.peers):
        assert number * step <= peer.tries[0] <= (number + 1) * step + 0.02


def test_the_first_check_of_a_server_that_joins_is_within_a_second_and_not_at_once() -> None:
    case = Case(2, interval=60.0)
    case.checks.leave(case.servers[0])
    before = case.clock.seconds()
    case.checks.join(case.servers[0])
    case.clock.advance(0)
    assert not case.peers[0].tries
    case.pass_time(1.01)
    assert before < case.peers[0].tries[0] <= before + 1


def test_a_server_that_joins_while_nothing_is_checked_is_not_checked() -> None:
    case = Case(2)
    case.checks.leave(case.servers[0])
    case.checks.stop()
    case.checks.join(case.servers[0])
    case.pass_time(10)
    assert not any(peer.tries for peer in case.peers)
    case.checks.start()
    case.pass_time(1.1)
    assert all(peer.tries for peer in case.peers)


def test_exactly_so_many_results_in_a_row_change_the_state() -> None:
    case = Case(1, interval=1.0, fall=2, rise=3)
    case.peers[0].says = (b"no",)
    found: dict[bool, list[tuple[int, bool]]] = {False: [], True: []}
    for says in (b"no", b"yes"):
        case.peers[0].says = (says,)
        for _ in range(4):
            seen = sum(case.tally.values())
            while sum(case.tally.values()) == seen:
                case.pass_time(0.05)
            found[says == b"yes"].append((case.last()["in_a_row"], case.servers[0].doubted))
    assert found[False] == [(1, False), (2, True), (3, True), (4, True)]
    assert found[True] == [(1, True), (2, True), (3, False), (4, False)]


def test_each_failure_of_a_server_in_doubt_renews_the_reason() -> None:
    case = Case(1, interval=1.0, fall=2, rise=3)
    case.peers[0].says = (b"no",)
    case.pass_time(5)
    assert case.servers[0].error == "its answer to a request is not a reply"
    case.peers[0].says = (b"yes",)
    seen = case.tally["passed"]
    while case.tally["passed"] == seen:
        case.pass_time(0.05)
    case.peers[0].says, case.peers[0].closes = (), True
    case.pass_time(1.2)
    assert case.servers[0].error == "it closes the connection and does not answer a request"


def test_the_time_to_connect_is_part_of_that_for_the_answer() -> None:
    case = Case(1)
    case.peers[0].mode = "slow"
    while not case.peers[0].tries:
        case.pass_time(0.01)
    case.pass_time(3)
    case.peers[0].answer()
    case.pass_time(1.9)
    assert case.last()["result"] is None
    case.pass_time(0.2)
    assert case.last()["last_error"] == "it has not answered a request within 5 s"


def test_a_peer_that_closes_after_us_is_not_aborted_later() -> None:
    case = Case(1, interval=60.0)
    case.pass_time(10)
    assert case.peers[0].ends == ["closed"]


def test_a_check_that_takes_longer_than_the_interval_is_followed_by_the_next_at_once() -> None:
    case = Case(1, interval=1.0, timeout=3.0)
    case.peers[0].says = ()
    case.pass_time(10)
    assert len(case.peers[0].tries) >= 3
