"""Whether a file can be created is found out, whatever the permissions say, and without creating one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fooproxy.creating import check_directory


@pytest.fixture
def nobody() -> Iterator[None]:
    """Makes this process act as another user."""
    if os.geteuid():
        pytest.skip("needs root")
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("below", ["", "new", "new/deep"])
def test_a_directory_of_ours_passes_and_stays_as_it_is(tmp_path: Path, below: str) -> None:
    before = tmp_path.stat().st_mtime_ns
    check_directory(tmp_path / below)
    assert (list(tmp_path.iterdir()), tmp_path.stat().st_mtime_ns) == ([], before)


@pytest.mark.parametrize("path", ["/proc", "/proc/new/deep", "/sys", "/dev/pts"])
def test_what_only_the_kernel_creates_files_in_is_refused(path: str) -> None:
    with pytest.raises(PermissionError) as refused:
        check_directory(Path(path))
    assert refused.value.filename == path.removesuffix("/new/deep")


@pytest.mark.parametrize("below", ["", "new/deep"])
def test_what_is_no_directory_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as refused:
        check_directory(tmp_path / "file" / below)
    assert refused.value.filename == str(tmp_path / "file")


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(NotADirectoryError):
        check_directory(tmp_path / "link" / "new")


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("path", ["/", "/var/new", "/root"])
def test_a_directory_of_another_user_is_refused(path: str) -> None:
    with pytest.raises(PermissionError) as refused:
        check_directory(Path(path))
    assert refused.value.filename == path.removesuffix("/new")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSPC])
def test_a_disk_that_is_full_or_has_no_files_without_a_name_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    check_directory(tmp_path)
