"""How the addresses of peers and ports are shown to operators: in the log, on the page, and in lists.

It knows only Twisted's addresses; the relay and the service use it.
"""

from __future__ import annotations

import os
from typing import Any


def shown(address: Any) -> str:
    """Format an `IAddress` as operators write it."""
    if not hasattr(address, "port"):
        return os.fsdecode(getattr(address, "name", None) or "unix")
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
