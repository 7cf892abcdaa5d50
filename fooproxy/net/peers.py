"""How the addresses of peers and ports are shown to operators: in the log, on the page, and in lists.

It knows only Twisted's addresses; the relay and the service use it.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from fooproxy.text import one_line


def shown(address: Any) -> str:
    """Format an `IAddress` as operators write it; the name of a unix socket may consist of any bytes."""
    if not hasattr(address, "port"):
        return one_line(getattr(address, "name", None) or "unix")
    host = shown_host(address.host)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"


def shown_host(host: str) -> str:
    """Return the one spelling of an IP address that is shown, the shortest.

    A listener on ``[::]`` sees IPv4 clients under IPv6 addresses; these are shown as IPv4.
    """
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or address)
