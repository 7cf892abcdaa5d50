"""What an operator may write for an address."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import endpoints
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock

from fooproxy.net.addresses import HostPort, client_endpoint, host_port, server_endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8001", HostPort("", 8001)),
        (":8001", HostPort("", 8001)),
        ("localhost:8001", HostPort("localhost", 8001)),
        ("192.0.2.7:8001", HostPort("192.0.2.7", 8001)),
        ("[::1]:8001", HostPort("::1", 8001)),
        ("tcp:8001", None),
        ("unix:/run/foo.sock", None),
        ("nonsense", None),
    ],
)
def test_short_forms_are_told_from_descriptions(text: str, expected: HostPort | None) -> None:
    assert host_port(text) == expected


@pytest.mark.parametrize(
    ("text", "interface", "listens_on"),
    [
        ("8001", "", ("", 8001)),
        ("8001", "127.0.0.1", ("127.0.0.1", 8001)),
        ("[::1]:8001", "127.0.0.1", ("::1", 8001)),
        ("tcp:8001:interface=192.0.2.7", "127.0.0.1", ("192.0.2.7", 8001)),
    ],
)
def test_a_server_listens_where_it_was_told(text: str, interface: str, listens_on: tuple[str, int]) -> None:
    reactor: Any = MemoryReactorClock()
    server_endpoint(reactor, text, interface).listen(Factory())
    ((port, _, _, host),) = reactor.tcpServers
    assert (host, port) == listens_on


@pytest.mark.parametrize(
    ("text", "connects_to"),
    [(":8001", ("127.0.0.1", 8001)), ("192.0.2.7:8001", ("192.0.2.7", 8001)), ("[::1]:8001", ("::1", 8001))],
)
def test_a_client_connects_where_it_was_told(text: str, connects_to: tuple[str, int]) -> None:
    reactor: Any = MemoryReactorClock()
    client_endpoint(reactor, text).connect(Factory())
    assert reactor.tcpClients[0][:2] == connects_to


@pytest.mark.parametrize(
    ("text", "kind"),
    [("foo.example:8001", endpoints.HostnameEndpoint), ("unix:/run/foo.sock", endpoints.UNIXClientEndpoint)],
)
def test_names_and_descriptions_become_twisteds_endpoints(text: str, kind: type) -> None:
    assert isinstance(client_endpoint(MemoryReactorClock(), text), kind)


WRONG = ["", "foo", "-1", "70000", "host:", "host:70000", "[zz]:1", "::1:8001", "a:b:c", "http://foo:8001", "tcp:x"]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("endpoint", [server_endpoint, client_endpoint])
def test_anything_else_is_refused_with_the_value_and_what_would_be_right(endpoint: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a port|ports go up to") as refusal:
        endpoint(MemoryReactorClock(), text)
    assert repr(text) in str(refusal.value)


def test_nothing_can_connect_to_port_0() -> None:
    with pytest.raises(ValueError, match="port 0"):
        client_endpoint(MemoryReactorClock(), "0")


def test_a_socket_that_systemd_did_not_pass_is_missed_by_name() -> None:
    with pytest.raises(ValueError, match="not passed to this process"):
        server_endpoint(MemoryReactorClock(), "systemd:domain=INET:index=7")
