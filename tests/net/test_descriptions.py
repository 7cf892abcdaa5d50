"""What is wrong with an endpoint description is said before it is used, and not in the words of Twisted or Python."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from fooproxy.net.addresses import client_endpoint, server_endpoint

LISTENING = [
    ("tcp:abc", "has 'abc' as port; expected a port up to 65535"),
    ("tcp:70000", "has '70000' as port; expected a port up to 65535"),
    ("tcp:-1", "has '-1' as port; expected a port up to 65535"),
    ("tcp:", "has no port; expected a description such as tcp:8002"),
    ("tcp:8002:interface=", "has '' as interface; expected the IP address of an interface"),
    ("tcp:8002:interface=::1", r"has interface twice; expected it once, with \: for a colon"),
    ("tcp:8002:backlog=many", "has 'many' as backlog; expected a whole number from 1 on"),
    ("tcp:8002:backlog=0", "has '0' as backlog; expected a whole number from 1 on"),
    ("tcp:8002:backlog=-5", "has '-5' as backlog; expected a whole number from 1 on"),
    ("tcp:8002:iface=::", "has iface=, which tcp: does not take here; expected any of port, interface, backlog"),
    ("tcp:8002:127.0.0.1:50:1", "has more arguments than tcp: takes; expected"),
    ("tcp:port=8002:port=8003", "has port twice; expected it once"),
    ("tcp:8002\\", "ends with a backslash; expected \\\\ for a backslash"),
    ("tcp6:8002:interface=192.0.2.7", "has '192.0.2.7' as interface; expected an IPv6 address"),
    ("tcp4:8002:backlog=5", "starts with tcp4:, which is not a kind of address; expected a port (8001), host:port"),
    ("unix:/run/foo.sock:mode=999", "has '999' as mode; expected the octal number of the file's mode, such as 660"),
    ("unix:/run/foo.sock:mode=", "has '' as mode; expected the octal number"),
    ("unix:/run/foo.sock:lockfile=no", "has 'no' as lockfile; expected 0 or 1"),
    ("unix:mode=660", "has no address; expected a description such as unix:/run/foo.sock:mode=660"),
    ("ssl:", "has no port; expected a description such as ssl:8002:privateKey=key.pem:certKey=cert.pem"),
    ("ssl:8002:privateKey=/none.pem", "needs /none.pem: No such file or directory; expected a path that exists"),
    ("ssl:8002:privateKey={}/text.pem", "names a file that is not a certificate or key; expected PEM files"),
    ("ssl:8002:sslmethod=TLS", "has 'TLS' as sslmethod; expected the name of one of OpenSSL's, TLS_METHOD"),
    ("tls:/none:8002", "names '/none', which is not a directory of certificates"),
    ("systemd:", "has no domain; expected a description such as systemd:domain=INET:index=0"),
    ("systemd:domain=INET", "must have either an index or a name; expected systemd:domain=INET:index=0"),
    ("systemd:domain=INET:index=0:name=x", "must have either an index or a name"),
    ("systemd:domain=IPV4:index=0", "has 'IPV4' as domain; expected INET, INET6 or UNIX"),
    ("systemd:domain=INET:index=-1", "has '-1' as index; expected the index of a socket, from 0 on"),
    (
        "systemd:domain=INET:name=x",
        "names a socket that was not passed to this process; expected the index or the name",
    ),
    ("haproxy:", "is not an address; expected haproxy: and an endpoint description"),
    ("haproxy:tcp:no", "has 'no' as port; expected a port up to 65535"),
]

CONNECTING = [
    ("tcp:foo.example", "has no port; expected a description such as tcp:foo.example:8001"),
    ("tcp::8001", "has no host; expected a description such as tcp:foo.example:8001"),
    ("tcp:foo.example:0", "names port 0, which nothing can connect to; expected the server's port"),
    ("tcp:foo.example:http", "has 'http' as port; expected a port up to 65535"),
    ("tcp:foo.example:8001:timeout=soon", "has 'soon' as timeout; expected a whole number from 1 on"),
    ("tcp:foo.example:8001:timeout=0", "has '0' as timeout; expected a whole number from 1 on"),
    ("tcp:foo.example:8001:bindAddress=", "has '' as bindAddress; expected an IP address of this machine"),
    ("tls:foo.example", "has no port; expected a description such as tls:foo.example:8001"),
    ("tls:foo.example:8001:trustRoots=/none", "needs /none: No such file or directory; expected a path that exists"),
    ("tls:foo.example:8001:certificate={}/text.pem", "names a file that is not a certificate or key"),
    ("tls:foo.example:8001:key=x", "has key=, which tls: does not take here; expected any of host, port, timeout"),
    ("tls:foo.example:8001:endpoint=tcp\\:x", "'tcp:x' has no port; expected"),
    ("ssl:foo.example:8001:hostname=", "has '' as hostname; expected a host name or an IP address"),
    (
        "unix:/run/foo.sock:mode=660",
        "has mode=, which unix: does not take here; expected any of path, timeout, lockfile",
    ),
    ("unix:/run/foo.sock:timeout=x", "has 'x' as timeout; expected a whole number from 1 on"),
    ("systemd:domain=INET:index=0", "starts with systemd:, which is only for listening; expected a port"),
    ("haproxy:tcp:8001", "starts with haproxy:, which is only for listening; expected a port"),
]

PYTHON = re.compile(
    "invalid literal|positional argument|keyword argument|multiple values|has no attribute|Errno|Success"
)


@pytest.mark.parametrize(
    ("make", "text", "says"),
    [
        *((server_endpoint, text, says) for text, says in LISTENING),
        *((client_endpoint, text, says) for text, says in CONNECTING),
    ],
)
def test_what_is_wrong_with_a_description_is_said_with_what_would_be_right(
    tmp_path: Path, make: Any, text: str, says: str
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    with warnings.catch_warnings():
        # Twisted causes these, not our code.
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(ValueError, match=re.escape(says)) as refusal:
            make(MemoryReactorClock(), text.format(tmp_path))
    assert not PYTHON.search(str(refusal.value))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (server_endpoint, "ssl:8002:privateKey={}/pipe.pem"),
        (server_endpoint, "tls:{}:8002"),
        (client_endpoint, "tls:foo.example:8001:trustRoots={}"),
    ],
)
def test_a_pipe_in_place_of_a_key_is_refused_without_waiting_for_it(tmp_path: Path, make: Any, text: str) -> None:
    os.mkfifo(tmp_path / "pipe.pem")
    with pytest.raises(ValueError, match=r"as (privateKey|trustRoots|path); expected a .*regular file"):
        make(MemoryReactorClock(), text.format(tmp_path))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (server_endpoint, "tcp:0"),
        (server_endpoint, "tcp:8002:127.0.0.1:50"),
        (server_endpoint, "tcp:port=8002:interface=\\:\\:1"),
        (server_endpoint, "TCP:interface=localhost:8002"),
        (server_endpoint, "tcp6:8002:50:\\:\\:1"),
        (server_endpoint, "unix:/run/a\\=b:0660:50:0"),
        (server_endpoint, "unix:address=/run/foo\\:1.sock"),
        (server_endpoint, "haproxy:unix:/run/foo.sock:mode=660"),
        (server_endpoint, "stdio:"),
        (client_endpoint, "tcp:foo.example:8001:timeout=5"),
        (client_endpoint, "TCP:8001:host=foo.example"),
        (client_endpoint, "tcp:host=\\:\\:1:port=8001:bindAddress=\\:\\:1"),
        (client_endpoint, "tls:foo.example:8001:5"),
        (client_endpoint, "tls:foo.example:8001:endpoint=unix\\:/run/foo.sock"),
        (client_endpoint, "unix:path=/run/foo.sock:lockfile=1:timeout=5"),
    ],
)
def test_whatever_twisted_takes_in_a_description_is_taken(make: Any, text: str) -> None:
    assert make(MemoryReactorClock(), text)
