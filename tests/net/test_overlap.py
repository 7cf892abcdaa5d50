"""Two addresses overlap if the kernel would not let both be listened on."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from itertools import product

import pytest

from fooproxy.net.overlap import claim, overlap
from tests.helpers.fooserver import free_port

HOSTS = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1", "::ffff:127.0.0.1"]


def listening(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.mark.parametrize(("one", "other"), [*product(HOSTS, HOSTS)])
def test_of_addresses_the_kernel_says_the_same(one: str, other: str) -> None:
    with ExitStack() as stack:
        port = free_port()
        stack.enter_context(closing(listening(one, port)))
        try:
            stack.enter_context(closing(listening(other, port)))
        except OSError:
            both = False
        else:
            both = True
    assert overlap(claim(shown(one, port), ""), claim(shown(other, port), "")) != both


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("8002", "127.0.0.1:8002", True),
        ("8002", "localhost:8002", True),
        ("8002", "127.0.0.1:8003", False),
        ("0", "0", False),
        ("8002", "haproxy:tcp:8002", True),
        ("ssl:8002:interface=127.0.0.1", "tcp6:8002", True),
        ("foo.example:8002", "FOO.example:8002", True),
        ("foo.example:8002", "8002", False),
        ("[fe80::1%eth0]:8002", "[fe80::1%eth1]:8002", False),
        ("unix:/run/a", "haproxy:unix:/run/a:mode=660", True),
        ("unix:/run/a", "unix:/run/b", False),
        ("unix:/run/8002", "8002", False),
        ("systemd:domain=INET:index=0", "haproxy:systemd:domain=INET6:index=0", True),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=1", False),
        ("stdio:", "stdio:", True),
    ],
)
def test_whatever_is_listened_on_is_compared(one: str, other: str, expected: bool) -> None:
    first, second = claim(one, "0.0.0.0"), claim(other, "0.0.0.0")
    assert overlap(first, second) == overlap(second, first) == expected
