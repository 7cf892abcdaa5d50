"""PROXY headers are taken with care."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport

from fooproxy.net.addresses import server_endpoint, shown
from fooproxy.net.proxy_header import IntroducedEndpoint, IntroducedFactory
from tests.helpers.bed import Peer, Peers

BALANCER = IPv4Address("TCP", "127.0.0.9", 4711)


def introduced(*pieces: bytes) -> tuple[Any, Peer, StringTransport]:
    peers = Peers()
    protocol: Any = IntroducedFactory(peers).buildProtocol(BALANCER)
    assert isinstance(protocol, Protocol)
    transport = StringTransport(peerAddress=BALANCER)
    protocol.makeConnection(transport)
    for piece in pieces:
        protocol.dataReceived(piece)
    return protocol, peers.built[0], transport


def test_who_is_introduced_is_believed_and_relayed() -> None:
    protocol, peer, transport = introduced(b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\nREQ 1\n", b"REQ 2\n")
    assert shown(protocol.getPeer()) == "192.0.2.7:5555"
    assert peer.received == b"REQ 1\nREQ 2\n"
    assert not transport.disconnecting
    protocol, _, _ = introduced(b"PROXY TCP6 2001:db8::7 2001:db8::1 5555 8002\r\n")
    assert shown(protocol.getPeer()) == "[2001:db8::7]:5555"


HEADERS = [
    b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\n",
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN whatever it says\r\n",
    b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11\0\x0c" + bytes([192, 0, 2, 7, 192, 0, 2, 1]) + b"\x15\xb3\x1f\x42",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_may_come_in_any_pieces(header: bytes) -> None:
    stream = header + b"REQ 1\n"
    for cut in range(1, len(stream)):
        _, peer, transport = introduced(stream[:cut], stream[cut:])
        assert (bytes(peer.received), transport.disconnecting) == (b"REQ 1\n", False)
    protocol, peer, _ = introduced(*(bytes([byte]) for byte in stream))
    assert peer.received == b"REQ 1\n"
    assert shown(protocol.getPeer()) == ("127.0.0.9:4711" if b"UNKNOWN" in header else "192.0.2.7:5555")


@pytest.mark.parametrize("beginning", [b"R", b"PROXI", b"PROXY " + 102 * b"x", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c"])
def test_what_cannot_become_a_header_any_more_ends_the_connection_at_once(beginning: bytes) -> None:
    _, _, transport = introduced(beginning[:-1])
    assert not transport.disconnecting
    _, _, transport = introduced(beginning[:-1], beginning[-1:])
    assert transport.disconnecting


def test_a_fin_is_passed_on() -> None:
    protocol, peer, transport = introduced(HEADERS[0])
    protocol.readConnectionLost()
    assert peer.fin
    assert not transport.disconnecting


@pytest.mark.parametrize(
    "address", [b"\x1b[2J", b"a\rb", b"<script>", b"1\r.2.3.4", b"fe80::1%\x1b[2J", b"1.2.3.4.5", b"x" * 40]
)
def test_an_address_that_is_none_is_not_believed(address: bytes) -> None:
    protocol, _, transport = introduced(b"PROXY TCP4 " + address + b" 192.0.2.1 5555 8002\r\nREQ 1\n")
    assert transport.disconnecting or shown(protocol.getPeer()) == "127.0.0.9:4711"


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.7 192.0.2.1 SECRET 2\r\n",
        b"PROXY TCP4 \xff\xff 192.0.2.1 1 2\r\n",
        b"PROXY TCP4\r\n",
        b"REQ 1 without a header at all\n",
    ],
)
def test_a_header_that_cannot_be_read_ends_the_connection_without_an_error(header: bytes) -> None:
    _, peer, transport = introduced(header + b"REQ 1\n")
    assert transport.disconnecting
    assert peer.received == b""


@pytest.mark.parametrize("word", ["haproxy", "HAPROXY"])
def test_haproxy_endpoints_take_that_care(word: str) -> None:
    assert isinstance(server_endpoint(object(), f"{word}:tcp:8002"), IntroducedEndpoint)
