"""The launch: what the proxy owes to twistd or twist, which start it.

These decide as whom it runs, whether it goes to the background, and where the log goes.
"""

from __future__ import annotations

import os
import pwd
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

    def direct_log(self, application: Any) -> None:
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
        if os.geteuid() or (uid is None and gid is None):
            action()
            return
        uid = 0 if uid is None else uid
        runAsEffectiveUser(uid, pwd.getpwuid(uid).pw_gid if gid is None else gid, action)

    def refuse(self, why: str) -> NoReturn:
        """End the start with one line.

        A plain exception would show the operator a traceback.  But it is what makes twistd remove its pidfile, and
        tell the process that waits for a daemon to start.
        """
        self.log.critical("{why}", why=why)
        pidfile, waiting = self._options.get("pidfile"), self._options.get("statusPipe")
        if pidfile:
            # Privileges that were dropped may not suffice.
            with suppress(OSError):
                Path(pidfile).unlink(missing_ok=True)
        if waiting is not None:
            os.write(waiting, f"1 {why}".encode("ascii", "backslashreplace")[:100])
            os.close(waiting)
        raise SystemExit(1)
