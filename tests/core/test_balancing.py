"""The seats of replicas, and where keys lead, as laws."""

from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_chill.core.balancing import HashedSeats, Ring, Seats, key_of, salt_of
from vllm_chill.core.target import Endpoint

ALL = tuple(Endpoint(f"10.0.0.{number}", 8000) for number in range(8))
KEYS = st.integers(0, (1 << 64) - 1)
REPLICAS = st.lists(st.sampled_from(ALL), unique=True, max_size=6).map(tuple)


class Histories(RuleBasedStateMachine):
    """Any history of one target's seats: requests with and without keys, replicas that come, go and are out."""

    kind: type[Seats] = Seats
    limit: int | None = None
    factor = 1.25

    def __init__(self) -> None:
        super().__init__()
        self.out: dict[Endpoint, None] = {}
        self.seats = self.made()
        self.replicas: tuple[Endpoint, ...] = ALL[:3]
        self.held: list[Endpoint] = []
        self.turns: dict[Endpoint, int] = {}

    def made(self) -> Seats:
        return Seats(self.limit, self.out)

    @property
    def taken(self) -> Counter[Endpoint]:
        return Counter(self.held)

    @rule(replicas=REPLICAS)
    def become(self, replicas: tuple[Endpoint, ...]) -> None:
        for gone in set(self.replicas) - set(replicas):
            self.seats.forget(gone)
            self.out.pop(gone, None)
            if not self.taken[gone]:
                self.turns.pop(gone, None)
        self.replicas = replicas

    @rule(data=st.data())
    def eject(self, data: st.DataObject) -> None:
        if self.replicas:
            self.out[data.draw(st.sampled_from(self.replicas))] = None

    @precondition(lambda self: self.out)
    @rule()
    def restore(self) -> None:
        self.out.popitem()

    @rule(key=st.none() | KEYS, besides=st.none() | st.sampled_from(ALL))
    def take(self, key: int | None, besides: Endpoint | None) -> None:
        before = self.taken
        found = self.seats.take(self.replicas, key, besides)
        among = [one for one in self.replicas if one != besides] or list(self.replicas)
        among = [one for one in among if one not in self.out] or among
        free = [one for one in among if self.limit is None or before[one] < self.limit]
        assert (found is None) == (not free)
        if found is None:
            return
        assert found in free
        if key is None or self.kind is Seats:
            assert before[found] == min(before[one] for one in among)
        elif len(self.replicas) > 1:
            held = sum(before[one] for one in among)
            assert before[found] + 1 <= ceil(self.factor * (held + 1) / len(among))
        self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.seats.give_back(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: len(set(self.held)) < len(ALL))
    @rule()
    def nobody_gives_back_what_was_not_taken(self) -> None:
        free = next(one for one in ALL if one not in self.held)
        with pytest.raises(KeyError):
            self.seats.give_back(free)

    @invariant()
    def counts_are_right(self) -> None:
        assert all(self.seats.taken(one) == self.taken[one] for one in ALL)
        assert self.limit is None or all(count <= self.limit for count in self.taken.values())


class Limited(Histories):
    limit = 2


class Hashed(Histories):
    kind = HashedSeats

    def made(self) -> Seats:
        return HashedSeats(self.limit, self.out, load_factor=self.factor)


class HashedAndLimited(Hashed):
    limit = 2


class HashedEvenly(Hashed):
    factor = 1.0


for machine in (Histories, Limited, Hashed, HashedAndLimited, HashedEvenly):
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLeast, TestLimited = Histories.TestCase, Limited.TestCase
TestHashed, TestHashedLimited, TestHashedEvenly = Hashed.TestCase, HashedAndLimited.TestCase, HashedEvenly.TestCase


def test_equals_take_turns() -> None:
    seats = Seats()
    one_by_one = []
    for _ in range(9):
        found = seats.take(ALL[:3])
        assert found is not None
        one_by_one.append(found)
        seats.give_back(found)
    assert one_by_one == list(ALL[:3]) * 3


def test_a_replica_that_is_new_is_taken_before_its_equals() -> None:
    seats = Seats()
    for _ in range(5):
        seats.give_back(seats.take(ALL[:3]) or ALL[0])
    assert seats.take(ALL[:4]) == ALL[3]


def test_without_a_limit_there_is_always_a_seat() -> None:
    seats = Seats()
    assert all(seats.take(ALL[:1]) for _ in range(1000))
    assert seats.take(()) is None
    assert seats.take(ALL[:2]) == ALL[1]


def test_nothing_is_kept_of_replicas_that_have_departed() -> None:
    seats = Seats()
    for number in range(1000):
        here = Endpoint("10.1.0.1", number)
        assert seats.take((here,)) == here
        seats.forget(here)
        seats.give_back(here)
    assert len(seats._ranks) + len(seats._departed) <= 2


@given(st.sets(st.sampled_from(ALL), min_size=2), KEYS, st.data())
def test_who_departs_takes_along_only_the_keys_that_it_had(
    replicas: set[Endpoint], key: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(replicas)))
    home = next(Ring(sorted(replicas)).owners(key))
    after = next(Ring(sorted(replicas - {gone})).owners(key))
    assert after == home or home == gone


def test_one_of_n_replicas_has_about_one_of_n_keys() -> None:
    for count in (2, 3, 8):
        ring = Ring(ALL[:count])
        homes = Counter(next(ring.owners(key_of(f"key {number}"))) for number in range(3000))
        assert all(0.7 < homes[one] * count / 3000 < 1.3 for one in ALL[:count])


@given(KEYS, st.permutations(ALL), st.permutations(ALL))
@settings(max_examples=20, deadline=None)
def test_a_key_leads_to_the_same_replica_whoever_asks_and_whatever_was_before(
    key: int, one: list[Endpoint], other: list[Endpoint]
) -> None:
    ring = Ring(one[:5])
    ring.become(other)
    assert next(ring.owners(key)) == next(Ring(one).owners(key))


def test_keys_are_the_same_in_every_run() -> None:
    assert key_of("You are") == 0x1CC6E0C8E86534E2
    assert next(Ring(ALL).owners(key_of("You are"))) == ALL[3]


@given(KEYS, st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None)
def test_a_key_stays_at_its_replica_while_that_has_less_than_its_share(key: int, here: int, elsewhere: int) -> None:
    seats = HashedSeats(load_factor=1.25)
    home = next(Ring(ALL[:3]).owners(key))
    seats.take(ALL[:3], key)
    seats.give_back(home)
    for _ in range(here):
        assert seats.take(ALL[:3], besides=None, key=None) is not None
    for _ in range(elsewhere):
        assert seats.take(ALL[:3], besides=home) is not None
    share = ceil(1.25 * (here + elsewhere + 1) / 3)
    assert (seats.taken(home) < share) == (seats.take(ALL[:3], key) == home)


def test_the_same_text_for_another_adapter_is_another_key() -> None:
    assert len({key_of("You are"), key_of("You are", salt_of("a")), key_of("You are", salt_of("b"))}) == 3
    assert key_of("\ud83d") != key_of("")
