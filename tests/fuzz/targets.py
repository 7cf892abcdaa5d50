"""The fuzz targets: each takes any bytes and raises if the code under test misbehaves.

The targets know nothing of the fuzzer: `python -m tests.fuzz` runs them under atheris, the tests on the corpus.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.python.usage import UsageError

from fooproxy.commandline import Options
from fooproxy.foo.analyzer import Counts
from fooproxy.foo.counting import COMPILED, PURE, Twin
from fooproxy.options import OPTIONS
from fooproxy.recovery.saver import Saver, Unusable
from fooproxy.recovery.state import Recovery, SavedState
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats

_SESSIONS = 3
_GOOD = Path(__file__).with_name("corpus").joinpath("recovery", "ours").read_bytes()
_LINE = re.compile(rb"(REQ|ACK|NAK)[ \t]+[-+]?[0-9]+(?:[ \t]+[^\n]*)?", re.DOTALL)


def analyzer(data: bytes) -> None:
    r"""Feed chunks to both legs of several sessions and compare the counts with a plain regex over whole lines.

    ``\xff`` separates the chunks.  The first byte of each selects the session (two bits), the leg (one bit), how often
    the rest is repeated (two bits), which makes long lines and large chunks, and whether the counts are checked
    afterwards (one bit).
    """
    for twin in filter(None, (PURE, COMPILED)):
        _counted(data, twin)


def _counted(data: bytes, twin: Twin) -> None:
    now = 0.0
    stats = Stats(lambda: now, twin=twin)
    sessions = [SessionStats(stats) for _ in range(_SESSIONS)]
    streams = [(bytearray(), bytearray()) for _ in sessions]
    in_flight = [0] * _SESSIONS
    for number, piece in enumerate(data.split(b"\xff")):
        if not piece:
            continue
        now = float(number)
        which, leg = (piece[0] & 3) % _SESSIONS, piece[0] >> 2 & 1
        chunk = piece[1:] * (1, 3, 50, 700)[piece[0] >> 3 & 3]
        stream = streams[which][leg]
        before = _reference(stream)
        stream += chunk
        tapped = (sessions[which].client, sessions[which].upstream)[leg]
        tapped.feed(chunk, number * 1_000_000)
        after = _reference(stream)
        if leg:
            in_flight[which] = max(0, in_flight[which] - sum(after[2:4]) + sum(before[2:4]))
        else:
            in_flight[which] += sum(after[1:]) - sum(before[1:])
        if piece[0] & 32:
            assert _listed(tapped.counts) == after
    stats.catch_up()
    due = [[_reference(stream) for stream in both] for both in streams]
    for leg, total in enumerate((stats.client, stats.upstream)):
        assert _listed(total) == [sum(counts) for counts in zip(*(both[leg] for both in due), strict=True)]
    for session, both, counts, waiting in zip(sessions, streams, due, in_flight, strict=True):
        assert [_listed(session.client.counts), _listed(session.upstream.counts)] == counts
        assert session.exchange.in_flight == waiting
        for tapped, stream in zip((session.client, session.upstream), both, strict=True):
            assert tapped.mid_line == (bytes(stream[-1:]) not in (b"", b"\n"))
            assert len(tapped.head) <= 7
    assert stats.requests_in_flight == sum(in_flight)


def twins(data: bytes) -> None:
    r"""Let the same happen to the compiled and the pure twin, and compare every figure after each event.

    ``\xff`` separates the events.  The first byte of each selects the session (two bits), the leg (one bit), how often
    the rest is repeated (two bits), and how much later than the event before it happens (three bits).  The rest is what
    the leg receives; if it is one of the letters in `_HAPPENINGS`, that happens instead.
    """
    now = 0.0
    both = [Stats(lambda: now, twin=twin, servers=("a", "b")) for twin in filter(None, (PURE, COMPILED))]
    sessions = [[SessionStats(stats) for _ in range(_SESSIONS)] for stats in both]
    for piece in data.split(b"\xff"):
        if not piece:
            continue
        now += (0.0, 0.0, 1e-6, 5e-6, 3e-4, 1e-2, 1.0, 200.0)[piece[0] >> 5]
        for session in [column[(piece[0] & 3) % _SESSIONS] for column in sessions]:
            leg = "upstream" if piece[0] & 4 else "client"
            if piece[1:] in _HAPPENINGS:
                _HAPPENINGS[piece[1:]](session, leg)
            else:
                chunk = piece[1:] * (1, 3, 50, 700)[piece[0] >> 3 & 3]
                getattr(session, leg).feed(chunk, round(now * 1e6))
        states = [_figures(stats, column) for stats, column in zip(both, sessions, strict=True)]
        assert states[0] == states[-1]


_SERVERS = [SimpleNamespace(number=number) for number in (0, 1)]

_HAPPENINGS: dict[bytes, Callable[[SessionStats, str], Any]] = {
    b"p": SessionStats.paused,
    b"r": SessionStats.resumed,
    b"i": SessionStats.ignored,
    b"f": lambda session, _: session.finished(),
    b"s": lambda session, _: session.client.mid_line or session.stop_after(b"\n" * session.settled),
    b"e": lambda session, _: session.exchange.end(),
    b"w": lambda session, _: session.upstream.analysis.watch(session.exchange),
    b"u": lambda session, _: session.upstream.analysis.watch(session.exchange, False),
    b"m": lambda session, _: _moved(session),
    b"q": lambda session, _: _paired(session),
    b"v": lambda session, leg: session.served_by(_SERVERS[leg == "client"]),
}


def _paired(session: SessionStats) -> None:
    """Compare seqs from now on."""
    session._stats.catch_up()
    session.pair()


def _moved(session: SessionStats) -> None:
    """Let a session go on with what its state, as plain data, is restored to."""
    opened, last, late, unmatched, cut, buckets = json.loads(json.dumps(session.exchange.state()))
    legs = [leg.state() for leg in (session.client, session.upstream)]
    session.exchange, session.client, session.upstream = session._stats.traffic.analyzers()
    answered = {int(number): count for number, count in buckets.items()}
    session.exchange.restore(opened, last, late, unmatched, cut, answered)
    for leg, state in zip((session.client, session.upstream), legs, strict=True):
        leg.restore(*state)


def _figures(stats: Stats, sessions: list[SessionStats]) -> list[Any]:
    stats.catch_up()
    settled = sessions[0].upstream.analysis.settled
    came = [number for number, session in enumerate(sessions) if session.exchange in settled]
    settled.clear()
    for server in stats.servers:
        assert server.figures.in_flight == server.figures.latency.in_flight
    return [list(stats.numbers), came, [_figures_of(session) for session in sessions]]


def _figures_of(session: SessionStats) -> list[Any]:
    exchange = session.exchange
    legs = [[*_listed(leg.counts), leg.head, leg.replies, leg.is_muted] for leg in (session.client, session.upstream)]
    waiting = exchange.waiting_since if exchange.open else None
    matched = [exchange.in_flight, exchange.open, exchange.last_request, dict(exchange.buckets), exchange.quantile(0.5)]
    return [legs, matched, exchange.unpaired, waiting, session.idle, session.settled, session.between_requests]


def _listed(counts: Counts) -> list[int]:
    return [counts.bytes, counts.req, counts.ack, counts.nak, counts.invalid]


def _reference(stream: bytearray) -> list[int]:
    lines = bytes(stream).split(b"\n")[:-1]
    matches = [_LINE.fullmatch(line) or _LINE.fullmatch(line.removesuffix(b"\r")) for line in lines]
    types = [match[1] if match else b"" for match in matches]
    return [len(stream), *(types.count(word) for word in (b"REQ", b"ACK", b"NAK", b""))]


def options(data: bytes) -> None:
    """Parse a command line, one argument per line: it is valid, a usage error, or a request for help."""
    arguments = data.decode("utf-8", "surrogateescape").split("\n")
    parsed = Options({})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            parsed.parseOptions(arguments)
        except UsageError as error:
            assert str(error)
            return
        except SystemExit as end:
            assert end.code in (0, 2)
            return
    for option in OPTIONS:
        value = parsed[option.name]
        assert value or not option.default or option.unit not in ("ADDRESS", "FILE")
        assert option.unit != "SECONDS" or 0 <= value < float("inf")


def recovery(data: bytes) -> None:
    """Load a recovery file: it is either unusable, or gives a state that can be reported, saved and loaded again.

    Input that begins with ``@`` changes a valid file, see `_changed`.
    """
    if data.startswith(b"@"):
        data = _changed(data[1:])
    with tempfile.TemporaryDirectory(prefix="fooproxy-fuzz-") as folder:
        path = Path(folder, "recovery.json")
        path.write_bytes(data)
        saver = Saver(path)
        try:
            state = SavedState(saver.read())
        except Unusable as error:
            assert str(error)
            state = None
        stats = Stats(lambda: 1000.0)
        now = 0.0 if state is None else state.saved_at
        Recovery(stats, saver, lambda: now, 10.0).load()
        assert (state is None) == path.with_name("recovery.json.unusable").exists()
        assert path.exists() == (state is not None)
        saved = Recovery(stats, saver, lambda: now, 10.0).state()
        json.dumps([saved, stats.report()])
        assert min([*stats.counters().values(), *saved["requests_10s"], *saved["responses_10s"]]) >= 0
        if state is None:
            assert not any(stats.counters().values())
            return
        saver.write(saved)
        again = Stats(lambda: 1000.0)
        Recovery(again, saver, lambda: now, 10.0).load()
        assert Recovery(again, saver, lambda: now, 10.0).state() == saved


def _changed(changes: bytes) -> bytes:
    """Change a valid file: each line is a path such as ``latency.sum``, ``=``, and the JSON value to put there."""
    content = json.loads(_GOOD)
    for line in changes.decode("utf-8", "replace").split("\n"):
        place, _, value = line.partition("=")
        holder = content
        *folders, name = place.split(".")
        for folder in folders:
            inner = holder.get(folder)
            holder = inner if isinstance(inner, dict) else holder
        with contextlib.suppress(ValueError, RecursionError):
            holder[name] = json.loads(value)
    return json.dumps(content).encode()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "analyzer": analyzer,
    "options": options,
    "recovery": recovery,
    "twins": twins,
}
