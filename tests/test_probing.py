"""``--check-health``: whether the proxy that runs with these options says that it is alive."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fooproxy import probing
from fooproxy.commandline import Options
from tests.helpers.fooserver import PATIENCE

ALIVE = b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"status": "OK!"}\n'


@contextmanager
def answering(listener: socket.socket, answer: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Give the first connection this answer, in its parts; show what it asked."""
    asked = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(4096))
            for part in answer:
                connection.sendall(part)

    thread = threading.Thread(target=serve)
    with listener:
        listener.settimeout(PATIENCE)
        listener.listen()
        thread.start()
        yield asked
        thread.join()


def bound(host: str = "127.0.0.1") -> tuple[socket.socket, int]:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    return listener, listener.getsockname()[1]


def checked(capsys: Any, *arguments: str, **environment: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        Options(environment).parseOptions(["--check-health", *arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_proxy_that_answers_is_healthy(capsys: Any) -> None:
    listener, port = bound()
    with answering(listener, [ALIVE]) as asked:
        assert checked(capsys, "--http", str(port)) == (0, "OK!\n", "")
    assert asked[0].startswith(b"GET /health HTTP/1.1\r\n")


def test_only_the_address_that_is_asked_matters(capsys: Any) -> None:
    listener, port = bound()
    with answering(listener, [ALIVE]):
        assert checked(capsys, "--http", str(port), "--listen", str(port)) == (0, "OK!\n", "")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "0.0.0.0:{}"),
        ("127.0.0.1", "localhost:{}"),
        ("127.0.0.1", "tcp:{}"),
        ("::1", "[::]:{}"),
        ("::1", "tcp6:{}"),
    ],
)
def test_it_is_asked_where_this_machine_reaches_it(capsys: Any, host: str, address: str) -> None:
    listener, port = bound(host)
    with answering(listener, [ALIVE]):
        assert checked(capsys, FOOPROXY_HTTP=address.format(port)) == (0, "OK!\n", "")


def test_a_unix_socket_is_asked_too(capsys: Any, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "http.sock"))
    with answering(listener, [ALIVE]):
        assert checked(capsys, "--http", f"unix:{tmp_path}/http.sock:mode=660") == (0, "OK!\n", "")


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            "answers /health with status 503; expected 200",
        ),
        (b"", "Remote end closed connection without response; is fooproxy running with --http"),
        (b"ACK 1\n", "answers, but not as HTTP does: ACK 1\\n; is fooproxy running with --http"),
    ],
)
def test_any_other_answer_is_not_healthy(capsys: Any, answer: bytes, what: str) -> None:
    listener, port = bound()
    with answering(listener, [answer]):
        status, out, err = checked(capsys, "--http", str(port))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert what in err


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1:1", "no answer from 127.0.0.1:1: Connection refused; is fooproxy running with --http 127.0.0.1:1?"),
        ("unix:/nowhere/sock", "no answer from unix:/nowhere/sock: No such file or directory; is fooproxy running"),
    ],
)
def test_a_proxy_that_cannot_be_reached_is_not_healthy(capsys: Any, address: str, what: str) -> None:
    status, out, err = checked(capsys, "--http", address)
    assert (status, out) == (1, "")
    assert err.startswith(f"fooproxy: {what}")


@pytest.mark.parametrize("drop", [b"", b"x"], ids=["silent", "byte by byte"])
def test_a_proxy_whose_answer_does_not_end_is_not_healthy(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, drop: bytes
) -> None:
    monkeypatch.setattr(probing, "_PATIENCE", 0.3)
    listener, port = bound()
    over = threading.Event()

    def answer() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX: "
        while not over.wait(0.02):
            yield drop

    with answering(listener, answer()):
        status, out, err = checked(capsys, "--http", str(port))
        over.set()
    assert (status, out) == (1, "")
    assert err.startswith(
        f"fooproxy: no answer from {port} within 0.3 seconds; is fooproxy running with --http {port}?"
    )


def test_without_http_it_is_said_that_there_is_nothing_to_ask(capsys: Any) -> None:
    status, out, err = checked(capsys, FOOPROXY_HTTP="off")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("fooproxy: --http is off (by FOOPROXY_HTTP), so nothing says whether the proxy is alive; ")


def test_a_wrong_option_is_a_usage_error(capsys: Any) -> None:
    with pytest.raises(Exception, match=r"--http: 'x' is not an address"):
        Options({}).parseOptions(["--check-health", "--http", "x"])
