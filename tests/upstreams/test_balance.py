"""Which of several servers a client gets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.upstreams.balance import BALANCES, BOUND, Balance, Hash, Least, RoundRobin


@dataclass
class Server:
    name: str
    weight: int = 1
    load: int = 0
    cold: float = 1.0

    @property
    def share(self) -> float:
        return self.weight * self.cold


def servers(*weights: int) -> list[Server]:
    return [Server(f"server {number}", weight) for number, weight in enumerate(weights)]


def given_out(balance: Balance, candidates: list[Server], clients: int, stay: bool = True) -> list[int]:
    """Return how many clients each server gets; they `stay` there, or leave at once."""
    counts: Counter[str] = Counter()
    for client in range(clients):
        chosen = balance.choose(candidates, f"192.0.2.{client}")
        counts[chosen.name] += 1
        chosen.load += stay
    return [counts[each.name] for each in candidates]


SOME = st.builds(Server, st.just(""), st.integers(1, 100), st.integers(0, 50), st.floats(0.1, 1.0))


@given(st.lists(SOME, min_size=1, max_size=9), st.integers())
def test_one_of_the_candidates_is_chosen_whatever_their_loads(candidates: list[Server], seed: int) -> None:
    for number, each in enumerate(candidates):
        each.name = f"server {number}"
    for balance in (create(Random(seed)) for create in BALANCES.values()):
        assert all(balance.choose(candidates, "192.0.2.7") in candidates for _ in range(5))


@pytest.mark.parametrize(("weights", "due"), [((1, 1), [20, 20]), ((3, 1), [30, 10]), ((1, 4), [8, 32])])
def test_least_gives_two_servers_their_parts_of_forty_sessions(weights: tuple[int, ...], due: list[int]) -> None:
    found = given_out(Least(Random(1)), servers(*weights), 40)
    assert all(abs(count - part) <= 1 for count, part in zip(found, due, strict=True))


def test_least_gives_many_servers_their_parts_within_a_fifth() -> None:
    weights = (1, 1, 2, 4, 8)
    found = given_out(Least(Random(2)), servers(*weights), 1600)
    assert all(abs(count - 100 * weight) <= max(20, 20 * weight) for count, weight in zip(found, weights, strict=True))


def test_least_is_fair_to_servers_that_are_all_idle_when_a_client_comes() -> None:
    first, _ = given_out(Least(Random(3)), servers(1, 1), 2000, stay=False)
    assert 900 <= first <= 1100
    first, _ = given_out(Least(Random(3)), servers(3, 1), 2000, stay=False)
    assert 1400 <= first <= 1600


def test_least_looks_at_two_servers_only_so_that_a_herd_does_not_form() -> None:
    candidates = servers(1, 1, 1, 1, 1)
    for each in candidates[1:]:
        each.load = 10
    found = given_out(Least(Random(4)), candidates, 1000, stay=False)
    # It is one of the two in two of five cases.
    assert 340 <= found[0] <= 460


def test_least_avoids_a_server_with_requests_in_flight() -> None:
    candidates = servers(1, 1)
    candidates[0].load = 64
    assert given_out(Least(Random(5)), candidates, 40) == [0, 40]


def test_round_robin_interleaves_the_servers_by_their_weights() -> None:
    candidates = servers(3, 1)
    balance = RoundRobin()
    order = [balance.choose(candidates, "").name[-1] for _ in range(8)]
    assert "".join(order) == "00100010"


def test_round_robin_does_not_make_up_for_the_time_that_a_server_was_away() -> None:
    candidates = servers(1, 1)
    balance = RoundRobin()
    given_out(balance, candidates[:1], 50)
    assert given_out(balance, candidates, 10) == [5, 5]


def test_hash_keeps_a_client_on_its_server() -> None:
    candidates = servers(1, 1, 1)
    balance = Hash()
    # With room everywhere, as it would be with many clients.
    for each in candidates:
        each.load = 100
    first = [balance.choose(candidates, f"192.0.2.{client}") for client in range(200)]
    assert first == [balance.choose(candidates[::-1], f"192.0.2.{client}") for client in range(200)]
    assert {each.name for each in first} == {each.name for each in candidates}


def test_hash_moves_only_the_clients_of_a_server_that_is_gone() -> None:
    candidates = servers(1, 1, 1)
    for each in candidates:
        each.load = 100
    clients = [f"192.0.2.{client}" for client in range(200)]
    before = [Hash().choose(candidates, client) for client in clients]
    after = [Hash().choose(candidates[:2], client) for client in clients]
    assert all(old is new or old is candidates[2] for old, new in zip(before, after, strict=True))
    moved = Counter(new.name for old, new in zip(before, after, strict=True) if old is not new)
    assert len(moved) == 2


def test_hash_gives_each_server_clients_by_its_weight() -> None:
    candidates = servers(3, 1)
    candidates[0].load, candidates[1].load = 3000, 1000
    found = given_out(Hash(), candidates, 2000, stay=False)
    assert 1400 <= found[0] <= 1600


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6))
def test_hash_never_gives_a_server_much_more_than_its_part(weights: list[int]) -> None:
    candidates = servers(*weights)
    for _ in range(100):
        # All from one address.
        chosen = Hash().choose(candidates, "192.0.2.7")
        chosen.load += 1
        load = sum(each.load for each in candidates)
        assert chosen.load <= BOUND * load * chosen.weight / sum(weights) + 1


@pytest.mark.parametrize("name", list(BALANCES))
def test_a_server_that_has_just_come_back_gets_a_part_of_its_share(name: str) -> None:
    candidates = servers(1, 1)
    candidates[0].load, candidates[1].cold = 100, 0.1
    found = given_out(BALANCES[name](Random(6)), candidates, 40)
    assert found[1] <= 17


def test_round_robin_forgets_servers_that_are_gone() -> None:
    balance = RoundRobin()
    given_out(balance, servers(1, 1, 1), 2)
    given_out(balance, servers(1, 1), 1)
    assert set(balance._credit) == {"server 0", "server 1"}


def test_hash_keeps_the_clients_of_a_server_that_has_just_come_back_while_it_has_room() -> None:
    warm, cold = servers(1, 1, 1), servers(1, 1, 1)
    cold[0].cold = 0.1
    for number in range(100):
        client = f"192.0.2.{number}"
        assert Hash().choose(cold, client).name == Hash().choose(warm, client).name
