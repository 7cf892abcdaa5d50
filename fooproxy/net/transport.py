"""Transports that write at once and are polled together: faster drop-in replacements for Twisted's own.

They carry TCP and unix sockets; unlike Twisted's, they cannot pass file descriptors over unix sockets.

Twisted's transports buffer each write, wait until the socket is writable, and send in the next turn of the event loop:
two more system calls and a turn for bytes that the kernel would have taken at once.  `Transport.write` sends at once
while nothing is buffered, and leaves data that the kernel does not take to Twisted's buffering.  A
`fooproxy.net.poller.Poller` is its reactor.

Buffers, producers, half-close and closing are those of `tcp.Connection`, with one improvement: after a write has
failed, what the peer sent before is still read.

This module knows nothing of the Foo protocol.  `fooproxy.net.endpoints` creates the transports.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet import abstract, main
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

from fooproxy.net.private import Connection, drop_unsent
from fooproxy.net.pump import CLOSED, LARGEST_READ
from fooproxy.net.sockets import TIMED_OUT, bottom_of, has_fin, loss, reset_on_close

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.interfaces import IProtocol

    from fooproxy.net.poller import Poller
    from fooproxy.net.pump import Tap

    Address = tuple[Any, ...] | str

_DONE = Failure(ConnectionDone())

_CLOSED_ALL_THE_SAME = suppress(OSError)
"""Ignores the error of a failed close; one object serves all calls."""


class Transport(Connection):
    """A connected, non-blocking socket.

    `peer` is the address of the other end: a tuple for TCP, only the path for a unix socket, or text for IPv4, which
    takes less memory and is shown as it is.

    Accepted and outgoing connections, and both kinds of sockets, share one class on purpose: CPython's inline caches
    remember one class per place.
    """

    relays = False
    """Whether the data read is relayed, though not by the pump; such reads are not set aside for a later turn."""
    connected = 1
    options_set_for: float | None = None
    """The last argument `within` of `set_options`, for this connection or the port that accepted it."""
    _clear = True
    _inflow: Tap | None = None
    _sink: Transport | Literal["awaited"] | None = None
    """The transport to which the pump writes the data read here; or a word, see `await_data`.

    One attribute serves both, since another one would cost each transport a dictionary of its own."""
    _waits = False
    """Whether `doWrite` is due, for unsent data, a FIN or a close."""
    _fin_is_due = False
    """Whether a FIN was requested; it may have been sent already."""
    _broken: Failure | None = None
    """Why a write has failed; after that, only reading continues."""
    _read_all = False

    def __init__(self, skt: socket.SocketType, protocol: IProtocol, peer: Address, poller: Poller) -> None:
        super().__init__(poller)
        self.socket = skt  # type: ignore[assignment]
        self.protocol = protocol
        self.peer = peer
        self._poller = poller
        self._number = skt.fileno()
        poller.addReader(self)

    def fileno(self) -> int:
        """Return the file descriptor, or -1 once it is closed."""
        return -1 if self.disconnected else self._number

    @property
    def clear(self) -> bool:
        """Whether `write` may send at once: nothing is buffered, and the socket accepts data."""
        return self._clear

    @clear.setter
    def clear(self, clear: bool) -> None:
        self._clear = clear
        if self._inflow is not None:
            self._inflow.outlet = self._number if clear else CLOSED

    @property
    def inflow(self) -> Tap | None:
        """The tap whose chunks the pump writes here; its `outlet` is this socket while `clear` is true."""
        return self._inflow

    @inflow.setter
    def inflow(self, tap: Tap | None) -> None:
        if self._inflow is not None:
            self._inflow.outlet = CLOSED
        self._inflow = tap
        if tap is not None:
            tap.outlet = self._number if self._clear else CLOSED

    def write(self, data: bytes) -> None:
        """Send `data`, at once if possible."""
        if self._clear:
            try:
                sent = self.socket.send(data)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    self.fail(loss(error, self._number))
                    return
                sent = 0
            if sent == len(data):
                return
            self.clear = False
            data = bytes(data[sent:])
        if not self._broken:
            super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send all of `iovec`, at once if possible."""
        self.write(b"".join(iovec))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register `producer`; a pull producer is called only after a write had to wait."""
        if not streaming:
            self.clear = False
        # Bypass `tcp.Connection`, which would pass the producer on to TLS.
        abstract.FileDescriptor.registerProducer(self, producer, streaming)

    def unregisterProducer(self) -> None:
        """Forget the producer, for which a close may have waited."""
        self.producer = None
        if self.connected and self.disconnecting:
            self.startWriting()

    @property
    def timed_out(self) -> bool:
        """Whether a write has failed because the peer had taken nothing for too long."""
        return self._broken is not None and self._broken.value is TIMED_OUT

    def startWriting(self) -> None:
        """Call `doWrite` whenever the socket is writable."""
        self._waits = True
        self._poller.addWriter(self)

    def stopWriting(self) -> None:
        """Stop calling `doWrite`."""
        self._waits = False
        self._poller.removeWriter(self)

    def pump(self, sink: Transport) -> None:
        """Write all data read from now on to `sink`, and pass it to the protocol's `tap` instead of the protocol.

        The effect is the same as with an `Interceptor` around a leg that forwards everything.
        """
        protocol: Any = self.protocol
        self._sink = sink
        self._poller.pump.start(self._number, sink, protocol.tap)

    @property
    def is_pumped(self) -> bool:
        """Whether the pump relays the data read here."""
        return isinstance(self._sink, Transport)

    def stop_pumping(self) -> None:
        """Pass the data read to the protocol again."""
        sink = self._sink
        if sink is not None:
            self._sink = None
            if isinstance(sink, Transport):
                # Otherwise the file descriptor may belong to another transport by now.
                self._poller.pump.stop(self._number)

    def give_up(self) -> bool:
        """Reset this connection and the one that the pump writes to; return false, and do nothing, without a pump."""
        sink = self._sink
        if not isinstance(sink, Transport):
            return False
        # Reset the sink first: otherwise the session might close it with a FIN when it learns of this end.
        for broken in (sink, self):
            broken.connectionLost(Failure(ConnectionAborted()))
        return True

    def await_data(self) -> None:
        """Tell the protocol when data arrives, but leave the data in the kernel; the end is passed on as usual.

        This lasts until `pump` or `stop_pumping` is called.
        """
        self.stop_pumping()
        self._sink = "awaited"

    def _announce(self) -> Any:
        """Tell the protocol if data has arrived; return the reason if reading is over."""
        try:
            if not self.socket.recv(1, socket.MSG_PEEK):
                return main.CONNECTION_DONE
        except BlockingIOError:
            return None
        except OSError as problem:
            return loss(problem, self._number)
        protocol: Any = self.protocol
        protocol.dataWaits()
        return None

    @property
    def brings_traffic(self) -> bool:
        """Whether there is data to relay that is not directly followed by the end of the connection.

        Data before the end may be no more than TLS's close_notify.
        """
        if not (self.relays or self._sink == "awaited"):
            return False
        try:
            return self.socket.recv(1, socket.MSG_PEEK) != b"" and not has_fin(self.socket)
        except OSError:
            return False

    def doRead(self) -> Any:
        """Read once and pass the data to the protocol."""
        if self._sink == "awaited":
            return self._announce()
        try:
            data = self.socket.recv(LARGEST_READ)
        except BlockingIOError:
            return None
        except OSError as problem:
            return loss(problem, self._number)
        if not data:
            return main.CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def doWrite(self) -> Any:
        """Send buffered data."""
        why: Any = super().doWrite()
        if why in (main.CONNECTION_LOST, TIMED_OUT):
            self.fail(why)
            return None
        if not self._waits:
            ending = self.disconnecting or self._fin_is_due or self._broken
            pulling = self.producer is not None and not self.streamingProducer
            self.clear = bool(self.connected) and not ending and not pulling
        return why

    def writeSomeData(self, data: bytes) -> Any:
        """Send some of `data` from the buffer; return the number of bytes, or why the connection is lost."""
        try:
            return self.socket.send(memoryview(data)[: self.SEND_LIMIT])
        except OSError as problem:
            return 0 if problem.errno in (errno.EAGAIN, errno.ENOBUFS) else loss(problem, self._number)

    def fail(self, why: Exception) -> None:
        """Stop writing, read what the peer sent before it closed, and then lose the connection because of `why`."""
        if self._broken is not None:
            return
        self.clear = False
        self._broken = Failure(why)
        drop_unsent(self)
        self.stopWriting()
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if (self._read_all or self.disconnecting) and not self.disconnected:
            self._poller.callLater(0, self.connectionLost, self._broken)

    def readConnectionLost(self, reason: Failure) -> None:
        """Pass on the peer's FIN; after a failed write it ends the connection."""
        self._read_all = True
        if self._broken is not None:
            self.connectionLost(self._broken)
        elif IHalfCloseableProtocol.providedBy(self.protocol):
            # If the protocol raises, the poller closes the connection.
            self.protocol.readConnectionLost()
        else:
            self.connectionLost(reason)

    def resumeProducing(self) -> None:
        """Resume reading, unless the peer has sent its FIN."""
        if not self._read_all:
            super().resumeProducing()

    def loseWriteConnection(self) -> None:
        """Send a FIN once everything has been written."""
        self.clear = False
        if not (self._fin_is_due or self._broken):
            self._fin_is_due = True
            super().loseWriteConnection()

    def loseConnection(self) -> None:
        """Close once everything has been written; if it has, do not wait for the socket to become writable."""
        if self.clear and self.producer is None and self.connected and not self.disconnecting:
            self.disconnecting = 1
            self._let_be()
            self._poller.soon(self._closed)
        elif self._broken:
            if self.connected and not self.disconnecting:
                self.connectionLost(_DONE)
        else:
            super().loseConnection()
            self.clear = False

    def _let_be(self) -> None:
        """Stop reading and writing."""
        self.connected = 0
        self.clear = False
        if self._sink is not None:
            self.stop_pumping()
        self._poller.forget(self)

    def _closed(self) -> None:
        if not self.disconnected:
            self.connectionLost(_DONE)

    def abortConnection(self) -> None:
        """Close at once with a reset."""
        self.clear = False
        super().abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        """Clean up, and notify the protocol; once only.

        The base classes do the same with twenty more calls, and shut the socket down before they close it.
        """
        if self.disconnected:
            return
        if self.connected:
            self._let_be()
        self.disconnected = 1
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if isinstance(reason.value, ConnectionAborted):
            reset_on_close(self.socket)
        with _CLOSED_ALL_THE_SAME:
            # The effect of `socket.close`, in one step.
            os.close(self.socket.detach())
        protocol = self.protocol
        # Break the reference cycle: the protocol may still refer to this transport.
        del self.protocol, self.socket
        protocol.connectionLost(reason)

    def startTLS(self, *arguments: Any, **keywords: Any) -> None:
        """Refuse, since writes go to the socket and would bypass TLS."""
        raise NotImplementedError("use one of Twisted's own endpoints for TLS")

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Set TCP_NODELAY; a unix socket never delays data."""
        if len(self.peer) > 1:
            super().setTcpNoDelay(enabled)

    def getHost(self) -> IPv4Address | IPv6Address | UNIXAddress:
        """Return our own address."""
        return _address(kept(self.socket.getsockname()))

    def getPeer(self) -> IPv4Address | IPv6Address | UNIXAddress:
        """Return the peer's address, even after the connection is lost."""
        return _address(self.peer)


def relays(transport: Any) -> None:
    """Treat the data that `transport` reads as relayed; for a wrapper, this applies to the transport below it."""
    bottom = bottom_of(transport)
    if isinstance(bottom, Transport):
        bottom.relays = True


_NAMELESS = ("",)
"""The address of a unix socket that is not bound to a path, as for nearly all clients."""


def kept(address: Any) -> Address:
    """Return a socket's address in the form in which transports keep it."""
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}" if len(address) == 2 else address
    return (address,) if address else _NAMELESS


def _address(address: Address) -> IPv4Address | IPv6Address | UNIXAddress:
    if isinstance(address, str):
        host, _, port = address.rpartition(":")
        return IPv4Address("TCP", host, int(port))
    return UNIXAddress(address[0] or None) if len(address) == 1 else IPv6Address("TCP", *address)
