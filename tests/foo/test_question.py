"""The request of a check, and how its reply is judged."""

from __future__ import annotations

from random import Random

import pytest

from fooproxy.foo.grammar import TYPES
from fooproxy.foo.question import LONGEST, Question
from tests.helpers.fooserver import reply_to


def question() -> Question:
    return Question(Random(1))


def test_the_request_is_one_whole_message_that_any_server_may_get_first() -> None:
    request = question().request
    assert request.endswith(b"\n") and request.count(b"\n") == 1
    assert TYPES.findall(request[:-1]) == [b"REQ"]
    assert request.split()[1] == b"1"
    assert reply_to(request[:-1]).startswith(b"ACK 1 ")


def test_each_request_has_a_mark_of_its_own() -> None:
    random = Random()
    assert Question(random).request != Question(random).request


@pytest.mark.parametrize("reply", [b"ACK 1\n", b"NAK 1 no\n", b"NAK 0 ERRDECODE\n", b"ACK\t+7\r\n", b"ACK 1\nnoise"])
def test_an_ack_or_a_nak_is_a_reply_however_it_is_cut(reply: bytes) -> None:
    assert question().hear(reply) is True
    slowly = question()
    found = [slowly.hear(reply[place : place + 1]) for place in range(reply.index(b"\n") + 1)]
    assert found[-1] is True and set(found[:-1]) == {None}


@pytest.mark.parametrize("answer", [b"\n", b"REQ 1\n", b"HTTP/1.1 400 Bad Request\r\n", b"ACK x\n", b"\nACK 1\n"])
def test_anything_else_is_none(answer: bytes) -> None:
    assert question().hear(answer) is False


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    slowly = question()
    assert slowly.hear(b"ACK 1 " + b"a" * (LONGEST - 6)) is None
    assert slowly.hear(b"a") is False
