"""Opens and closes listening ports, ours and Twisted's, without noise in the log.

Twisted logs a line for each port that it opens and closes, by the name of a class, with no setting to turn that off.
The service calls this.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.python import log
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint

_SILENT = {"log_format": ""}
"""A context for Twisted's legacy log, which its ports use: an event without a text does not become a line."""


def listen_now(endpoint: IStreamServerEndpoint, factory: IProtocolFactory) -> IListeningPort:
    """Listen, and return the port; Twisted's own endpoints have it at once.

    :raises CannotListenError: or another exception of the endpoint's.
    """
    results: list[Any] = []
    log.callWithContext(_SILENT, endpoint.listen, factory).addBoth(results.append)
    (port,) = results
    if isinstance(port, Failure):
        port.raiseException()
    # Called when the port has been closed.
    port.connectionLost = partial(log.callWithContext, _SILENT, port.connectionLost)
    listening: IListeningPort = port
    return listening
