"""Whether a file can be created in a directory: asks the kernel, and creates nothing visible.

The permissions alone do not show it: they let root do anything, even in ``/proc``.  The recovery file and
``--check-config`` use this.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_UNKNOWN = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""Errors from file systems that cannot create a file without a name; ordinary files may still be possible."""

_FULL = (errno.ENOSPC, errno.EDQUOT)

_WITHOUT_FILES = frozenset({"cgroup", "cgroup2", "devpts", "proc", "sysfs"})
"""File systems in which only the kernel creates files."""


def check_directory(directory: Path) -> None:
    """Check that a file can be created in `directory`, or that directory itself if it does not exist.

    A full disk is not an error, since it may have space again later.

    :raises OSError: no file can be created; the error names the nearest existing directory.
    """
    there = _nearest(directory)
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise _refusal(errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES, there)
    try:
        os.close(os.open(there, os.O_TMPFILE | os.O_WRONLY, 0o600))
    except OSError as error:
        if error.errno in _UNKNOWN and _kind(there) in _WITHOUT_FILES:
            raise _refusal(errno.EPERM, there) from None
        if error.errno not in (*_UNKNOWN, *_FULL):
            raise


def _nearest(directory: Path) -> Path:
    """Return `directory`, or the nearest one above it that exists."""
    for each in (directory, *directory.parents):
        try:
            is_directory = each.is_dir()
            if is_directory or each.is_symlink() or each.exists():
                break
        except NotADirectoryError:
            continue
    if not is_directory:
        raise _refusal(errno.ENOTDIR, each)
    return each


def _kind(directory: Path) -> str:
    """Return the type of the file system that a directory is on, or nothing."""
    device = directory.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == name:
            return kind.split()[0]
    return ""


def _refusal(number: int, directory: Path) -> OSError:
    return OSError(number, os.strerror(number), str(directory))
