"""Runs the proxy as twistd does, in the foreground, without a pid file and without a search for plugins.

This module knows twistd and the proxy's service, but not its parts.  ``fooproxy.__main__`` calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.application.service import ServiceMaker

# The options that `runApp` takes; Twisted only forgot to list them as exported.
from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

from fooproxy.commandline import Options

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Twistd(ServerOptions):
    """twistd's options, with the proxy as its only command."""

    loadedPlugins = {"fooproxy": ServiceMaker("fooproxy", "fooproxy.service", "", "fooproxy")}
    subCommands = [("fooproxy", None, Options, "")]

    def getSynopsis(self) -> str:
        """Leave twistd itself out of the help."""
        return "Usage:"


def run(arguments: Sequence[str]) -> None:
    """Run the proxy with these `arguments` until it is stopped.

    :raises SystemExit: an option is wrong (status 2), or the proxy cannot start (status 1).
    """
    config = _Twistd()
    config.parseOptions(["--nodaemon", "--pidfile=", "fooproxy", *arguments])
    runApp(config)
