"""Each address is shown in one spelling."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from fooproxy.net.peers import shown, shown_host


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:C000:207", "192.0.2.7"),
        ("::1", "::1"),
        ("2001:DB8:0:0::0:7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("no:address", "no:address"),
    ],
)
def test_a_host_has_one_spelling(host: str, expected: str) -> None:
    assert shown_host(host) == expected


def test_an_address_is_shown_as_operators_write_it() -> None:
    assert shown(IPv4Address("TCP", "192.0.2.7", 5)) == "192.0.2.7:5"
    assert shown(IPv6Address("TCP", "2001:db8::7", 5)) == "[2001:db8::7]:5"
    assert shown(IPv6Address("TCP", "::ffff:192.0.2.7", 5)) == "192.0.2.7:5"
    assert shown(UNIXAddress(b"/run/foo.sock")) == "/run/foo.sock"
    assert shown(UNIXAddress(None)) == "unix"
