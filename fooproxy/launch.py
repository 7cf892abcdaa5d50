"""How twistd or twist started the proxy: they decide its user, whether it is in the background, and where it logs.

The service calls this; it does not know what is started.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher, textFileLogObserver
from twisted.python.components import Componentized
from twisted.python.util import runAsEffectiveUser

from fooproxy.early import is_free, let_go
from fooproxy.logs.sinks import Stream, to_descriptor, to_file, to_syslog
from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.commandline import Options
    from fooproxy.logs.formats import Format
    from fooproxy.logs.log import Log
    from fooproxy.logs.sinks import Sink


class Launch:
    """How the proxy was started: by the options on the command line before its own `options`.

    All log lines of the process go through `logs`, formatted by `form`, unless ``--logger`` names another observer.
    """

    log = Logger()

    def __init__(self, options: Options, logs: Log, form: Format) -> None:
        # The options of twistd or twist, if one of them started the proxy.
        self._options: dict[str, Any] = getattr(options, "parent", None) or {}
        self.daemonized = not self._options.get("nodaemon", True)
        """Whether the proxy runs in the background."""
        self._logs = logs
        self._form = form
        self._starter: _Starter | None = None

    def prepare(self, application: Any) -> None:
        """Prepare what twistd needs before it logs and before it goes to the background."""
        if "fileLogObserverFactory" in self._options:
            self._direct_twist()
        elif isinstance(application, Componentized) and not self._options.get("logger"):
            self._direct_twistd(application)
        if self.daemonized:
            self._starter = _Starter()

    def settled(self) -> None:
        """Begin to write the log, since the process will not fork again."""
        self._logs.writer.start()

    def succeeded(self) -> None:
        """Let the process that waits for the start exit: the start can no longer fail."""
        if self._starter is not None:
            self._starter.release()

    def _direct_twistd(self, application: Componentized) -> None:
        """Log to where twistd would, except that the foreground keeps standard output for reports."""
        path = self._options.get("logfile")
        writer = self._logs.writer
        sink: Sink
        if self._options.get("syslog"):
            sink = to_syslog(writer, self._options.get("prefix", ""), self._form)
        elif path == "-" and self.daemonized:
            # twistd itself refuses this combination.
            return
        elif path == "-":
            sink = self._standard(1)
        elif path or self.daemonized:
            try:
                sink, file = to_file(writer, path or "twistd.log", self._form)
            except OSError as error:
                why = f"cannot open the log file {error.filename or path}: {error.strerror}"
                raise SystemExit(f"fooproxy: {one_line(why)}; choose another one with --logfile") from error
            # As in twistd.  An earlier SIGUSR1 needs no rotation: the file has only just been opened.
            if file is not None and is_free(signal.SIGUSR1):
                rotate = file.rotate
                signal.signal(signal.SIGUSR1, lambda *_: writer.order(rotate))
        else:
            sink = self._standard(2)
        application.setComponent(ILogObserver, self._logs.observer(sink))

    def _direct_twist(self) -> None:
        """Log to the file that twist has opened and in the format that it has chosen, but by our writer."""
        chosen = self._options["fileLogObserverFactory"]
        if self._options["logLevel"] is LogLevel.info:
            # This is twist's default, so its --log-level was not given.
            self._options["logLevel"] = self._logs.level

        def observer(file: Any) -> Any:
            if file is None:
                return LogPublisher()
            if chosen is textFileLogObserver:
                return self._logs.observer(to_descriptor(self._logs.writer, file.fileno(), self._form))
            return self._logs.observer(chosen(Stream(self._logs.writer, file.fileno())))

        self._options["fileLogObserverFactory"] = observer

    def _standard(self, descriptor: int) -> Sink:
        """Log to standard output or error, unless that was closed at start, as its descriptor may be reused by now."""
        stream = {1: sys.__stdout__, 2: sys.__stderr__}[descriptor]
        return LogPublisher() if stream is None else to_descriptor(self._logs.writer, descriptor, self._form)

    def unprivileged(self, action: Callable[[], None]) -> None:
        """Do `action` as the user that twistd is about to become, so that this user owns the files."""
        uid, gid = self._options.get("uid"), self._options.get("gid")
        # twistd looks up the user's groups by name, even with --gid, so the user must exist.
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

        A plain exception would show the operator a traceback.  It would also make twistd remove its pid file and tell
        the process that waits for the daemon; this function does both instead.
        """
        why = one_line(why)
        self.log.critical("{why}", why=why)
        pidfile = self._options.get("pidfile")
        if pidfile:
            # The privileges that this needs may have been dropped.
            with suppress(OSError):
                Path(pidfile).unlink(missing_ok=True)
        if self._starter is not None:
            self._starter.tell(f"fooproxy: {why}")
        raise SystemExit(1)


class _Starter:
    """The process that the operator started, which waits until the daemon has started or failed.

    twistd has a pipe of its own for that, but takes 100 bytes from it, and prints them as a Python literal together
    with a second line.  So the process is made to read from this pipe before that one, as soon as it has forked; if
    there is nothing in it, the rest is twistd's.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._reading, self._writing = os.pipe()
        os.register_at_fork(after_in_parent=self._wait)

    def tell(self, line: str) -> None:
        """Make the waiting process print `line` and exit with status 1."""
        os.write(self._writing, line.encode(errors="backslashreplace"))

    def release(self) -> None:
        """Let the waiting process continue."""
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
