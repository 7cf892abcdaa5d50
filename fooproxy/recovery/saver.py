"""The saver: one file of JSON that is replaced as a whole, and that one process has.

At any instant, a loss of power included, the path holds either the last content or the one before, whole: what is new
is written beside and forced to the disk, then takes the place of the old, and then the directory is forced to the disk.
Since that makes it another file each time, what is locked is a file beside it, which stays.  The kernel gives the lock
back when the process ends, however it ends, so what that file says is for people and for messages only.

It knows nothing of what it keeps, and reads no clock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST = 1 << 20
"""Bytes beyond which a file cannot be ours; a state is never a fifth of it."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""What file systems answer that know no locks."""


class Unusable(Exception):
    """The file is there, but holds no state; the message says what is wrong with it."""


class InUse(Exception):
    """Another process has the file; the message says which."""


class Saver:
    """The file at `path`, with those beside it whose names end in ``.new`` and ``.lock``.

    `flock` is the kernel's.  Only one thread may be in here at a time.
    """

    def __init__(self, path: Path, flock: Callable[[int, int], None] = fcntl.flock) -> None:
        self.path = path
        self.is_locked = False
        """Whether no other process can have the file; `False` on file systems that know no locks."""
        self._flock = flock
        self._lock: int | None = None

    def claim(self) -> None:
        """Take the file for this process until it ends, and see whether it can be written; its content stays.

        A link is followed, now and not again, and what it leads to is replaced from then on.  Directories that are
        missing are made.

        :raises InUse: another process has it.
        :raises OSError: it could not be written, or is not a file.
        """
        if self.path.is_symlink():
            self.path = Path(os.path.realpath(self.path))
        self._hold()
        self._exists()
        self._write_new(b"")
        self._beside("new").unlink()

    def release(self) -> None:
        """Let another process have the file; nothing is written any more."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> object:
        """Give what the file holds.

        :raises FileNotFoundError: there is none.
        :raises Unusable: it cannot be read, is too large, or is no JSON.
        :raises OSError: what is there is not a file at all, and so is not ours to move.
        """
        if not self._exists():
            raise FileNotFoundError(errno.ENOENT, "there is none")
        try:
            with self.path.open("rb") as file:
                text = file.read(_LARGEST + 1)
        except OSError as error:
            raise Unusable(f"it cannot be read ({error.strerror})") from error
        if len(text) > _LARGEST:
            raise Unusable(f"it is larger than {_LARGEST} bytes")
        try:
            content: object = json.loads(text, parse_constant=_not_json)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"it is not JSON ({error})") from error
        return content

    def write(self, content: object) -> None:
        """Replace the file by `content`; when this returns, it is on the disk.

        :raises InUse: another process has it: somebody removed the lock, or there was no room to make one before.
        :raises OSError: it could not be written; the old file is as it was.
        """
        text = json.dumps(content).encode()
        self._hold()
        self._write_new(text)
        self._beside("new").replace(self.path)
        _sync_directory(self.path.parent)

    def put_aside(self, suffix: str) -> Path:
        """Move the file out of the way, over an earlier one that was, and give its new path."""
        return self.path.replace(self._beside(suffix))

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def _exists(self) -> bool:
        exists = self.path.exists()
        if exists and not self.path.is_file():
            raise OSError(errno.EINVAL, "it is there, but is not a file")
        return exists

    def _write_new(self, text: bytes) -> None:
        new = self._beside("new")
        # Whatever stands there is left over, or a trap: a link, or a pipe that nobody reads.
        new.unlink(missing_ok=True)
        try:
            with new.open("xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # A part of it must not take the last room of a full disk.
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise

    def _hold(self) -> None:
        """Take the lock, unless it is held already and nobody has removed its file since."""
        path = self._beside("lock")
        if self._lock is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._lock), path.lstat()):
                    return
            self.release()
        _make_directory(path.parent)
        # NFS gives its locks to those only who may write; elsewhere a file that is open for writing would keep the
        # disk from being made read-only.
        for access in (os.O_RDONLY, os.O_RDWR):
            self._lock = self._take(path, access)
            self.is_locked = self._lock is not None
            if self.is_locked:
                _sign(path)
                return

    def _take(self, path: Path, access: int) -> int | None:
        """Lock the file at `path`; gives what holds the lock, or `None` where there are no locks."""
        # Whatever stands there must neither lead elsewhere nor block.
        lock = os.open(path, access | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            self._flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(lock)
            os.close(lock)
            raise InUse(f"{holder} has the recovery file {self.path}") from None
        except OSError as error:
            os.close(lock)
            if error.errno not in _NO_LOCKS:
                raise
            return None
        return lock


def _sign(path: Path) -> None:
    """Say in the lock's file who has it; its time says since when."""
    # A full disk must not cost the lock.
    with suppress(OSError):
        path.write_text(f"{os.getpid()} on {os.uname().nodename}\n")


def _holder(lock: int) -> str:
    """Name the process that has the lock, as far as it has said."""
    said = re.fullmatch(r"(\d{1,10} on [\w.-]{1,64})\n", os.read(lock, 100).decode("ascii", "replace"), re.ASCII)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(os.fstat(lock).st_mtime))
    return f"process {said[1]}, since {since}," if said else "another process"


def _make_directory(directory: Path) -> None:
    """Make the directory and those above it that are missing; they are on the disk afterwards."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        # Some file systems know no such thing.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(opened)


def _not_json(name: str) -> NoReturn:
    # Python writes and reads these; JSON has no such thing.
    raise ValueError(f"{name} is no number")
