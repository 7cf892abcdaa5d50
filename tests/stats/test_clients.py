"""Traffic is added up by client address, exactly for the largest clients, in bounded memory."""

from __future__ import annotations

from fooproxy.stats.clients import MOST
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from fooproxy.web.overview import clients


def session(stats: Stats, address: str, requests: int) -> SessionStats:
    opened = SessionStats(stats)
    opened.accepted(address)
    opened.client.feed(b"REQ 1\n" * requests + b"?\n", 0)
    opened.upstream.feed(b"ACK 1\n" * requests, 1)
    return opened


def test_open_and_ended_sessions_of_an_address_are_summed() -> None:
    stats = Stats(lambda: 0.0)
    session(stats, "10.0.0.1:1", 3).ended("client_closed")
    session(stats, "10.0.0.1:2", 4)
    session(stats, "[::1]:1", 100)
    session(stats, "unix", 0)
    report = clients(stats, 10)
    assert report["total"] == 3
    assert [client["client"] for client in report["clients"]] == ["[::1]", "10.0.0.1", "unix"]
    assert report["clients"][1] == {
        "client": "10.0.0.1",
        "connections_active": 1,
        "connections_total": 2,
        "requests": 7,
        "replies": 7,
        "msg_invalid": 2,
        "bytes_from_client": 46,
        "bytes_from_upstream": 42,
    }
    assert report["other"]["connections_total"] == 0


def test_a_report_changes_nothing() -> None:
    stats = Stats(lambda: 0.0)
    session(stats, "10.0.0.1:1", 3).ended("client_closed")
    session(stats, "10.0.0.1:2", 4)
    session(stats, "10.0.0.2:2", 1).ended("client_closed")
    for limit in (10, 1):
        assert clients(stats, limit) == clients(stats, limit)


def test_those_beyond_the_limit_are_summed_as_others() -> None:
    stats = Stats(lambda: 0.0)
    for number in range(5):
        session(stats, f"10.0.0.{number}:1", number)
    report = clients(stats, 2)
    assert [client["client"] for client in report["clients"]] == ["10.0.0.4", "10.0.0.3"]
    assert (report["other"]["requests"], report["other"]["connections_active"]) == (3, 3)


def test_many_addresses_take_bounded_memory_and_the_largest_stay_exact() -> None:
    stats = Stats(lambda: 0.0)
    for number in range(3 * MOST):
        session(stats, f"10.{number // 65536}.{number // 256 % 256}.{number % 256}:1", 1).ended("client_closed")
        if number % 100 == 0:
            session(stats, "192.0.2.1:5", 10).ended("client_closed")
    report = clients(stats, 1)
    assert report["clients"][0]["client"] == "192.0.2.1"
    assert report["clients"][0]["requests"] == 600
    assert report["other"]["requests"] == 3 * MOST
    assert report["total"] <= MOST


def test_clients_are_ranked_by_requests_and_replies_together() -> None:
    stats = Stats(lambda: 0.0)
    unanswered = SessionStats(stats)
    unanswered.accepted("10.0.0.1:1")
    unanswered.client.feed(b"REQ 1\n" * 3, 0)
    session(stats, "10.0.0.2:1", 2)
    assert [client["client"] for client in clients(stats, 10)["clients"]] == ["10.0.0.2", "10.0.0.1"]


def test_invalid_lines_of_either_side_are_the_clients() -> None:
    stats = Stats(lambda: 0.0)
    opened = session(stats, "10.0.0.1:1", 1)
    opened.upstream.feed(b"?\n?\n", 2)
    assert clients(stats, 1)["clients"][0]["msg_invalid"] == 3


def test_two_thousand_addresses_are_kept_apart() -> None:
    stats = Stats(lambda: 0.0)
    for number in range(2000):
        opened = SessionStats(stats)
        opened.accepted(f"10.0.{number // 256}.{number % 256}:1")
        opened.ended("client_closed")
    report = clients(stats, 1)
    assert report["total"] == 2000
    assert report["other"]["connections_total"] == 1999
