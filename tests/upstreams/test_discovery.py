"""Servers that are found under a name: what becomes of them as the answers change."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.names import dns
from twisted.python.failure import Failure

from fooproxy.net.dns import Answer, LookupFailed, NoSuchName
from fooproxy.roster import Roster
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.balance import Least
from fooproxy.upstreams.checks import Checks, Rules
from fooproxy.upstreams.discovery import Discovery
from fooproxy.upstreams.ejection import Ejection
from fooproxy.upstreams.forward import Forward, read_forward
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from tests.upstreams.test_servers import TIMEOUT, Endpoint

SERVICE = "_foo._tcp.example"


class Names:
    """Name servers that say what the test wants: records, with a time; an exception; or nothing, `None`."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], Any] = {}
        self.asked: list[str] = []
        self.silent: list[Deferred[Any]] = []

    async def look_up(self, name: str, kind: int) -> Answer:
        self.asked.append(name)
        found = self.answers.get((name.rstrip("."), kind), Answer([], 30))
        if found is None:
            self.silent.append(Deferred())
            await self.silent[-1]
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Answer)
        return found

    def host(self, name: str, *addresses: str, ttl: float = 30) -> None:
        self.answers[name, dns.A] = Answer([dns.Record_A(each) for each in addresses if ":" not in each], ttl)
        self.answers[name, dns.AAAA] = Answer([dns.Record_AAAA(each) for each in addresses if ":" in each], ttl)

    def service(self, *targets: tuple[int, int, int, str], ttl: float = 30) -> None:
        self.answers[SERVICE, dns.SRV] = Answer([dns.Record_SRV(*target) for target in targets], ttl)

    def fails(self, name: str, why: Exception | None = None, kinds: tuple[int, ...] = (dns.A, dns.AAAA)) -> None:
        for kind in kinds:
            self.answers[name, kind] = why or LookupFailed("SERVFAIL from 192.0.2.53")


class Case:
    def __init__(self, *forwards: str, rows: int = 64) -> None:
        self.clock = Clock()
        self.names = Names()
        self.stats = Stats(self.clock.seconds, rows=rows)
        self.modes: dict[str, str] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.all = Servers([], self.clock, TIMEOUT, Least(Random(1)), may_grow=True)
        self.ejection = Ejection(self.all.servers, self.stats.rows, self.clock.seconds)
        self.checks = Checks(Rules(), self.clock, Random(1), self.stats.upstream_checks)
        roster = Roster(self.stats, self.all, self.ejection, self.checks, self.make)
        found = [read_forward(text) for text in forwards or ("dns:foo.example:8001",)]
        self.discovery = Discovery(found, self.names, self.all, roster, self.clock)
        self.sessions: list[SessionStats] = []

    def make(self, forward: Forward, number: int) -> Server:
        endpoint = self.endpoints[forward.address] = Endpoint(self.clock, self.modes.get(forward.address, "up"))
        where: Any = endpoint
        server = Server(where, forward.name, self.clock, number=number, weight=forward.weight, backup=forward.backup)
        server.counted_by(self.stats.rows[number])
        return server

    def start(self, *addresses: str) -> None:
        if addresses:
            self.names.host("foo.example", *addresses)
        self.discovery.start()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.clock.advance(0.1)

    def join(self) -> Deferred[Any]:
        session = SessionStats(self.stats)
        self.sessions.append(session)
        return self.all.connect(Factory.forProtocol(Protocol), session)

    def leave(self) -> None:
        for session in self.sessions:
            session.ended("client_closed")
        self.sessions = []

    @property
    def states(self) -> dict[str, str]:
        return {server.name: server.state for server in self.all.servers}

    @property
    def usable(self) -> list[str]:
        return sorted(server.name for server in self.all.servers if not server.gone)

    @property
    def source(self) -> dict[str, Any]:
        return self.discovery.report()[0]


def lines(events: Any) -> list[str]:
    return [formatEvent(event) for event in events]


A, B, C = "192.0.2.1:8001", "192.0.2.2:8001", "192.0.2.3:8001"


