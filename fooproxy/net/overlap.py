"""Says whether two addresses cannot both be listened on, by the kernel's rules: one may include the other.

This module resolves no names and opens nothing; if it cannot know, as with a name and an address, it reports no
overlap.  `fooproxy.commandline` calls it.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from fooproxy.net.addresses import HostPort, expects_proxy_header, takes_passed_socket, tcp_place, unix_path
from fooproxy.net.descriptions import check_listening

_Host: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address | str"

Claim: TypeAlias = "HostPort | str"
"""The resource that listening on an address takes: a TCP port, or something else that only one listener can have."""


def claim(text: str, default: str) -> Claim:
    """Return the resource that listening on `text` takes; if `text` names no host, `default` is used.

    :raises ValueError: `text` is not an address.
    """
    tcp = tcp_place(text, listens=True)
    if tcp is not None:
        return tcp._replace(host=tcp.host or default)
    path = unix_path(text, listens=True)
    if path is not None:
        return f"unix:{Path(path).absolute()}"
    if takes_passed_socket(text):
        description = text.partition(":")[2] if expects_proxy_header(text) else text
        arguments = check_listening(description, text)
        return f"systemd:{arguments.get('index')}:{arguments.get('name')}"
    return text


def overlap(one: Claim, other: Claim) -> bool:
    """Return whether two claims exclude each other; ports that the kernel chooses (0) never do."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    if one.port != other.port or not one.port:
        return False
    first, second = _host(one.host), _host(other.host)
    return first == second or _covers(first, second) or _covers(second, first)


def _host(text: str) -> _Host:
    if text.lower() == "localhost":
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return text.lower()
    return getattr(found, "ipv4_mapped", None) or found


def _covers(one: _Host, other: _Host) -> bool:
    """Return whether `one` stands for all addresses, of which `other` is one."""
    if isinstance(one, str) or isinstance(other, str) or not one.is_unspecified:
        return False
    return one.version == other.version or (one.version == 6 and _takes_ipv4())


def _takes_ipv4() -> bool:
    """Return whether a socket on ``::`` also gets the connections of IPv4, as is usual."""
    with suppress(OSError):
        return Path("/proc/sys/net/ipv6/bindv6only").read_text().strip() != "1"
    return True
