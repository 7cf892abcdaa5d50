"""Asking real name servers on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.names import dns

from fooproxy.net.dns import LookupFailed, NameServers, NoSuchName, Settings, address_of, read_settings, target_of
from tests.helpers.bed import reactor
from tests.helpers.nameserver import NameServer

NAME = "foo.example"


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer() as server:
        yield server


def asking(*servers: NameServer | int, lines: str = "", path: Path = Path("/nowhere")) -> NameServers:
    ports = [server if isinstance(server, int) else server.port for server in servers]
    found = NameServers(reactor, [("127.0.0.1", port) for port in ports], path, times=(0.3, 0.3))
    found._settings = read_settings(lines.splitlines())
    return found


async def addresses(names: NameServers, name: str = NAME, kind: int = dns.A) -> list[str]:
    return sorted(address_of(record) for record in (await names.look_up(name, kind)).records)


async def refusal(names: NameServers, name: str = NAME) -> str:
    with pytest.raises(LookupFailed) as failed:
        await names.look_up(name, dns.A)
    return str(failed.value)


def timers() -> list[Any]:
    """Return those that end soon, as those of questions do."""
    return [call for call in reactor.getDelayedCalls() if call.getTime() - reactor.seconds() < 1]


@pytest_twisted.ensureDeferred
async def test_all_addresses_of_a_name_are_found_with_the_shortest_time_that_they_hold(server: NameServer) -> None:
    server.records[NAME] = [(NAME, dns.Record_A(f"192.0.2.{n}", ttl), ttl) for n, ttl in ((1, 60), (2, 20))]
    answer = await asking(server).look_up(NAME, dns.A)
    assert sorted(map(address_of, answer.records)) == ["192.0.2.1", "192.0.2.2"]
    assert answer.ttl == 20


@pytest_twisted.ensureDeferred
async def test_ipv6_addresses_and_services_are_found(server: NameServer) -> None:
    server.host(NAME, "2001:db8::1")
    server.service("_foo._tcp.example", (10, 5, 8001, "a.example"))
    names = asking(server)
    assert await addresses(names, NAME, dns.AAAA) == ["2001:db8::1"]
    (record,) = (await names.look_up("_foo._tcp.example", dns.SRV)).records
    assert (record.priority, record.weight, record.port, target_of(record)) == (10, 5, 8001, "a.example")


@pytest_twisted.ensureDeferred
async def test_a_truncated_answer_is_asked_for_by_tcp(server: NameServer) -> None:
    server.host(NAME, *[f"192.0.2.{number}" for number in range(100)])
    server.truncates = True
    assert len(await addresses(asking(server))) == 100
    assert server.asked == [(NAME, "udp"), (NAME, "tcp")]


@pytest_twisted.ensureDeferred
async def test_aliases_are_followed_in_an_answer_and_over_several(server: NameServer) -> None:
    server.host("b.example", "192.0.2.1", ttl=50)
    server.alias("a.example", "b.example", ttl=7)
    answer = await asking(server).look_up("a.example", dns.A)
    assert (list(map(address_of, answer.records)), answer.ttl) == (["192.0.2.1"], 7)
    server.records["a.example"] = server.records["a.example"][:1]
    answer = await asking(server).look_up("a.example", dns.A)
    assert (list(map(address_of, answer.records)), answer.ttl) == (["192.0.2.1"], 7)


@pytest_twisted.ensureDeferred
async def test_aliases_without_an_end_are_given_up(server: NameServer) -> None:
    server.alias("a.example", "b.example")
    server.alias("b.example", "a.example")
    assert "alias" in await refusal(asking(server), "a.example")


@pytest_twisted.ensureDeferred
async def test_an_answer_without_records_has_none(server: NameServer) -> None:
    server.records[NAME] = "empty"
    assert not (await asking(server).look_up(NAME, dns.A)).records


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("SERVFAIL", "SERVFAIL from 127.0.0.1"),
        ("REFUSED", "REFUSED from 127.0.0.1"),
        ("NXDOMAIN", "NXDOMAIN"),
        ("silent", "127.0.0.1: no answer within 0.3 s"),
        ("noise", "127.0.0.1: no answer within 0.3 s"),
        ("other", "127.0.0.1: no answer within 0.3 s"),
        ("number", "127.0.0.1: no answer within 0.3 s"),
        ("query", "127.0.0.1: no answer within 0.3 s"),
        ("mute", "127.0.0.1: the server closed the connection"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_good_answer_fails_and_says_why(server: NameServer, word: str, why: str) -> None:
    server.records[NAME] = word
    assert (await refusal(asking(server))).startswith(why)


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_answer_is_passed_over(server: NameServer) -> None:
    server.host(NAME, "192.0.2.1")
    with NameServer() as bad, socket.socket(type=socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        closed.close()
        bad.records[NAME] = "SERVFAIL"
        assert await addresses(asking(bad, port, server)) == ["192.0.2.1"]
        assert await refusal(asking(port)) == "127.0.0.1: no name server listens there"


@pytest_twisted.ensureDeferred
async def test_a_truncated_answer_without_tcp_fails(server: NameServer) -> None:
    server.host(NAME, "192.0.2.1")
    server.truncates = True
    server._streams.shutdown(socket.SHUT_RDWR)
    server._streams.close()
    assert (await refusal(asking(server))).startswith("127.0.0.1: TCP: ")
    assert not timers()


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..example", ".".join(["a" * 60] * 5)])
@pytest_twisted.ensureDeferred
async def test_a_name_that_cannot_be_is_not_asked_for(server: NameServer, name: str) -> None:
    with pytest.raises(NoSuchName):
        await asking(server).look_up(name, dns.A)
    assert not server.asked


@pytest_twisted.ensureDeferred
async def test_the_search_list_completes_names(server: NameServer) -> None:
    lines = "search one.example two.example."
    server.host("foo.two.example", "192.0.2.2")
    server.records["foo.one.example"] = "empty"
    names = asking(server, lines=lines)
    assert await addresses(names, "foo") == ["192.0.2.2"]
    assert [name for name, _ in server.asked] == ["foo.one.example", "foo.two.example"]
    with pytest.raises(NoSuchName):
        await names.look_up("foo.", dns.A)


@pytest.mark.parametrize(
    ("lines", "name", "candidates"),
    [
        ("search a b", "foo", ["foo.a", "foo.b", "foo"]),
        ("search a", "foo.bar", ["foo.bar", "foo.bar.a"]),
        ("search a\noptions edns0 ndots:5", "foo.bar", ["foo.bar.a", "foo.bar"]),
        ("search a", "foo.", ["foo"]),
        ("domain a", "foo", ["foo.a", "foo"]),
        ("", "foo", ["foo"]),
        ("options ndots:x", "foo.bar", ["foo.bar"]),
    ],
)
def test_names_are_completed_as_the_system_does(lines: str, name: str, candidates: list[str]) -> None:
    assert read_settings(lines.splitlines()).candidates(name) == candidates


def test_the_first_three_servers_of_the_file_are_asked() -> None:
    lines = ["# comment", "", "nameserver", *[f"nameserver 192.0.2.{number}" for number in range(5)]]
    assert read_settings(lines).servers == [("192.0.2.0", 53), ("192.0.2.1", 53), ("192.0.2.2", 53)]
    assert read_settings([]).servers == Settings().servers


def test_a_file_that_cannot_be_read_leaves_what_was_known(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\nsearch a\n")
    names = NameServers(reactor, path=path)
    assert names.settings().servers == [("192.0.2.1", 53)]
    path.unlink()
    assert names.settings().search == ["a"]


@pytest_twisted.ensureDeferred
async def test_a_name_that_does_not_exist_in_one_domain_is_looked_for_in_the_next(server: NameServer) -> None:
    server.host("foo.two.example", "192.0.2.2")
    assert await addresses(asking(server, lines="search one.example two.example"), "foo") == ["192.0.2.2"]


@pytest_twisted.ensureDeferred
async def test_a_name_may_be_as_long_as_it_can_be(server: NameServer) -> None:
    name = f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}"
    server.host(name, "192.0.2.1")
    assert await addresses(asking(server), name) == ["192.0.2.1"]


@pytest_twisted.ensureDeferred
async def test_small_and_capital_letters_are_the_same(server: NameServer) -> None:
    server.records[NAME] = [("Foo.EXAMPLE", dns.Record_A("192.0.2.1"), 1)]
    assert await addresses(asking(server), "foo.Example") == ["192.0.2.1"]


@pytest_twisted.ensureDeferred
async def test_a_name_server_may_have_an_ipv6_address() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as closed:
        closed.bind(("::1", 0))
        port = closed.getsockname()[1]
    assert await refusal(NameServers(reactor, [("::1", port)], times=(0.3,))) == "::1: no name server listens there"


@pytest.mark.parametrize("word", ["found", "NXDOMAIN", "mute"])
@pytest_twisted.ensureDeferred
async def test_no_timer_is_left_after_an_answer(server: NameServer, word: str) -> None:
    server.host(NAME, "192.0.2.1")
    if word != "found":
        server.records[NAME] = word
    with suppress(LookupFailed):
        await asking(server).look_up(NAME, dns.A)
    assert not timers()


def test_the_file_is_read_before_anything_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    names = NameServers(reactor, path=path)
    path.unlink()
    assert names.settings().servers == [("192.0.2.1", 53)]


@pytest_twisted.ensureDeferred
async def test_a_look_up_can_be_cancelled(server: NameServer) -> None:
    server.records[NAME] = "silent"
    asked: Deferred[Any] = Deferred.fromCoroutine(asking(server).look_up(NAME, dns.A))
    asked.cancel()
    with pytest.raises(CancelledError):
        await asked
