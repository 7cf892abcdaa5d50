"""A kernel lock on a file of its own: one process at a time holds it, until it ends, however it ends.

The content of the file says which process holds the lock, for people and error messages only.  Other users may be able
to create files in the directory, so no link is followed, and only the locked file itself is written.

This module does not know what a lock is for.  The recovery file and unix sockets have one each.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""Errors from file systems that do not support locks."""


class Held(Exception):
    """Another process has the lock; the message says which."""


class Lock:
    """The lock on the file at `path`, which is created; `flock` is the system call, replaceable in tests."""

    def __init__(self, path: Path, flock: Callable[[int, int], None] = fcntl.flock) -> None:
        self.path = path
        self._flock = flock
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether we have the lock; `False` on file systems without locks."""
        return self._file is not None

    @property
    def is_intact(self) -> bool:
        """Whether we have the lock and its file has not been removed since, so that no other process can have it."""
        return self._file is not None and self._is_at_path(self._file)

    def take(self) -> None:
        """Take the lock, unless we have it and it is intact.

        :raises Held: another process has it.
        :raises OSError: the file cannot be opened, or is a link.
        """
        if self.is_intact:
            return
        self.release()
        # A file open for writing would prevent the disk from being remounted read-only, so try read-only access first;
        # NFS grants exclusive locks only with write access.
        for access in (os.O_RDONLY, os.O_RDWR):
            self._file = self._open(access)
            if self._file is not None:
                self._sign(self._file)
                return

    def check(self) -> None:
        """Check that the file can be opened if it exists; whether another process has the lock does not matter.

        :raises OSError: it cannot, or is a link.
        """
        with suppress(FileNotFoundError):
            os.close(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))

    def release(self) -> None:
        """Release the lock; the file stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Remove the file, and release the lock."""
        # Remove the file first: the next process that takes the lock checks that the file is still there.
        if self.is_intact:
            with suppress(OSError):
                self.path.unlink()
        self.release()

    def _open(self, access: int) -> int | None:
        """Lock the file; return the descriptor that holds the lock, or `None` if locks are not supported."""
        while True:
            # Do not follow a link, and do not block on a pipe.
            file = os.open(self.path, access | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                self._flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(file)
                os.close(file)
                raise Held(holder) from None
            except OSError as error:
                os.close(file)
                if error.errno not in _NO_LOCKS:
                    raise
                return None
            if self._is_at_path(file):
                return file
            # The holder of the lock removed the file after we had opened it.
            os.close(file)

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.lstat())
        except FileNotFoundError:
            return False

    def _sign(self, locked: int) -> None:
        """Write our process ID and host name to the file; its modification time says since when we have the lock."""
        # The lock is valid even if a full disk prevents this.
        with suppress(OSError):
            file = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                found = os.fstat(file)
                # By now, the path may name another file, and another user may have led us to the locked one.
                ours = os.path.samestat(found, os.fstat(locked)) and stat.S_ISREG(found.st_mode)
                if ours and found.st_nlink == 1:
                    os.ftruncate(file, 0)
                    os.write(file, f"{os.getpid()} on {os.uname().nodename}\n".encode())
            finally:
                os.close(file)


def _holder(file: int) -> str:
    """Describe the process that has the lock, as far as the file says."""
    said = re.fullmatch(r"(\d{1,10} on [\w.-]{1,64})\n", os.read(file, 100).decode("ascii", "replace"), re.ASCII)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(os.fstat(file).st_mtime))
    return f"process {said[1]} since {since}" if said else "another process"
