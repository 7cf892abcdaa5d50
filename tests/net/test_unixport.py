"""A unix socket is had by one process; what a dead one left is replaced, and nothing else is."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from fooproxy.net.addresses import server_endpoint
from fooproxy.net.listening import listen_now
from tests.helpers.bed import reactor


class Quiet(Factory):
    noisy = False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "foo.sock"


def listen(path: Path, more: str = "") -> Any:
    return listen_now(server_endpoint(reactor, f"unix:{path}{more}"), Quiet())


def refused(path: Path, more: str = "") -> str:
    """Return why the socket cannot be had."""
    with pytest.raises(CannotListenError) as refusal:
        listen(path, more)
    return str(refusal.value.socketError)


def lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def dead_socket(path: Path) -> None:
    """Leave a socket on which nobody listens."""
    with socket.socket(socket.AF_UNIX) as skt:
        skt.bind(str(path))
        skt.listen()


async def works(path: Path, more: str = "") -> None:
    """Listen there, connect, and close."""
    port = listen(path, more)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_nothing_is_left_after_it(path: Path) -> None:
    await works(path)
    assert list(path.parent.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_a_dead_socket_is_replaced(path: Path) -> None:
    dead_socket(path)
    await works(path)


@pytest_twisted.ensureDeferred
async def test_a_dead_socket_is_replaced_though_the_number_in_twisteds_lock_is_alive(path: Path) -> None:
    dead_socket(path)
    lock_of(path).symlink_to(str(os.getpid()))
    await works(path)
    assert list(path.parent.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_a_lock_file_without_a_holder_is_no_obstacle(path: Path) -> None:
    dead_socket(path)
    lock_of(path).write_text(f"{os.getpid()} on here\n")
    await works(path)


@pytest_twisted.ensureDeferred
async def test_a_socket_of_another_proxy_is_refused_with_its_holder(path: Path) -> None:
    port = listen(path)
    assert refused(path).startswith(f"it is in use by process {os.getpid()} on ")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    await port.stopListening()


@pytest.fixture
def other(path: Path) -> Iterator[socket.socket]:
    """Somebody who listens there without a lock of ours."""
    with socket.socket(socket.AF_UNIX) as skt:
        skt.bind(str(path))
        skt.listen(0)
        yield skt


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("lock", ["none", "Twisted's"])
def test_a_socket_of_another_program_is_left_to_it(path: Path, lock: str) -> None:
    if lock == "Twisted's":
        lock_of(path).symlink_to(str(os.getpid()))
    assert "Address already in use" in refused(path)
    assert path.is_socket()
    assert lock_of(path).is_symlink() == (lock == "Twisted's")


@pytest.mark.usefixtures("other")
def test_a_socket_of_a_program_that_is_too_busy_to_accept_is_left_to_it(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert "Address already in use" in refused(path)


def test_what_is_not_a_socket_is_left(path: Path) -> None:
    path.write_text("precious")
    assert "Address already in use" in refused(path)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("foo.sock", "precious")]


def test_a_link_is_not_followed(path: Path) -> None:
    victim = path.with_name("victim")
    victim.touch(mode=0o600)
    path.symlink_to(victim)
    assert "Address already in use" in refused(path, ":mode=666")
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_without_a_lock_nothing_is_replaced(path: Path) -> None:
    dead_socket(path)
    assert "Address already in use" in refused(path, ":lockfile=0")


@pytest_twisted.ensureDeferred
async def test_without_a_lock_there_is_no_file_for_it(path: Path) -> None:
    port = listen(path, ":lockfile=0")
    assert list(path.parent.iterdir()) == [path]
    await port.stopListening()


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    assert os.umask(before) == 0o077


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", ["600", "660", "666"])
@pytest_twisted.ensureDeferred
async def test_the_socket_has_its_mode_whatever_the_umask(path: Path, mode: str) -> None:
    port = listen(path, f":mode={mode}")
    assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_file_that_has_taken_its_place_is_left_at_the_end(path: Path) -> None:
    port: Any = listen(path)
    path.unlink()
    path.write_text("another's")
    await port.stopListening()
    assert path.read_text() == "another's"


@pytest_twisted.ensureDeferred
async def test_a_socket_behind_load_balancers_is_locked_too(path: Path) -> None:
    port: Any = listen_now(server_endpoint(reactor, f"haproxy:unix:{path}"), Quiet())
    assert "it is in use" in refused(path)
    await port.stopListening()
