"""PROXY headers are read strictly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport

from fooproxy.net.addresses import server_endpoint, shown
from fooproxy.net.proxy_header import ProxyHeaderEndpoint, ProxyHeaderFactory, header_below, read_header
from tests.helpers.bed import Peer, Peers

BALANCER = IPv4Address("TCP", "127.0.0.9", 4711)


def connected(*pieces: bytes) -> tuple[Any, Peer, StringTransport]:
    peers = Peers()
    protocol: Any = ProxyHeaderFactory(peers).buildProtocol(BALANCER)
    assert isinstance(protocol, Protocol)
    transport = StringTransport(peerAddress=BALANCER)
    protocol.makeConnection(transport)
    for piece in pieces:
        protocol.dataReceived(piece)
    return protocol, peers.built[0], transport


def test_the_client_that_a_header_names_is_the_peer() -> None:
    protocol, peer, transport = connected(b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\nREQ 1\n", b"REQ 2\n")
    assert shown(protocol.getPeer()) == "192.0.2.7:5555"
    assert peer.received == b"REQ 1\nREQ 2\n"
    assert not transport.disconnecting
    protocol, _, _ = connected(b"PROXY TCP6 2001:db8::7 2001:db8::1 5555 8002\r\n")
    assert shown(protocol.getPeer()) == "[2001:db8::7]:5555"


V2 = b"\r\n\r\n\0\r\nQUIT\n"
V4_ADDRESSES = bytes([192, 0, 2, 7, 192, 0, 2, 1]) + b"\x15\xb3\x1f\x42"
V6_ADDRESSES = b"\x20\x01\x0d\xb8" + bytes(11) + b"\7" + bytes(16) + b"\x15\xb3\x1f\x42"

HEADERS = [
    b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\n",
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN whatever it says\r\n",
    V2 + b"\x21\x11\0\x0c" + V4_ADDRESSES,
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_may_come_in_any_pieces(header: bytes) -> None:
    stream = header + b"REQ 1\n"
    for cut in range(1, len(stream)):
        _, peer, transport = connected(stream[:cut], stream[cut:])
        assert (bytes(peer.received), transport.disconnecting) == (b"REQ 1\n", False)
    protocol, peer, _ = connected(*(bytes([byte]) for byte in stream))
    assert peer.received == b"REQ 1\n"
    assert shown(protocol.getPeer()) == ("127.0.0.9:4711" if b"UNKNOWN" in header else "192.0.2.7:5555")


@pytest.mark.parametrize("beginning", [b"R", b"PROXI", b"PROXY " + 101 * b"x", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c"])
def test_what_cannot_become_a_header_ends_the_connection_at_once(beginning: bytes) -> None:
    _, _, transport = connected(beginning[:-1])
    assert not transport.disconnecting
    _, _, transport = connected(beginning[:-1], beginning[-1:])
    assert transport.disconnecting


def test_a_fin_is_passed_on() -> None:
    protocol, peer, transport = connected(HEADERS[0])
    protocol.readConnectionLost()
    assert peer.fin
    assert not transport.disconnecting


@pytest.mark.parametrize(
    "address",
    [
        *(b"\x1b[2J", b"a\rb", b"<script>", b"1\r.2.3.4", b"fe80::1%\x1b[2J", b"1.2.3.4.5", b"x" * 40),
        *(b"01.2.3.4", b"1.2.3", b"16909060", b"256.1.1.1", b"2001:db8::7", b"::ffff:192.0.2.7"),
    ],
)
@pytest.mark.parametrize("line", [b"%b 192.0.2.1", b"192.0.2.1 %b"], ids=["source", "destination"])
def test_an_address_that_is_none_of_its_family_ends_the_connection(line: bytes, address: bytes) -> None:
    _, peer, transport = connected(b"PROXY TCP4 " + line % address + b" 5555 8002\r\nREQ 1\n")
    assert transport.disconnecting
    assert peer.received == b""


@pytest.mark.parametrize("address", [b"192.0.2.7", b"2001:db8::7%eth0", b"2001::db8::7", b"1:2:3:4:5:6:7", b":::1"])
@pytest.mark.parametrize("line", [b"%b ::1", b"::1 %b"], ids=["source", "destination"])
def test_the_same_is_true_of_ipv6(line: bytes, address: bytes) -> None:
    _, _, transport = connected(b"PROXY TCP6 " + line % address + b" 5555 8002\r\n")
    assert transport.disconnecting


def test_a_balancer_that_listens_for_both_families_names_ipv4_clients_by_their_ipv6_addresses() -> None:
    protocol, _, transport = connected(b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 5555 8002\r\n")
    assert not transport.disconnecting
    assert shown(protocol.getPeer()) == "192.0.2.7:5555"


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.7 192.0.2.1 SECRET 2\r\n",
        b"PROXY TCP4 \xff\xff 192.0.2.1 1 2\r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP5 192.0.2.7 192.0.2.1 5555 8002\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 8002\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002 9\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 65536\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 05555 8002\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 08002\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 \r\n",
        b"PROXY TCP4  192.0.2.7 192.0.2.1 5555 8002\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002 \r\n",
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWNS\r\n",
        V2 + b"\x11\x11\0\0",
        V2 + b"\x22\x11\0\0",
        V2 + b"\x21\x41\0\0",
        V2 + b"\x21\x13\0\0",
        V2 + b"\x21\x11\0\x0b" + bytes(11),
        V2 + b"\x21\x12\0\x0b" + bytes(11),
        V2 + b"\x21\x21\0\x23" + bytes(35),
        V2 + b"\x21\x31\0\xd7" + bytes(215),
        b"REQ 1 without a header at all\n",
    ],
)
def test_a_malformed_header_ends_the_connection_without_an_error(header: bytes) -> None:
    _, peer, transport = connected(header + b"REQ 1\n")
    assert transport.disconnecting
    assert peer.received == b""


@pytest.mark.parametrize("word", ["haproxy", "HAPROXY"])
def test_haproxy_endpoints_read_headers_this_way(word: str) -> None:
    assert isinstance(server_endpoint(object(), f"{word}:tcp:8002"), ProxyHeaderEndpoint)


@pytest.mark.parametrize(
    ("kind", "addresses", "peer"),
    [
        (b"\x21\x11", V4_ADDRESSES + b"\x04\0\1x", "192.0.2.7:5555"),
        (b"\x21\x21", V6_ADDRESSES, "[2001:db8::7]:5555"),
        (b"\x20\x11", V4_ADDRESSES, "127.0.0.9:4711"),
        (b"\x20\x00", b"", "127.0.0.9:4711"),
        (b"\x21\x00", b"", "127.0.0.9:4711"),
        (b"\x21\x31", bytes(216), "127.0.0.9:4711"),
        (b"\x21\x12", V4_ADDRESSES, "127.0.0.9:4711"),
        (b"\x21\x10", b"", "127.0.0.9:4711"),
        (b"\x20\xff", b"?", "127.0.0.9:4711"),
    ],
    ids=[
        *("with an extension", "IPv6", "local", "local without addresses", "unspecified", "a unix socket"),
        *("a datagram", "unspecified protocol", "local with a family that is none"),
    ],
)
def test_version_2_names_the_client_if_it_has_come_by_tcp(kind: bytes, addresses: bytes, peer: str) -> None:
    header = V2 + kind + len(addresses).to_bytes(2, "big") + addresses
    protocol, receiver, transport = connected(header + b"REQ 1\n")
    assert shown(protocol.getPeer()) == peer
    assert (bytes(receiver.received), transport.disconnecting) == (b"REQ 1\n", False)


def test_what_follows_a_malformed_header_is_ignored() -> None:
    _, peer, _ = connected(b"REQ 1\n", HEADERS[0] + b"REQ 2\n")
    assert peer.received == b""


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([HEADERS[0][:20], HEADERS[0][20:] + b"REQ 1\n", b"REQ 2\n"], [True]),
        ([b"REQ 1\n", b"REQ 2\n"], [False]),
        ([HEADERS[0][:20]], [False]),
        ([], []),
    ],
    ids=["a header", "no header", "half a header", "a health check"],
)
@pytest.mark.parametrize("end", ["FIN", "reset"])
def test_whether_a_header_came_is_told_once(pieces: list[bytes], told: list[bool], end: str) -> None:
    protocol, peer, _ = connected()
    found: list[bool] = []
    below: Any = header_below(peer.transport)
    assert below is protocol
    protocol.tell = found.append
    for piece in pieces:
        protocol.dataReceived(piece)
    if end == "FIN":
        protocol.readConnectionLost()
    protocol.connectionLost()
    assert found == told


STARTS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2, V2 + b"\x21\x11\0\x0c", *HEADERS])


@given(st.builds(lambda start, rest: start + rest, STARTS, st.binary(max_size=200)), st.data())
@example(HEADERS[0], None)
def test_more_bytes_never_change_what_was_read(stream: bytes, data: Any) -> None:
    cut = data.draw(st.integers(0, len(stream))) if data else 0
    try:
        before = read_header(stream[:cut])
    except ValueError:
        with pytest.raises(ValueError, match="header"):
            read_header(stream)
    else:
        if before is not None:
            assert read_header(stream) == before
