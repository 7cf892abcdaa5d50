"""The file is complete at any instant, belongs to one process, and is where the operator wants it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.recovery.saver import InUse, Saver, Unusable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "recovery.json"


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


Claim = Callable[..., Saver]


@pytest.fixture
def claim() -> Iterator[Claim]:
    """Returns savers that have claimed their files, and releases them after the test."""
    savers = []

    def claim(path: Path, *flock: Callable[[int, int], None]) -> Saver:
        savers.append(Saver(path, *flock))
        savers[-1].claim()
        return savers[-1]

    yield claim
    for saver in savers:
        saver.release()


def test_what_was_written_is_read(path: Path, claim: Claim) -> None:
    saver = claim(path)
    saver.write({"state": 1})
    saver.write({"state": 2})
    assert saver.read() == {"state": 2}
    assert names(path) == {"recovery.json", "recovery.json.lock"}


def test_where_there_is_no_file_none_is_read(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Saver(path).read()


def test_a_file_that_cannot_be_read_is_unusable() -> None:
    # A regular file whose beginning even root cannot read.
    with pytest.raises(Unusable, match="cannot be read"):
        Saver(Path("/proc/self/mem")).read()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (bytes(range(256)), "not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 100_000, "not valid JSON"),
        pytest.param(b" " * (1 << 24) + b"{}", "larger than", id="too large"),
    ],
)
def test_what_is_not_json_is_unusable(path: Path, content: bytes, why: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(Unusable, match=why) as found:
        Saver(path).read()
    assert len(str(found.value)) < 200


@given(content=st.binary(max_size=100))
def test_any_bytes_are_json_or_unusable(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        Saver(path).read()
    except Unusable as error:
        # The message becomes part of a log line.
        str(error).encode()


@pytest.mark.parametrize("trap", ["a link", "a pipe"])
def test_what_stands_where_the_new_state_is_written_is_not_followed(path: Path, trap: str, claim: Claim) -> None:
    path.parent.mkdir()
    victim, new = path.with_name("victim"), beside(path, "new")
    victim.write_text("precious")
    saver = claim(path)
    if trap == "a link":
        new.symlink_to(victim)
    else:
        os.mkfifo(new)
    saver.write({"state": 1})
    assert victim.read_text() == "precious"
    assert saver.read() == {"state": 1}


def test_a_failed_write_leaves_the_old_state_whole(path: Path, claim: Claim) -> None:
    saver = claim(path)
    saver.write({"state": 1})
    beside(path, "new").mkdir()
    with pytest.raises(IsADirectoryError):
        saver.write({"state": 2})
    assert saver.read() == {"state": 1}


def failing_sync(code: int, files: Callable[[int], bool]) -> Callable[[int], None]:
    """Return an fsync that fails for the file types that `files` accepts."""
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if files(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    return fail


def test_a_file_that_cannot_be_forced_to_the_disk_does_not_take_the_old_ones_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, claim: Claim
) -> None:
    saver = claim(path)
    saver.write({"state": 1})
    monkeypatch.setattr(os, "fsync", failing_sync(errno.ENOSPC, stat.S_ISREG))
    with pytest.raises(OSError, match="No space left"):
        saver.write({"state": 2})
    assert saver.read() == {"state": 1}
    assert names(path) == {"recovery.json", "recovery.json.lock"}


def test_a_directory_that_cannot_be_forced_to_the_disk_is_a_failure(
    path: Path, monkeypatch: pytest.MonkeyPatch, claim: Claim
) -> None:
    saver = claim(path)
    monkeypatch.setattr(os, "fsync", failing_sync(errno.EIO, stat.S_ISDIR))
    with pytest.raises(OSError, match="Input/output error"):
        saver.write({"state": 1})


def test_a_file_system_that_cannot_sync_directories_will_do(
    path: Path, monkeypatch: pytest.MonkeyPatch, claim: Claim
) -> None:
    monkeypatch.setattr(os, "fsync", failing_sync(errno.EINVAL, stat.S_ISDIR))
    saver = claim(path)
    saver.write({"state": 1})
    assert saver.read() == {"state": 1}


def test_a_claim_changes_nothing_but_what_was_left_over(path: Path, claim: Claim) -> None:
    path.parent.mkdir()
    path.write_text("anything")
    beside(path, "new").write_text("half a sta")
    claim(path)
    assert path.read_text() == "anything"
    assert names(path) == {"recovery.json", "recovery.json.lock"}


def check(path: Path) -> None:
    Saver(path).check()


def test_a_check_passes_where_a_claim_would_and_changes_nothing(path: Path, claim: Claim) -> None:
    check(path)
    assert not path.parent.exists()
    claim(path).write({"state": 1})
    before = names(path)
    check(path)
    assert names(path) == before


@pytest.mark.parametrize("obstacle", ["its lock is a link", "below a file", "in a directory of the kernel"])
def test_what_would_be_refused_by_a_claim_fails_a_check(path: Path, obstacle: str, claim: Claim) -> None:
    if obstacle == "its lock is a link":
        path.parent.mkdir()
        beside(path, "lock").symlink_to("nothing")
    elif obstacle == "below a file":
        path.parent.touch()
    else:
        path = Path("/proc/new/recovery.json")
    for refuse in check, claim:
        with pytest.raises(OSError, match="Errno"):
            refuse(path)


def test_a_directory_in_its_place_is_refused_by_the_claim(path: Path, claim: Claim) -> None:
    path.mkdir(parents=True)
    for refuse in claim, check:
        with pytest.raises(OSError, match="not a regular file"):
            refuse(path)
    assert path.is_dir()


@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_is_followed_and_stays(tmp_path: Path, path: Path, there: bool, claim: Claim) -> None:
    path.parent.mkdir()
    real = tmp_path / "disk" / "state"
    # By way of another link, and relative.
    (tmp_path / "link").symlink_to(real)
    path.symlink_to("../link")
    if there:
        real.parent.mkdir()
        real.write_text("[]")
    saver = claim(path)
    saver.write({"state": 1})
    assert path.is_symlink() and real.is_file() and not real.is_symlink()
    assert Saver(real).read() == saver.read() == {"state": 1}
    assert names(path) == {"recovery.json"}


def test_a_link_of_another_user_is_refused(path: Path, claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)
    if user := os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    else:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for refuse in claim, check:
        with pytest.raises(OSError, match="a symbolic link that belongs to another user"):
            refuse(path)
    assert names(path) == {"recovery.json", "victim"}
    assert victim.read_text() == "precious"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_the_umask_says_who_may_read(path: Path, claim: Claim) -> None:
    saver = claim(path)
    saver.write({"state": 1})
    modes = [stat.S_IMODE(file.stat().st_mode) for file in (path.parent, path, beside(path, "lock"))]
    assert modes == [0o750, 0o640, 0o640]


def test_a_second_claim_is_refused_and_told_who_has_it(path: Path, claim: Claim) -> None:
    first = claim(path)
    first.write({"state": 1})
    with pytest.raises(
        InUse, match=rf"{path} is in use by process {os.getpid()} on [\w.-]+ since \d+-\d\d-\d\d \d\d:\d\d:\d\d UTC$"
    ):
        claim(path)
    first.write({"state": 2})
    assert first.read() == {"state": 2}


def test_two_ways_to_one_file_are_one(tmp_path: Path, path: Path, claim: Claim) -> None:
    first = claim(path)
    (tmp_path / "folder").symlink_to(path.parent)
    (tmp_path / "file").symlink_to(path)
    for other in (tmp_path / "folder" / path.name, tmp_path / "file"):
        with pytest.raises(InUse):
            claim(other)
    assert first.is_locked


@pytest.mark.parametrize("said", ["", "4711 on other\n", "\0\x1b[31m\n", "1" * 1000, "first\nsecond\n"])
def test_what_an_earlier_process_left_in_the_lock_does_no_harm(path: Path, said: str, claim: Claim) -> None:
    path.parent.mkdir()
    beside(path, "lock").write_text(said)
    assert claim(path).is_locked
    assert beside(path, "lock").read_text().startswith(f"{os.getpid()} on ")


@pytest.mark.parametrize("said", ["", "\0\x1b[31m\n", "1" * 1000, "first\nsecond\n", "1 on \x1b[31m\n"])
def test_a_holder_that_says_nothing_sensible_is_another_process(path: Path, said: str, claim: Claim) -> None:
    first = claim(path)
    beside(path, "lock").write_text(said)
    with pytest.raises(InUse, match=r"in use by another process$"):
        claim(path)
    assert first.is_locked


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_knows_no_locks_will_do(path: Path, code: int, claim: Claim) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    saver = claim(path, none)
    assert not saver.is_locked
    saver.write({"state": 1})
    assert saver.read() == {"state": 1}


def test_a_lock_that_wants_the_right_to_write_is_had_too(path: Path, claim: Claim) -> None:
    def as_on_nfs(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fcntl.flock(descriptor, operation)

    assert claim(path, as_on_nfs).is_locked
    with pytest.raises(InUse):
        claim(path)


def test_a_lock_that_fails_otherwise_is_a_failure(path: Path, claim: Claim) -> None:
    def broken(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        claim(path, broken)


def test_a_lock_does_not_keep_the_disk_from_being_made_read_only(path: Path, claim: Claim) -> None:
    claim(path)
    links = {int(file.name): file for file in Path("/proc/self/fd").iterdir()}
    (lock,) = [number for number, file in links.items() if os.path.realpath(file) == str(beside(path, "lock"))]
    assert fcntl.fcntl(lock, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


@pytest.mark.parametrize("trap", ["a link", "a pipe"])
def test_what_stands_where_the_lock_is_does_neither_lead_elsewhere_nor_block(
    path: Path, trap: str, claim: Claim
) -> None:
    path.parent.mkdir()
    victim, lock = path.with_name("victim"), beside(path, "lock")
    victim.write_text("precious")
    if trap == "a link":
        lock.symlink_to(victim)
        with pytest.raises(OSError, match=r"symbolic links.*recovery\.json\.lock"):
            claim(path)
    else:
        os.mkfifo(lock)
        claim(path)
    assert victim.read_text() == "precious"


def test_a_lock_that_was_removed_is_taken_again(path: Path, claim: Claim) -> None:
    first = claim(path)
    beside(path, "lock").unlink()
    first.write({"state": 1})
    with pytest.raises(InUse):
        claim(path)


def test_a_directory_that_was_removed_is_made_again(path: Path, claim: Claim) -> None:
    saver = claim(path)
    beside(path, "lock").unlink()
    path.parent.rmdir()
    saver.write({"state": 1})
    assert saver.is_locked and saver.read() == {"state": 1}


def test_a_file_that_another_process_has_taken_meanwhile_is_left_to_it(path: Path, claim: Claim) -> None:
    first = claim(path)
    beside(path, "lock").unlink()
    claim(path).write({"state": "the other's"})
    for _ in range(2):
        with pytest.raises(InUse):
            first.write({"state": "mine"})
    assert first.read() == {"state": "the other's"}


def test_a_link_of_roots_is_followed_whoever_writes_the_file(
    path: Path, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make a link of root's")
    path.parent.mkdir()
    path.symlink_to("real")
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    claim(path)
    assert path.is_symlink()


def test_a_claim_that_was_released_is_free(path: Path, claim: Claim) -> None:
    claim(path).release()
    assert claim(path).is_locked


def test_a_file_of_16_mebibytes_is_read_and_a_larger_one_is_not_ours(path: Path, claim: Claim) -> None:
    claim(path)
    path.write_text('"' + "x" * ((1 << 24) - 2) + '"')
    assert Saver(path).read() == "x" * ((1 << 24) - 2)
    path.write_text('"' + "x" * ((1 << 24) - 1) + '"')
    with pytest.raises(Unusable, match="larger"):
        Saver(path).read()


def test_the_content_is_in_the_file_when_it_is_forced_to_the_disk(
    path: Path, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = claim(path)
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda fd: sizes.append(os.fstat(fd).st_size))
    saver.write("state")
    assert sizes[0] == len('"state"')


def test_a_file_set_aside_replaces_an_earlier_one_but_no_directory(path: Path, claim: Claim) -> None:
    saver = claim(path)
    for state in (1, 2):
        saver.write(state)
        assert saver.put_aside("old") == beside(path, "old")
    assert beside(path, "old").read_text() == "2"
    beside(path, "old").unlink()
    beside(path, "old").mkdir()
    beside(path, "old.2").mkdir()
    saver.write(3)
    assert saver.put_aside("old") == beside(path, "old.3")


def test_several_missing_directories_are_made(tmp_path: Path, claim: Claim) -> None:
    claim(tmp_path / "a" / "b" / "c" / "recovery.json")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_writing_keeps_no_file_open(path: Path, claim: Claim) -> None:
    saver = claim(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    saver.write(1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
