"""Opens and closes listening ports, ours and Twisted's, without noise in the log.

Twisted logs a line for each port that it opens and closes, by the name of a class, with no setting to turn that off.
Everything else, including errors, is still logged.  The service calls this.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.python import context, log
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint


class _Silent(dict[str, Any]):
    """A context for Twisted's legacy log, in which events without text are dropped; errors are still logged."""

    def copy(self) -> _Silent:
        """Return a copy of the same class: the log copies its context for each event."""
        return _Silent(self)

    def update(self, *more: Any, **named: Any) -> None:
        """Add the fields of an event, as the log does next."""
        super().update(*more, **named)
        if self.get("isError"):
            self.pop("log_format", None)


def _silently(do: Callable[..., Any], *arguments: Any) -> Any:
    silent = _Silent(context.get(log.ILogContext), log_format="")
    return context.call({log.ILogContext: silent}, do, *arguments)


def listen_now(endpoint: IStreamServerEndpoint, factory: IProtocolFactory) -> IListeningPort:
    """Listen, and return the port; Twisted's own endpoints have it at once.

    :raises CannotListenError: or another exception of the endpoint's.
    """
    results: list[Any] = []
    _silently(endpoint.listen, factory).addBoth(results.append)
    (port,) = results
    if isinstance(port, Failure):
        port.raiseException()
    # Twisted calls this when the port is closed, and logs a line.
    port.connectionLost = partial(_silently, port.connectionLost)
    listening: IListeningPort = port
    return listening


def close_now(port: Any) -> None:
    """Close a port that `listen_now` returned; ``stopListening`` would wait for the reactor, which may never run."""
    port.connectionLost(Failure(ConnectionDone()))
