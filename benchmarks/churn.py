"""The load of the soak, in processes of their own: ``python -m benchmarks.churn server`` and ``... clients --port P``.

The server answers as widely used ones do, in order and without closing first, and fails when a line asks it to.  The
clients come and go, each with one of `behaviours`; about half of these are faults.  Both continue until their standard
input ends, and then print a `Tally` as one line of JSON.  Lines are counted before they are sent and after they were
received, so the true number lies between the two if a fault loses some.  Faults that lose lines use only lines that are
not messages (servers answer them with NAK), so the counts of REQ and ACK must be exact.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import threading
import time
from contextlib import closing, suppress

from benchmarks.behaviours import BEHAVIOURS, Client
from benchmarks.tally import Tally, reply_to, reset

WORKERS = 24
"""Number of concurrent clients."""


def serve(peer: socket.socket, tally: Tally) -> None:
    """Serve one connection to its end."""
    begun = b""
    with closing(peer), suppress(OSError):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while chunk := peer.recv(1 << 18):
            *lines, begun = (begun + chunk).split(b"\n")
            tally.lines("received", lines)
            if b"please reset" in lines:
                reset(peer)
                return
            replies = [reply_to(line) for line in lines if line != b"please close"]
            tally.lines("sent", replies)
            peer.sendall(b"".join(reply + b"\n" for reply in replies))
            if len(replies) < len(lines):
                return
        if begun:
            tally.lines("sent", [reply_to(begun)])
            peer.sendall(reply_to(begun) + b"\n")
        # The server does not close after a client's FIN; the proxy must.
        while peer.recv(1 << 16):
            pass
        time.sleep(0.01)


def run_server(tally: Tally) -> None:
    """Listen on a free port, which is printed, and serve until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=serve, args=(peer, tally), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def run_clients(port: int, tally: Tally) -> None:
    """Keep clients coming until standard input ends, and let the last ones finish."""
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            (behave,) = random.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))
            tally.add(behave.__name__)
            try:
                client = Client(port, tally)
                with closing(client.socket):
                    behave(client)
            except OSError as error:
                tally.failed(f"{behave.__name__}: {error}")

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    print("ready", flush=True)
    sys.stdin.read()
    ending.set()
    for worker in workers:
        worker.join()


def main() -> None:
    """Run one side, and print its tally."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__.partition("\n\n")[0])
    parser.add_argument("side", choices=["server", "clients"])
    parser.add_argument("--port", type=int, default=0, help="where clients connect")
    options = parser.parse_args()
    tally = Tally()
    if options.side == "server":
        run_server(tally)
    else:
        run_clients(options.port, tally)
    print(tally.told(), flush=True)


if __name__ == "__main__":
    main()
