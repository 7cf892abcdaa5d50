"""Whatever servers and clients do in whatever order: nobody is forgotten, and some server is always left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.python.failure import Failure

from tests.upstreams.test_ejection import Case
from tests.upstreams.test_servers import TIMEOUT

NUMBERS = st.integers(0, 3)
STEP = st.one_of(
    st.tuples(st.just("mode"), NUMBERS, st.sampled_from(["up", "down", "silent", "slow"])),
    st.tuples(st.just("answer"), NUMBERS, st.just("")),
    st.tuples(st.just("drop"), NUMBERS, st.just("")),
    st.tuples(st.just("serve"), NUMBERS, st.just("")),
    st.tuples(st.just("join"), st.integers(1, 5), st.just("")),
    st.tuples(st.just("leave"), st.integers(0, 50), st.just("")),
    st.tuples(st.just("pass"), st.integers(1, 300), st.just("")),
)


@given(st.integers(1, 4), st.lists(STEP, max_size=60))
def test_each_client_has_one_outcome_and_some_server_stays(count: int, steps: list[tuple[str, int, str]]) -> None:
    case = Case(count)
    joined = []
    for what, number, how in steps:
        server = number % count
        if what == "mode":
            case.endpoints[server].mode = how
        elif what == "answer" and case.endpoints[server].slow:
            attempt, _ = case.endpoints[server].slow[0]
            if attempt.called:
                del case.endpoints[server].slow[0]
            else:
                case.endpoints[server].answer()
        elif what == "drop":
            case.drop(server, 3)
        elif what == "serve":
            case.serve(server)
        elif what == "join":
            for _ in range(number):
                joined.append(case.join(stay=False))
        elif what == "leave" and joined:
            joined[number % len(joined)].cancel()
        elif what == "pass":
            case.pass_time(number / 100)
        assert 2 * len(case.out) <= count
        assert len(case.out) < count
    # Each has been served, has left, or fails when its time is over.
    case.pass_time(TIMEOUT + 1)
    assert len(case.results) == len(joined)
    assert not case.all.waiting
    assert [server.connecting for server in case.servers] == [0] * count
    for endpoint in case.endpoints:
        endpoint.mode = "up"
    case.pass_time(75)
    # A single one is tried again when there is a client.
    assert count == 1 or not any(server.failing for server in case.servers)
    before = len(case.results)
    case.join(5)
    case.pass_time(2)
    assert not any(isinstance(result, Failure) for result in case.results[before:])
    assert all(
        not isinstance(result, Failure) or not result.check(AttributeError, KeyError, AssertionError)
        for result in case.results
    )