def test_a_name_stands_for_all_its_addresses() -> None:
    case = Case()
    with capturedLogs() as events:
        case.start("192.0.2.2", "192.0.2.1", "2001:db8::1")
    assert case.usable == [A, B, "[2001:db8::1]:8001"]
    assert lines(events) == [f"dns:foo.example:8001 has 3 servers now: {A}, {B}, [2001:db8::1]:8001"]
    for _ in range(30):
        case.join()
    assert {server.connections_active for server in case.stats.servers} == {10}


def test_the_options_of_a_name_are_those_of_its_servers() -> None:
    case = Case("dns:foo.example:8001,weight=7,backup,name=west")
    case.start("192.0.2.1")
    (server,) = case.all.servers
    assert (server.name, server.weight, server.backup) == (f"west@{A}", 7, True)


@pytest.mark.parametrize(("ttl", "due"), [(0, 1), (10, 10), (86_400, 300)])
def test_a_name_is_looked_up_again_when_its_answer_is_over_within_bounds(ttl: float, due: float) -> None:
    case = Case()
    case.names.host("foo.example", "192.0.2.1", ttl=ttl)
    case.start()
    case.pass_time(due - 0.2)
    assert len(case.names.asked) == 2
    case.names.host("foo.example", "192.0.2.1", "192.0.2.2", ttl=ttl)
    case.pass_time(0.4)
    assert case.usable == [A, B]


def test_a_server_that_is_gone_gets_no_new_sessions_and_is_forgotten_when_it_has_none() -> None:
    case = Case()
    case.start("192.0.2.1", "192.0.2.2")
    for _ in range(10):
        case.join()
    b = next(record for record in case.stats.servers if record.name == B)
    before = b.connections_active
    assert before
    case.names.host("foo.example", "192.0.2.1")
    case.pass_time(32)
    assert case.states == {A: "up", B: "draining"}
    assert case.all.counts == (1, 1)
    for _ in range(10):
        case.join()
    assert b.connections_active == before
    case.pass_time(100)
    assert case.states == {A: "up", B: "draining"}
    case.leave()
    case.pass_time(2)
    assert case.states == {A: "up"}
    assert [record.name for record in case.stats.servers] == [A]
    assert case.stats.connections_total == 20


def test_a_server_that_comes_back_before_it_is_forgotten_is_used_again() -> None:
    case = Case()
    case.start("192.0.2.1", "192.0.2.2")
    for _ in range(10):
        case.join()
    case.names.host("foo.example", "192.0.2.1")
    case.pass_time(31)
    case.names.host("foo.example", "192.0.2.1", "192.0.2.2")
    case.pass_time(31)
    assert case.states == {A: "up", B: "up"}


