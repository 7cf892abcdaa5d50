"""The saver: a JSON file that is replaced atomically and belongs to one process at a time.

At any instant, even when the power fails, the path holds either the latest content or the previous one, complete.  To
that end, new content is written to a temporary file beside it and synced to disk, then renamed over the old file, and
then the directory is synced.  The rename makes it a different file each time, so the lock is on a separate file that
stays.

This module does not know what it stores, and reads no clock.  `fooproxy.recovery.state` reads the file, and
`fooproxy.recovery.saving` claims and writes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fooproxy.creating import check_directory
from fooproxy.locking import Held, Lock

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST = 1 << 24
"""Bytes; a larger file is not read.  A state has at most 200 kB, plus 8 kB for each server, of which there are 2000."""


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
        self._flock = flock
        self._lock: Lock | None = None

    @property
    def is_locked(self) -> bool:
        """Whether the file is locked against other processes; `False` on file systems without locks."""
        return self._lock is not None and self._lock.is_held

    def claim(self) -> None:
        """Lock the file until this process ends, and check that it can be written; its content does not change.

        A symbolic link is followed once, here; from then on its target is replaced.  Missing directories are created.

        :raises InUse: another process uses the file.
        :raises OSError: the file cannot be written, is not a regular file, or is another user's symbolic link.
        """
        self._follow()
        self._hold()
        self._exists()
        self._write_new(b"")
        self._beside("new").unlink()

    def check(self) -> None:
        """Check whether `claim` would succeed, as far as that can be known without changing anything.

        It does not say whether another process uses the file.

        :raises OSError: it would not.
        """
        self._follow()
        self._exists()
        check_directory(self.path.parent)
        Lock(self._beside("lock"), self._flock).check()

    def release(self) -> None:
        """Unlock the file for other processes; write nothing after this."""
        if self._lock is not None:
            self._lock.release()

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
        """Rename the file by adding `suffix`, replacing an earlier file of that name; return the new path.

        If a directory has that name, a number is added too.
        """
        aside, number = self._beside(suffix), 1
        while aside.is_dir():
            number += 1
            aside = self._beside(f"{suffix}.{number}")
        return self.path.replace(aside)

    def _follow(self) -> None:
        """Follow a symbolic link, unless another user could have put it there."""
        if self.path.is_symlink():
            if self.path.lstat().st_uid not in (0, os.geteuid()):
                # Other users who may write to the directory could make us replace any file.
                raise OSError(errno.EPERM, "it is a symbolic link that belongs to another user")
            self.path = Path(os.path.realpath(self.path))

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
        if self._lock is None:
            self._lock = Lock(self._beside("lock"), self._flock)
        if self._lock.is_intact:
            return
        _make_directory(self.path.parent)
        try:
            self._lock.take()
        except Held as holder:
            raise InUse(f"the recovery file {self.path} is in use by {holder}") from None


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
