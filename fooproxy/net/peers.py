"""How the addresses of peers and ports are shown to operators: in the log, on the page, and in lists.

This module knows Twisted's addresses and those of our transports; the relay and the service use it.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from fooproxy.net.transport import Transport
from fooproxy.text import one_line


def shown(address: Any) -> str:
    """Format an `IAddress` as operators write it; the name of a unix socket may consist of any bytes."""
    if not hasattr(address, "port"):
        return one_line(getattr(address, "name", None) or "unix")
    host = shown_host(address.host)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"


def shown_peer(transport: Any) -> str:
    """Format the address of the other end of a connection."""
    if isinstance(transport, Transport) and isinstance(transport.peer, str):
        # IPv4, as for nearly all clients: the transport keeps the address as text.
        return transport.peer
    return shown(transport.getPeer())


def shown_host(host: str) -> str:
    """Return an IP address in its shortest spelling, the only one that is shown.

    A listener on ``[::]`` sees IPv4 clients under IPv6 addresses; these are shown as IPv4.
    """
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or address)