BAD = {
    "empty": Answer([], 30),
    "SERVFAIL": LookupFailed("SERVFAIL from 192.0.2.53"),
    "NXDOMAIN": NoSuchName("NXDOMAIN: there is no such name"),
    "timeout": LookupFailed("no answer within 2 s from 192.0.2.53"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_answer_that_names_no_server_changes_nothing_and_is_told_once(bad: Any) -> None:
    case = Case()
    case.start("192.0.2.1", "192.0.2.2")
    case.names.answers["foo.example", dns.A] = bad
    with capturedLogs() as events:
        case.pass_time(100)
    assert case.usable == [A, B]
    assert not case.discovery.sources[0].gone
    why = str(bad) if isinstance(bad, Exception) else "the answer names no address"
    assert lines(events) == [f"cannot look up dns:foo.example:8001: {why}; keeping the 2 found 30 s ago"]
    found = case.source
    assert found["error"] == why and found["servers"] == [A, B]
    assert found["found_seconds_ago"] == pytest.approx(100, abs=1)
    assert found["failing_seconds"] == pytest.approx(70, abs=1)
    assert case.discovery.failing
    case.names.host("foo.example", "192.0.2.2")
    with capturedLogs() as events:
        case.pass_time(31)
    assert lines(events)[:2] == [
        "looked up dns:foo.example:8001 again",
        f"dns:foo.example:8001 has 1 server now: {B}",
    ]
    assert not case.discovery.failing


def test_a_name_that_cannot_be_looked_up_is_asked_for_again_soon_and_then_less_often() -> None:
    case = Case()
    case.start("192.0.2.1")
    case.names.fails("foo.example")
    case.pass_time(30.5)
    case.names.asked.clear()
    case.pass_time(7)
    assert len(case.names.asked) == 2 * 3
    case.names.asked.clear()
    case.pass_time(300)
    assert 2 * 10 <= len(case.names.asked) <= 2 * 14


def test_addresses_of_a_kind_that_cannot_be_asked_for_are_kept() -> None:
    case = Case()
    case.start("192.0.2.1", "2001:db8::1", "2001:db8::2")
    case.names.host("foo.example", "192.0.2.2")
    case.names.fails("foo.example", kinds=(dns.AAAA,))
    case.pass_time(31)
    assert case.usable == [B, "[2001:db8::1]:8001", "[2001:db8::2]:8001"]


def test_no_answer_takes_the_last_server_away_that_works() -> None:
    case = Case()
    case.start("192.0.2.1")
    case.join()
    case.leave()
    case.modes = {B: "down", C: "down"}
    case.names.host("foo.example", "192.0.2.2", "192.0.2.3")
    case.pass_time(100)
    assert case.states == {A: "draining", B: "down", C: "down"}
    case.join()
    assert case.sessions[0].server is not None and case.sessions[0].server.name == A
    case.leave()
    case.endpoints[B].mode = "up"
    case.pass_time(30)
    assert case.usable == [B, C] and A not in case.states


def test_a_server_that_is_gone_is_forgotten_without_any_client_once_a_new_one_has_been_tried() -> None:
    case = Case()
    case.start("192.0.2.1")
    case.names.host("foo.example", "192.0.2.2")
    case.pass_time(34)
    assert list(case.states) == [B]


def test_without_an_answer_at_the_start_clients_wait_until_there_is_one() -> None:
    case = Case()
    case.names.fails("foo.example")
    with capturedLogs() as events:
        case.start()
        waiting = case.join()
        case.pass_time(3)
    assert lines(events) == [
        "cannot look up dns:foo.example:8001: SERVFAIL from 192.0.2.53; no server is known yet, and clients wait"
    ]
    assert (case.all.state, case.all.reason) == ("down", "upstream_unresolved")
    assert "SERVFAIL" in str(case.all.unreachable(10))
    case.names.host("foo.example", "192.0.2.1")
    case.pass_time(1.5)
    assert waiting.called and not isinstance(waiting.result, Failure)
    assert case.states == {A: "up"}
    assert case.all.unreachable(10) is None
    assert case.all.absence is None


def test_clients_that_have_waited_too_long_fail_because_there_is_no_server() -> None:
    case = Case()
    case.names.answers["foo.example", dns.A] = None
    case.start()
    assert (case.all.state, case.all.error, case.all.reason, case.all.silence) == ("unknown", None, None, 0)
    silent = case.join()
    failed: list[Any] = []
    silent.addErrback(failed.append)
    case.pass_time(TIMEOUT + 0.5)
    assert len(failed) == 1
    case.discovery.stop()
    case.names.fails("foo.example")
    case.discovery.start()
    case.join().addErrback(failed.append)
    case.pass_time(TIMEOUT + 0.5)
    assert failed[1].check(DNSLookupError)


def test_a_service_has_weights_and_the_lowest_priority_comes_first() -> None:
    case = Case(f"srv:{SERVICE},weight=2")
    case.names.service((10, 30, 8001, "a.example"), (10, 10, 8002, "b.example"), (20, 0, 8003, "c.example"))
    for number, name in enumerate("abc", 1):
        case.names.host(f"{name}.example", f"192.0.2.{number}")
    case.start()
    found = {server.name: (server.weight, server.backup, server.priority) for server in case.all.servers}
    a, b, c = "a.example@192.0.2.1:8001", "b.example@192.0.2.2:8002", "c.example@192.0.2.3:8003"
    assert found == {a: (60, False, 0), b: (20, False, 0), c: (2, True, 20)}
    for _ in range(40):
        case.join()
    assert [record.connections_active for record in case.stats.servers] == [30, 10, 0]
    for place in ("192.0.2.1:8001", "192.0.2.2:8002"):
        case.endpoints[place].mode = "down"
    case.join()
    assert case.stats.servers[2].connections_active == 1


def test_new_weights_and_priorities_of_a_service_are_taken() -> None:
    case = Case(f"srv:{SERVICE}")
    for number, name in enumerate("ab", 1):
        case.names.host(f"{name}.example", f"192.0.2.{number}")
    case.names.service((10, 30, 8001, "a.example"), (20, 10, 8001, "b.example"))
    case.start()
    case.names.service((20, 5, 8001, "a.example"), (10, 10, 8001, "b.example"))
    case.pass_time(31)
    a, b = case.all.servers
    assert (a.weight, a.backup, a.priority, b.backup) == (5, True, 20, False)
    case.join()
    assert case.stats.servers[1].connections_active == 1


def test_backups_of_a_service_are_used_by_priority() -> None:
    case = Case(f"srv:{SERVICE}")
    case.modes = {A: "down"}
    for number, name in enumerate("abc", 1):
        case.names.host(f"{name}.example", f"192.0.2.{number}")
    case.names.service((1, 1, 8001, "a.example"), (3, 1, 8001, "b.example"), (2, 1, 8001, "c.example"))
    case.start()
    for _ in range(5):
        case.join()
    assert [record.connections_active for record in case.stats.servers] == [0, 0, 5]


def test_a_target_that_cannot_be_looked_up_is_kept_if_it_was_known() -> None:
    case = Case(f"srv:{SERVICE}")
    case.names.service((1, 1, 8001, "a.example"), (1, 1, 8001, "b.example"), (1, 1, 8001, "c.example"))
    for number, name in enumerate("ab", 1):
        case.names.host(f"{name}.example", f"192.0.2.{number}")
    case.start()
    assert case.usable == [f"a.example@{A}", f"b.example@{B}"]
    case.names.fails("a.example")
    case.pass_time(31)
    assert case.usable == [f"a.example@{A}", f"b.example@{B}"]


def test_a_target_that_cannot_be_looked_up_keeps_its_last_weight() -> None:
    case = Case(f"srv:{SERVICE}")
    case.names.service((1, 2, 8001, "a.example"))
    case.names.host("a.example", "192.0.2.1")
    case.names.host("b.example", "192.0.2.2")
    case.start()
    case.names.service((1, 5, 8001, "a.example"), (1, 1, 8001, "b.example"))
    case.pass_time(31)
    case.names.fails("a.example")
    case.pass_time(31)
    assert {server.name: server.weight for server in case.all.servers} == {f"a.example@{A}": 5, f"b.example@{B}": 1}


@pytest.mark.parametrize("targets", [(), ((0, 0, 8001, ""),), ((0, 0, 0, "a.example"),), ((0, 0, 8001, "x.example"),)])
def test_a_service_without_a_server_to_connect_is_no_good_answer(targets: Any) -> None:
    case = Case(f"srv:{SERVICE}")
    case.names.service((1, 1, 8001, "a.example"))
    case.names.host("a.example", "192.0.2.1")
    case.start()
    case.names.service(*targets)
    case.pass_time(31)
    assert case.usable == [f"a.example@{A}"]
    assert case.discovery.failing


def test_more_servers_than_there_is_room_for_are_left_out_and_told_once() -> None:
    case = Case(rows=4)
    with capturedLogs() as events:
        case.start(*[f"192.0.2.{number}" for number in range(1, 10)])
        case.pass_time(100)
    assert case.usable == [f"192.0.2.{number}:8001" for number in range(1, 5)]
    assert case.source["left_out"] == 5
    assert "dns:foo.example:8001 has 5 more servers than the proxy can use; they are left out" in lines(events)
    assert len(events) == 2


def test_addresses_that_change_for_ever_need_no_more_rows() -> None:
    case = Case(rows=4)
    case.start("192.0.2.1", "192.0.2.2")
    for number in range(3, 60):
        case.join()
        case.leave()
        case.names.host("foo.example", f"192.0.2.{number}", f"192.0.2.{number + 1}")
        case.pass_time(33)
    assert len(case.stats.rows) <= 4
    assert len(case.all.servers) == 2
    assert case.stats.connections_total == 57


def test_one_server_under_two_names_is_used_once() -> None:
    case = Case("dns:foo.example:8001", "dns:bar.example:8001")
    case.names.host("bar.example", "192.0.2.1", "192.0.2.2")
    case.start("192.0.2.1")
    assert case.usable == [A, B]


def test_nothing_is_looked_up_after_the_end() -> None:
    case = Case("dns:foo.example:8001", "dns:bar.example:8001")
    case.names.answers["bar.example", dns.A] = None
    case.start("192.0.2.1")
    case.names.host("foo.example", "192.0.2.2")
    case.pass_time(30.5)
    before = len(case.names.asked)
    case.discovery.stop()
    case.pass_time(400)
    assert len(case.names.asked) == before


def test_a_question_that_is_not_answered_yet_is_given_up_at_the_end() -> None:
    case = Case()
    case.names.answers["foo.example", dns.A] = None
    case.start()
    (silent,) = case.names.silent
    case.discovery.stop()
    assert silent.called


def test_one_timer_looks_after_servers_that_are_gone_and_it_ends_too() -> None:
    case = Case()
    case.start("192.0.2.1", "192.0.2.2")
    for _ in range(10):
        case.join()
    case.names.host("foo.example", "192.0.2.1", ttl=5)
    case.pass_time(45)
    assert case.states == {A: "up", B: "draining"}
    case.discovery.stop()
    assert not case.clock.getDelayedCalls()


def test_servers_that_fail_are_not_tried_more_often_because_another_one_is_gone() -> None:
    case = Case()
    case.start("192.0.2.1")
    case.join()
    case.modes = {B: "down"}
    case.names.host("foo.example", "192.0.2.2")
    case.pass_time(130)
    assert case.states == {A: "draining", B: "down"}
    assert len(case.endpoints[B].tries) <= 30


def test_a_service_that_has_no_servers_says_so_and_no_host_is_asked_for() -> None:
    case = Case(f"srv:{SERVICE}")
    case.names.service((0, 0, 8001, ""))
    case.start()
    assert case.source["error"] == "the answer names no server"
    assert case.names.asked == [SERVICE]


def test_the_targets_of_a_service_are_complete_names() -> None:
    case = Case(f"srv:{SERVICE}")
    case.names.service((1, 1, 8001, "a.example"))
    case.start()
    assert case.names.asked == [SERVICE, "a.example.", "a.example."]


@pytest.mark.parametrize(("service", "host"), [(7, 30), (30, 7)])
def test_a_service_is_looked_up_again_when_the_first_of_its_answers_is_over(service: float, host: float) -> None:
    case = Case(f"srv:{SERVICE}")
    case.names.service((1, 1, 8001, "a.example"), ttl=service)
    case.names.host("a.example", "192.0.2.1", ttl=host)
    case.start()
    case.names.asked.clear()
    case.pass_time(6.8)
    assert not case.names.asked
    case.pass_time(0.4)
    assert case.names.asked[:1] == [SERVICE]


def test_an_address_kind_without_addresses_does_not_hasten_the_next_look_up() -> None:
    case = Case()
    case.names.host("foo.example", "192.0.2.1", ttl=20)
    case.names.answers["foo.example", dns.AAAA] = Answer([], 2)
    case.start()
    case.pass_time(19)
    assert len(case.names.asked) == 2


def test_a_host_is_looked_up_again_when_its_first_kind_of_addresses_is_over() -> None:
    case = Case()
    case.names.host("foo.example", "192.0.2.1", "2001:db8::1", ttl=20)
    case.names.answers["foo.example", dns.AAAA] = Answer([dns.Record_AAAA("2001:db8::1")], 5)
    case.start()
    case.pass_time(5.2)
    assert len(case.names.asked) == 4


def test_a_service_of_which_a_target_cannot_be_looked_up_is_asked_for_again_soon() -> None:
    case = Case(f"srv:{SERVICE}")
    case.names.service((1, 1, 8001, "a.example"), (1, 1, 8001, "b.example"), ttl=300)
    case.names.host("a.example", "192.0.2.1", ttl=300)
    case.names.fails("b.example")
    case.start()
    case.names.host("b.example", "192.0.2.2", ttl=300)
    case.pass_time(30.2)
    assert case.usable == [f"a.example@{A}", f"b.example@{B}"]


def test_a_server_that_is_gone_does_not_come_back_because_its_kind_cannot_be_asked_for() -> None:
    case = Case()
    case.start("192.0.2.1", "2001:db8::1")
    for _ in range(10):
        case.join()
    case.names.host("foo.example", "192.0.2.1")
    case.pass_time(31)
    assert case.usable == [A]
    case.names.fails("foo.example", kinds=(dns.AAAA,))
    case.pass_time(31)
    assert case.usable == [A]


def test_the_servers_that_are_left_out_are_the_same_each_time() -> None:
    case = Case(rows=2)
    case.start("192.0.2.3", "192.0.2.2", "192.0.2.1")
    assert case.usable == [A, B]


def test_the_targets_of_a_backup_service_are_all_backups() -> None:
    case = Case(f"srv:{SERVICE},backup")
    case.names.service((1, 0, 8001, "a.example"))
    case.names.host("a.example", "192.0.2.1")
    case.start()
    (server,) = case.all.servers
    assert (server.backup, server.weight) == (True, 1)


def test_pauses_after_failures_begin_short_again_once_there_was_an_answer() -> None:
    case = Case()
    case.start("192.0.2.1")
    case.names.fails("foo.example")
    case.pass_time(100)
    case.names.host("foo.example", "192.0.2.1", ttl=1)
    case.pass_time(31)
    case.names.fails("foo.example")
    case.pass_time(1)
    case.names.asked.clear()
    case.pass_time(5)
    assert len(case.names.asked) >= 2 * 2


def test_a_name_of_which_no_server_is_known_is_asked_for_every_few_seconds() -> None:
    case = Case()
    case.names.fails("foo.example")
    case.start()
    case.pass_time(60)
    case.names.asked.clear()
    case.pass_time(30)
    assert len(case.names.asked) >= 2 * 5


def test_a_bug_does_not_end_the_looking_up() -> None:
    case = Case()
    case.names.answers["foo.example", dns.A] = ZeroDivisionError()
    with capturedLogs() as events:
        case.start()
    assert "bug" in lines(events)[0]
    case.names.host("foo.example", "192.0.2.1")
    case.pass_time(31)
    assert case.usable == [A]


def test_servers_that_are_found_are_watched_and_checked_like_others() -> None:
    case = Case()
    case.checks.start()
    case.ejection.start(case.clock)
    case.start("192.0.2.1", "192.0.2.2")
    case.pass_time(1.5)
    assert case.states == {A: "up", B: "up"}
    for _ in range(3):
        case.stats.servers[0].when_ended(True, float("-inf"))
    assert case.all.servers[0].ejected
    case.names.host("foo.example", "192.0.2.1")
    case.pass_time(40)
    assert list(case.states) == [A]
    passed = case.stats.upstream_checks["passed"]
    case.pass_time(20)
    assert case.stats.upstream_checks["passed"] - passed <= 5


@pytest.mark.parametrize("address", ["dns:foo.example:65535", "DNS:foo:1", "srv:_foo._tcp.example", "srv:_a._b.c."])
def test_addresses_that_stand_for_several_servers_are_recognized(address: str) -> None:
    assert read_forward(f"{address},weight=2").source is not None


@pytest.mark.parametrize(
    "address",
    [
        *("dns:foo.example", "dns:foo:0", "dns:foo:65536", "dns::8001", "dns:192.0.2.1:8001", "dns:a b:1"),
        *(
            "dns:[::1]:8001",
            "srv:foo.example",
            "srv:_foo.example",
            "srv:_foo._tcp",
            "srv:_foo._tcp.example:1",
            "srv:",
            "srv:_foo.tcp.example",
        ),
    ],
)
def test_wrong_ones_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="does not name a"):
        _ = read_forward(address).source
