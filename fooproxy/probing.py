"""The answer to ``--check-health``: whether the proxy that runs with these options answers at ``/health``.

This is for health checks that run a command, such as a container's.  The check only connects to the address in
``--http``, and knows nothing else about the proxy; `fooproxy.commandline` calls it.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import sys
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from contextlib import closing
from http import HTTPStatus
from threading import Thread

from fooproxy.net.addresses import tcp_place, unix_path
from fooproxy.net.descriptions import word
from fooproxy.text import one_line

_PATIENCE = 3.0
"""Seconds for the whole check: looking up a name, connecting, and the answer."""


def check_health(address: str, place: str) -> bool:
    """Print whether a live proxy serves HTTP at `address`, which was set at `place`; return whether it does."""
    try:
        if address == "off":
            raise ValueError(
                f"--http is off (by {place}), so nothing says whether the proxy is alive; expected an address, or no "
                "health check (--no-healthcheck for a container)"
            )
        status = _ask_in_time(address)
    except LateError:
        problem = f"no answer from {address} within {_PATIENCE:g} seconds; is fooproxy running with --http {address}?"
    except OSError as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        problem = f"no answer from {address}: {why}; is fooproxy running with --http {address}?"
    except http.client.HTTPException as error:
        why = str(error) or type(error).__name__
        problem = f"{address} answers, but not as HTTP does: {why}; is fooproxy running with --http {address}?"
    except ValueError as error:
        problem = str(error)
    else:
        if status == HTTPStatus.OK:
            print("OK!")
            return True
        problem = f"{address} answers /health with status {status}; expected {HTTPStatus.OK.value}"
    print(f"fooproxy: {one_line(problem)}", file=sys.stderr)
    return False


def _ask_in_time(address: str) -> int:
    answer: Future[int] = Future()

    def ask() -> None:
        try:
            answer.set_result(_ask(address))
        except Exception as error:
            answer.set_exception(error)

    # No timeout of a socket covers name lookups, or bounds an answer that comes byte by byte; ours ends without it.
    Thread(target=ask, daemon=True).start()
    return answer.result(_PATIENCE)


def _ask(address: str) -> int:
    with closing(_connected(address)) as connected:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connected
        connection.request("GET", "/health", headers={"Connection": "close"})
        return connection.getresponse().status


def _connected(address: str) -> socket.socket:
    path = unix_path(address, listens=True)
    if path is not None:
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.connect(path)
        except OSError:
            connected.close()
            raise
        return connected
    place = tcp_place(address, listens=True)
    if place is None:
        raise ValueError(f"cannot connect to {address!r} from here; expected --http with a TCP port or a unix socket")
    connected = socket.create_connection((_reached(place.host), place.port))
    if word(address) != "ssl":
        return connected
    # The certificate is for outside clients, and its name may not be this machine's.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connected)


def _reached(host: str) -> str:
    """Return a host name or address by which this machine reaches a listener on `host`."""
    try:
        wildcard = ipaddress.ip_address(host or "0.0.0.0")
    except ValueError:
        return host
    if not wildcard.is_unspecified:
        return host or "127.0.0.1"
    return "127.0.0.1" if wildcard.version == 4 else "::1"
