"""The saver: a JSON file that is replaced atomically and belongs to one process at a time.

At any instant, even when the power fails, the path holds either the latest content or the previous one, complete.  To
that end, new content is written to a temporary file beside it and synced to disk, then renamed over the old file, and
then the directory is synced.  The rename makes it a different file each time, so the lock is on a separate file that
stays.  The kernel releases the lock when the process ends, however it ends; the content of the lock file only serves
people and error messages.

This module does not know what it stores, and reads no clock.  `fooproxy.recovery.state` reads the file, and
`fooproxy.recovery.saving` claims and writes it.
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
"""Bytes; a larger file cannot be ours, since a state never reaches a fifth of this."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""Errors from file systems that do not support locks."""


class Unusable(Exception):
    """The file exists but does not contain a usable state; the message says what is wrong with it."""


class InUse(Exception):
    """Another process uses the file; the message says which."""


class Saver:
    """The file at `path`, with its companions whose names end in ``.new`` and ``.lock``.

    `flock` is the system call, replaceable in tests.  Not thread-safe: only one thread at a time may call methods.
    """

    def __init__(self, path: Path, flock: Callable[[int, int], None] = fcntl.flock) -> None:
        self.path = path
        self.is_locked = False
        """Whether the file is locked against other processes; `False` on file systems without locks."""
        self._flock = flock
        self._lock: int | None = None

    def claim(self) -> None:
        """Lock the file until this process ends, and check that it can be written; its content does not change.

        A symbolic link is followed once, here; from then on its target is replaced.  Missing directories are created.

        :raises InUse: another process uses the file.
        :raises OSError: the file cannot be written, or is not a regular file.
        """
        if self.path.is_symlink():
            self.path = Path(os.path.realpath(self.path))
        self._hold()
        self._exists()
        self._write_new(b"")
        self._beside("new").unlink()

    def release(self) -> None:
        """Unlock the file for other processes; write nothing after this."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> object:
        """Return the content of the file.

        :raises FileNotFoundError: the file does not exist.
        :raises Unusable: the file cannot be read, is too large, or is not valid JSON.
        :raises OSError: the path is not a regular file, so we must not move it.
        """
        if not self._exists():
            raise FileNotFoundError(errno.ENOENT, "it does not exist")
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
            raise Unusable(f"it is not valid JSON ({error})") from error
        return content

    def write(self, content: object) -> None:
        """Replace the content of the file with `content`, which is on disk when this returns.

        :raises InUse: another process took the file after the lock file was removed, or before it could be created.
        :raises OSError: `content` could not be written; the old file is unchanged.
        """
        text = json.dumps(content).encode()
        self._hold()
        self._write_new(text)
        self._beside("new").replace(self.path)
        _sync_directory(self.path.parent)

    def put_aside(self, suffix: str) -> Path:
        """Rename the file by adding `suffix`, replacing an earlier file of that name; return the new path."""
        return self.path.replace(self._beside(suffix))

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def _exists(self) -> bool:
        exists = self.path.exists()
        if exists and not self.path.is_file():
            raise OSError(errno.EINVAL, "it exists, but is not a regular file")
        return exists

    def _write_new(self, text: bytes) -> None:
        new = self._beside("new")
        # Anything already there is a leftover or a trap: a link, or a pipe that nobody reads.
        new.unlink(missing_ok=True)
        try:
            with new.open("xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # A partial file must not use up the last space of a full disk.
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise

    def _hold(self) -> None:
        """Take the lock, unless we hold it and its file has not been removed since."""
        path = self._beside("lock")
        if self._lock is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._lock), path.lstat()):
                    return
            self.release()
        _make_directory(path.parent)
        # A file open for writing would prevent the disk from being remounted read-only, so try read-only access first;
        # NFS grants exclusive locks only with write access.
        for access in (os.O_RDONLY, os.O_RDWR):
            self._lock = self._take(path, access)
            self.is_locked = self._lock is not None
            if self.is_locked:
                _sign(path)
                return

    def _take(self, path: Path, access: int) -> int | None:
        """Lock the file at `path`; return the descriptor that holds the lock, or `None` if locks are not supported."""
        # Do not follow a link, and do not block on a pipe.
        lock = os.open(path, access | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            self._flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(lock)
            os.close(lock)
            raise InUse(f"the recovery file {self.path} is in use by {holder}") from None
        except OSError as error:
            os.close(lock)
            if error.errno not in _NO_LOCKS:
                raise
            return None
        return lock


def _sign(path: Path) -> None:
    """Write our process ID and host name to the lock file; its modification time says since when we hold it."""
    # The lock is valid even if a full disk prevents this.
    with suppress(OSError):
        path.write_text(f"{os.getpid()} on {os.uname().nodename}\n")


def _holder(lock: int) -> str:
    """Describe the process that holds the lock, as far as the lock file says."""
    said = re.fullmatch(r"(\d{1,10} on [\w.-]{1,64})\n", os.read(lock, 100).decode("ascii", "replace"), re.ASCII)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(os.fstat(lock).st_mtime))
    return f"process {said[1]} since {since}" if said else "another process"


def _make_directory(directory: Path) -> None:
    """Create the directory and its missing parents, and sync them to disk."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        # Some file systems cannot sync directories.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(opened)


def _not_json(name: str) -> NoReturn:
    # Python accepts NaN and the infinities, which JSON does not have.
    raise ValueError(f"{name} is not a JSON number")
