"""The launch: what the proxy owes to twistd or twist, which start it.

These decide as whom it runs, whether it goes to the background, and where the log goes.
"""

from __future__ import annotations

import os
import pwd
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    textFileLogObserver,
)
from twisted.python.components import Componentized
from twisted.python.util import runAsEffectiveUser

from fooproxy.early import let_go
from fooproxy.process import StandardError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.options import Options


class Launch:
    """How the proxy was started, by those options on the command line that stand before its own `options`."""

    log = Logger()

    def __init__(self, options: Options) -> None:
        # twistd's, or twist's, or none.
        self._options: dict[str, Any] = getattr(options, "parent", None) or {}
        self.daemonized = not self._options.get("nodaemon", True)
        """Whether the proxy runs in the background."""
        self.tells_debug = True
        """Whether messages of level debug go anywhere."""
        self._starter: _Starter | None = None

    def prepare(self, application: Any) -> None:
        """Make ready what has to be there before twistd logs, and before it goes to the background."""
        self._direct_log(application)
        if self.daemonized:
            self._starter = _Starter()

    def succeeded(self) -> None:
        """Let the process that waits for the start go: nothing will be refused any more."""
        if self._starter is not None:
            self._starter.release()

    def _direct_log(self, application: Any) -> None:
        """In the foreground, keep standard output for reports, and log to standard error."""
        elsewhere = self.daemonized or self._options.get("logfile") or self._options.get("syslog")
        if isinstance(application, Componentized) and not elsewhere:
            observer = textFileLogObserver(cast("IO[str]", StandardError()))
            quiet = FilteringLogObserver(observer, [LogLevelFilterPredicate(LogLevel.info)])
            application.setComponent(ILogObserver, quiet)
            self.tells_debug = False

    def unprivileged(self, action: Callable[[], None]) -> None:
        """Do something as the user that twistd is about to become, whom the files must belong to."""
        uid, gid = self._options.get("uid"), self._options.get("gid")
        # twistd needs the user's name for its groups, whatever --gid says.
        if uid is not None and (gid is None or uid != os.getuid()):
            group = self._group(uid)
            gid = group if gid is None else gid
        if os.geteuid() or gid is None:
            action()
        else:
            runAsEffectiveUser(0 if uid is None else uid, gid, action)

    def _group(self, uid: int) -> int:
        try:
            return pwd.getpwuid(uid).pw_gid
        except KeyError:
            self.refuse(
                f"cannot become user {uid}: /etc/passwd has no user of that number; "
                "add one, or start fooproxy as that user, without --uid"
            )

    def refuse(self, why: str) -> NoReturn:
        """End the start with one line.

        A plain exception would show the operator a traceback.  But it is what makes twistd remove its pidfile, and
        tell the process that waits for a daemon to start, so both are done here.
        """
        self.log.critical("{why}", why=why)
        pidfile = self._options.get("pidfile")
        if pidfile:
            # Privileges that were dropped may not suffice.
            with suppress(OSError):
                Path(pidfile).unlink(missing_ok=True)
        if self._starter is not None:
            self._starter.tell(f"fooproxy: {why}")
        raise SystemExit(1)


class _Starter:
    """The process that an operator has started, which waits until it knows what has become of the daemon.

    twistd has a pipe of its own for that, but takes 100 bytes from it, and prints them as a Python literal together
    with a second line.  So the process is made to read from this pipe before that one, as soon as it has forked; if
    there is nothing in it, the rest is twistd's.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._reading, self._writing = os.pipe()
        os.register_at_fork(after_in_parent=self._wait)

    def tell(self, line: str) -> None:
        """Have it print `line` and end with status 1."""
        os.write(self._writing, line.encode(errors="backslashreplace"))

    def release(self) -> None:
        """Let it go on."""
        os.close(self._reading)
        os.close(self._writing)

    def _wait(self) -> None:
        # A daemon forks twice.
        if os.getpid() != self._pid:
            return
        let_go()
        os.close(self._writing)
        status = 1
        try:
            with os.fdopen(self._reading, encoding="utf-8") as pipe:
                line = pipe.read()
            if not line:
                return
            if sys.__stderr__ is not None:
                print(line, file=sys.__stderr__, flush=True)
        except KeyboardInterrupt:
            status = 130
        # An exception would be ignored here.
        os._exit(status)
