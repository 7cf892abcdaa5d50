"""The host names under which the web side is served.

Another site can make its own name point to 127.0.0.1, and its pages can then read the statistics as if they were its
own (DNS rebinding).  Their requests carry that name in the Host header.  So on loopback, only names that no one else
can own are served: addresses, ``localhost``, and those that the operator gave.

This module knows no requests; `fooproxy.web.resource` calls it, and the service tells it where the site listens.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_HOST = re.compile(r"(?:\[(?P<bracketed>[^]]*)\]|(?P<plain>[^:]*))(?::[0-9]*)?")
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def host_name(text: str) -> str:
    """Return the name or address in a Host header, as names are compared: without port, brackets, case and last dot."""
    match = _HOST.fullmatch(text)
    host = text if match is None else match["bracketed"] or match["plain"] or ""
    return host.lower().removesuffix(".")


def read_host_name(text: str) -> str:
    """Return the name that an operator gave.

    :raises ValueError: `text` is not a host name; the message says what is expected.
    """
    name = host_name(text)
    if not (_NAME.fullmatch(name) or _is_address(name)):
        raise ValueError(f"{text!r} is not a host name; expected one such as stats.example")
    return name


class Hosts:
    """Which hosts are served: any, until `listening_at` finds a loopback address, or if operators gave `names`.

    `own` is the host in the address of the site itself, if it has one.
    """

    def __init__(self, names: Collection[str], own: str = "") -> None:
        self._checked = bool(names)
        self._served = {"localhost", *names, *filter(None, [host_name(own)])}

    def listening_at(self, address: Any) -> None:
        """Check hosts if `address`, the `IAddress` at which the site listens, is a loopback address."""
        self._checked = self._checked or _is_loopback(getattr(address, "host", ""))

    def refusal(self, hosts: Sequence[bytes]) -> tuple[int, str] | None:
        """Return the status and the reason for refusing a request for `hosts`, or `None` if it is served.

        A request without any host is served: it comes from an HTTP/1.0 client such as a health check, not from a
        browser.
        """
        if len(hosts) > 1:
            return 400, "more than one Host header"
        if not (self._checked and hosts):
            return None
        name = host_name(hosts[0].decode("latin-1").strip())
        if name in self._served or _is_address(name):
            return None
        return 421, "not served under this host name; --http-host adds one"


def _is_loopback(text: str) -> bool:
    if not _is_address(text):
        return False
    address = ipaddress.ip_address(text)
    # Before Python 3.13, an IPv4-mapped IPv6 address does not count as loopback.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
