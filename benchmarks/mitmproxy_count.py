"""A mitmproxy addon that counts Foo messages by type, as fooproxy's analyzer does.

mitmdump loads it with its own interpreter, so it imports nothing.
"""

from __future__ import annotations

from typing import Any


class Counter:
    """Counts by the first three bytes of each line, in both directions."""

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}

    def tcp_message(self, flow: Any) -> None:
        """Count the chunk that has just arrived, and drop it: mitmproxy would keep all chunks."""
        message = flow.messages.pop()
        way = "from_client" if message.from_client else "from_server"
        lines = (flow.metadata.get(way, b"") + message.content).split(b"\n")
        flow.metadata[way] = lines.pop()
        for line in lines:
            self.counts[line[:3]] = self.counts.get(line[:3], 0) + 1


addons = [Counter()]
