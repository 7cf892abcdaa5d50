"""The lock is had by one process, and signing it writes to no other file, whatever others do in its directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fooproxy.locking import Held, Lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "foo.lock"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that must not be written to."""
    file = tmp_path / "victim"
    file.write_text("precious")
    return file


def test_a_check_changes_nothing_and_fails_for_a_link(path: Path, victim: Path) -> None:
    lock = Lock(path)
    lock.check()
    assert not path.exists()
    path.write_text("1 on other\n")
    lock.check()
    assert path.read_text() == "1 on other\n" and not lock.is_held
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        lock.check()


@pytest.fixture
def taken(path: Path) -> Iterator[Callable[..., Lock]]:
    """Takes the lock, and releases it after the test."""
    locks = []

    def take(*flock: Any) -> Lock:
        locks.append(Lock(path, *flock))
        locks[-1].take()
        return locks[-1]

    yield take
    for lock in locks:
        lock.release()


Taken = Callable[..., Lock]


def test_a_lock_that_is_held_is_refused_with_its_holder(taken: Taken) -> None:
    taken()
    with pytest.raises(Held, match=rf"^process {os.getpid()} on [\w.-]+ since [\d: -]+ UTC$"):
        taken()


def test_a_lock_that_is_ours_already_is_kept(taken: Taken) -> None:
    lock = taken()
    lock.take()
    with pytest.raises(Held):
        taken()


def test_a_lock_that_was_released_can_be_taken(path: Path, taken: Taken) -> None:
    taken().release()
    assert path.exists()
    assert taken().is_held


def test_a_lock_that_was_removed_leaves_no_file_and_can_be_taken(path: Path, taken: Taken) -> None:
    lock = taken()
    lock.remove()
    assert not lock.is_held and not path.exists()
    assert taken().is_intact


def test_a_file_that_took_the_place_of_the_lock_is_not_removed(path: Path, taken: Taken) -> None:
    lock = taken()
    path.unlink()
    path.touch()
    lock.remove()
    assert path.exists()


def test_a_file_that_cannot_be_removed_is_left(path: Path, taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError

    lock = taken()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        lock.remove()
    assert not lock.is_held and path.exists()


def test_a_lock_whose_holder_removes_it_just_then_is_taken_on_a_new_file(path: Path, taken: Taken) -> None:
    calls = []

    def removed_first(descriptor: int, operation: int) -> None:
        fcntl.flock(descriptor, operation)
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()

    assert taken(removed_first).is_intact
    assert len(calls) == 2
    with pytest.raises(Held):
        taken()


@pytest.mark.parametrize("how", ["a link", "another name"])
def test_a_file_that_takes_its_place_before_it_is_signed_is_not_written_to(
    path: Path, victim: Path, how: str, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def swap(name: Any, flags: int, *more: Any) -> int:
        if flags & os.O_ACCMODE == os.O_WRONLY:
            path.unlink()
            (path.symlink_to if how == "a link" else path.hardlink_to)(victim)
        return opened(name, flags, *more)

    monkeypatch.setattr(os, "open", swap)
    assert taken().is_held
    assert victim.read_text() == "precious"


def test_a_file_that_had_its_place_under_another_name_is_not_written_to(path: Path, victim: Path, taken: Taken) -> None:
    path.hardlink_to(victim)
    assert taken().is_held
    assert victim.read_text() == "precious"


def test_a_link_that_takes_its_place_before_it_is_locked_is_refused(path: Path, victim: Path, taken: Taken) -> None:
    def swap(descriptor: int, operation: int) -> None:
        fcntl.flock(descriptor, operation)
        path.unlink()
        path.symlink_to(victim)

    with pytest.raises(OSError, match="symbolic links"):
        taken(swap)
    assert victim.read_text() == "precious"
