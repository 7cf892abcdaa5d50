"""Under which host names the web side is served: not under one that a page of another site made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from fooproxy.commandline import Options
from fooproxy.web.hosts import Hosts, read_host_name
from fooproxy.web.resource import Web
from tests.helpers.fooserver import PATIENCE, connect, read_to_end
from tests.helpers.proxyprocess import fooproxy

LOOPBACK = [IPv4Address("TCP", "127.0.0.1", 8088), IPv4Address("TCP", "127.1.2.3", 1), IPv6Address("TCP", "::1", 8088)]
LOOPBACK.append(IPv6Address("TCP", "::ffff:127.0.0.1", 8088))
ELSEWHERE = [IPv4Address("TCP", "0.0.0.0", 8088), IPv6Address("TCP", "2001:db8::1", 1), UNIXAddress("/run/http.sock")]


def hosts(*names: str, own: str = "", at: Any = LOOPBACK[0]) -> Hosts:
    found = Hosts(names, own)
    found.listening_at(at)
    return found


@pytest.mark.parametrize("address", LOOPBACK)
@pytest.mark.parametrize(
    "host",
    [
        *(b"localhost", b"localhost:8088", b"LocalHost.", b"localhost.:1", b" localhost "),
        *(b"127.0.0.1", b"127.0.0.1:8088", b"192.0.2.7", b"[::1]", b"[::1]:8088", b"[2001:DB8::1]:80"),
    ],
)
def test_addresses_and_localhost_are_served_on_loopback(address: Any, host: bytes) -> None:
    assert hosts(at=address).refusal([host]) is None


@pytest.mark.parametrize("address", LOOPBACK)
@pytest.mark.parametrize(
    "host",
    [
        *(b"evil.example", b"evil.example:8088", b"localhost.evil.example", b"127.0.0.1.evil.example"),
        *(b"", b":8088", b"localhost:80@evil.example", b"[localhost", b"[evil.example]", b"\xff\xfe", b"a" * 300),
    ],
)
def test_other_names_are_misdirected_on_loopback(address: Any, host: bytes) -> None:
    refusal = hosts(at=address).refusal([host])
    assert refusal is not None and refusal[0] == 421


@pytest.mark.parametrize("host", [b"stats.example", b"STATS.example.:80"])
def test_a_name_that_is_given_is_served(host: bytes) -> None:
    assert hosts("stats.example").refusal([host]) is None
    assert hosts(own="Stats.Example.").refusal([host]) is None


@pytest.mark.parametrize("address", ELSEWHERE)
def test_elsewhere_names_are_checked_only_if_some_are_given(address: Any) -> None:
    assert hosts(at=address).refusal([b"any.example"]) is None
    some = hosts("stats.example", at=address)
    refusals = [some.refusal([host]) for host in (b"any.example", b"stats.example", b"192.0.2.7")]
    assert [refusal and refusal[0] for refusal in refusals] == [421, None, None]


@pytest.mark.parametrize("address", [LOOPBACK[0], ELSEWHERE[0]])
def test_no_host_passes_and_several_are_a_bad_request(address: Any) -> None:
    assert hosts(at=address).refusal([]) is None
    refusal = hosts(at=address).refusal([b"localhost", b"localhost"])
    assert refusal is not None and refusal[0] == 400


@pytest.mark.parametrize("text", ["stats.example", "Stats.Example.", "stats.example:8088", "localhost", "[::1]", "a_b"])
def test_the_option_takes_names_as_headers_have_them(text: str) -> None:
    assert hosts(read_host_name(text)).refusal([text.encode()]) is None


@pytest.mark.parametrize("text", ["", ".", "a b", "http://stats.example/", "*.example", "a..b", "\u0660"])
def test_the_option_refuses_what_no_header_has(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a host name; expected one such as stats\.example"):
        read_host_name(text)


def test_the_option_repeats() -> None:
    options = Options({})
    options.parseOptions(["--http-host", "a.example", "--http-host", "B.example:80"])
    assert options["http-host"] == ["a.example", "b.example"]
    options = Options({"FOOPROXY_HTTP_HOST": "a.example b.example"})
    options.parseOptions([])
    assert options["http-host"] == ["a.example", "b.example"]


def answer(head: bytes, *names: str) -> tuple[int, bytes]:
    """Send a request to a site on loopback; return the status and all of its answer."""
    nothing: Any = None
    clock = Clock()
    site = Web(nothing, nothing, nothing, [], nothing, lambda: 0.0, nothing).site(clock, hosts(*names))
    channel: Any = site.buildProtocol(nothing)
    transport = StringTransport()
    channel.makeConnection(transport)
    channel.dataReceived(head + b"\r\n\r\n")
    clock.advance(0)
    said = transport.value()
    return int(said.split()[1]), said


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /version HTTP/1.0", 200),
        (b"GET /version HTTP/1.1\r\nHost: localhost:1", 200),
        (b"GET /version HTTP/1.1\r\nHost: evil.example", 421),
        (b"GET /version HTTP/1.0\r\nHost: evil.example", 421),
        (b"GET /nothing HTTP/1.1\r\nHost: evil.example", 421),
        (b"POST /version HTTP/1.1\r\nHost: evil.example", 421),
        (b"HEAD /version HTTP/1.1\r\nHost: evil.example", 421),
        (b"GET /version HTTP/1.1\r\nHost: localhost\r\nHost: localhost", 400),
        (b"GET /version HTTP/1.1\r\nHost: evil.example\r\nHost: localhost", 400),
        # The absolute form.
        (b"GET http://localhost:1/version HTTP/1.1\r\nHost: evil.example", 200),
        (b"GET http://evil.example/version HTTP/1.1\r\nHost: localhost", 421),
        (b"GET http://localhost@evil.example/version HTTP/1.1\r\nHost: localhost", 421),
        (b"GET http://evil.example/version HTTP/1.0", 421),
        (b"GET http://localhost/version HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        # Not the absolute form, though it looks a little like it.
        (b"GET /http://localhost/version HTTP/1.1\r\nHost: evil.example", 421),
        (b"GET /version?http://localhost/ HTTP/1.1\r\nHost: evil.example", 421),
    ],
)
def test_a_request_is_served_by_the_host_that_it_is_for(head: bytes, status: int) -> None:
    assert answer(head)[0] == status


def test_a_refusal_is_json_that_repeats_nothing_and_has_all_headers() -> None:
    _, said = answer(b"GET /stats?evil HTTP/1.1\r\nHost: evil.example")
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
    assert json.loads(body) == {"error": "not served under this host name; --http-host adds one"}
    assert b"evil" not in said
    for line in (b"Content-Type: application/json", b"X-Content-Type-Options: nosniff", b"Connection: close"):
        assert line.lower() in head.lower()


def test_a_refusal_of_a_head_request_has_no_body() -> None:
    _, said = answer(b"HEAD / HTTP/1.1\r\nHost: evil.example")
    assert said.endswith(b"\r\n\r\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "served"),
    [
        (["--http", "127.0.0.1:0"], ["localhost"]),
        (["--http", "tcp:0:interface=127.0.0.1"], ["localhost"]),
        (["--http", "localhost:0", "--http-host", "stats.example"], ["localhost", "stats.example"]),
    ],
)
def test_the_real_process_serves_only_the_names_it_should(tmp_path: Path, more: list[str], served: list[str]) -> None:
    with fooproxy(tmp_path, *more) as proxy:
        statuses = {name: asked(proxy.http_port, name) for name in ("localhost", "stats.example", "evil.example")}
    assert [name for name, status in statuses.items() if status == 200] == served
    assert statuses["evil.example"] == 421


def asked(port: int, name: str) -> int:
    with connect(port) as client:
        client.settimeout(PATIENCE)
        client.sendall(f"GET /connections HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n".encode())
        return int(read_to_end(client).split()[1])
