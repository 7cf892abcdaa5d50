"""Talks to the control socket of a proxy: one request, one answer in JSON.

This module knows HTTP and the socket, but not the orders; `fooproxy.driver.fooctl` does.
"""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from typing import Any
from urllib.parse import quote

PATIENCE = 30.0
"""Seconds to wait for an answer, in addition to the `wait` that the proxy is asked for."""


class Unreachable(Exception):
    """The proxy does not answer on the socket; the message says why, and what to do."""


class Refusal(Exception):
    """The proxy refuses the order; the message is the proxy's."""


class _Connection(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("fooproxy", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path: str, method: str, *words: str, wait: int = 0, query: str = "") -> Any:
    """Send a request to the socket at `path` for the URL made of `words`, and return the answer.

    :raises Unreachable: no proxy answers there.
    :raises Refusal: the proxy refuses the order.
    """
    url = "".join(f"/{quote(word, safe=':')}" for word in words)
    url += f"?wait={wait}" if wait else f"?{query}" if query else ""
    try:
        with closing(_Connection(path, wait + PATIENCE)) as connection:
            connection.request(method, url, headers={"Content-Length": "0"} if method == "POST" else {})
            answer = connection.getresponse()
            content = json.loads(answer.read())
    except PermissionError:
        raise Unreachable(f"no permission to use {path}: only the proxy's own user and root may use it") from None
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise Unreachable(f"no proxy takes orders at {path}: is one running with --control unix:{path}?") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        raise Unreachable(f"no answer from {path}: {why}") from error
    if answer.status >= 400:
        raise Refusal(str(content["error"]))
    return content
