"""The writer: whoever puts a job never waits, and what could not be written is counted."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from fooproxy.logs.writer import Writer, write_all
from tests.helpers.fooserver import PATIENCE


@contextmanager
def stuck(writer: Writer) -> Iterator[None]:
    """Let the writer hang in a job that it has begun."""
    begun, release = threading.Event(), threading.Event()
    writer.start()

    def hang() -> None:
        begun.set()
        release.wait(PATIENCE)

    writer.order(hang)
    assert begun.wait(PATIENCE)
    try:
        yield
    finally:
        release.set()


def test_jobs_are_done_in_their_order_in_another_thread() -> None:
    writer = Writer("test")
    done: list[tuple[int, int]] = []
    writer.start()
    for number in range(100):
        assert writer.put(partial(lambda number: done.append((number, threading.get_ident())), number), 1)
    writer.close()
    assert [number for number, _ in done] == list(range(100))
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()})


def test_jobs_may_be_put_before_the_start() -> None:
    writer, done = Writer("test"), []
    writer.put(lambda: done.append(1), 1)
    writer.start()
    writer.close()
    assert done == [1]


def test_a_writer_that_was_never_started_does_its_jobs_at_the_end() -> None:
    writer, done = Writer("test"), []
    writer.put(lambda: done.append(1), 1)
    assert not done
    writer.close()
    assert done == [1]


def test_what_exceeds_the_room_is_dropped_until_half_of_it_is_free() -> None:
    writer, done = Writer("test", most=100), []

    def put(size: int) -> bool:
        return writer.put(lambda: done.append(size), size)

    with stuck(writer):
        assert put(60)
        assert put(40)
        assert not put(1)
        assert writer.lost() == 0
    writer.close()
    assert put(10)
    writer.close()
    assert done == [60, 40, 10]
    assert writer.lost() == 1
    assert writer.lost() == 0


def test_a_job_larger_than_the_room_is_done_if_nothing_else_waits() -> None:
    writer, done = Writer("test", most=0), []
    assert writer.put(lambda: done.append(1), 1000)
    assert not writer.put(lambda: done.append(2), 1)
    writer.close()
    assert done == [1]


def test_an_order_is_done_even_if_there_is_no_room() -> None:
    writer, done = Writer("test", most=1), []
    with stuck(writer):
        writer.put(lambda: done.append(1), 1)
        writer.order(lambda: done.append(2))
    writer.close()
    assert done == [1, 2]


def test_a_job_that_fails_is_counted_and_the_next_one_done() -> None:
    writer, done = Writer("test"), []
    writer.start()
    writer.put(lambda: write_all(-1, b"x"), 1)
    writer.put(lambda: done.append(1), 1)
    writer.close()
    assert done == [1]
    assert writer.lost() == 1


def test_a_writer_that_is_stuck_delays_the_end_for_a_moment_only() -> None:
    writer, done = Writer("test"), []
    with stuck(writer):
        writer.put(lambda: done.append(1), 1)
        writer.close()
        assert done == []


def test_what_two_writers_write_to_one_pipe_stays_in_pieces() -> None:
    reading, writing = os.pipe()
    other = os.dup(writing)
    writers = [Writer("test"), Writer("test")]
    for writer, descriptor, letter in zip(writers, (writing, other), (b"a", b"b"), strict=True):
        writer.start()
        for _ in range(20):
            writer.put(partial(write_all, descriptor, 9999 * letter + b"\n"), 10_000)
        writer.order(partial(os.close, descriptor))
    with os.fdopen(reading, "rb") as pipe:
        assert sorted(pipe.read().splitlines()) == 20 * [9999 * b"a"] + 20 * [9999 * b"b"]


def test_all_is_written_to_a_pipe_that_is_full_and_does_not_block() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = os.urandom(1 << 20)

    def write() -> None:
        write_all(writing, data)
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == data
    writer.join(PATIENCE)
