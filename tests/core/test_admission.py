"""The waiting room as laws over random histories, and the seats of replicas."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_chill.core.admission import Priority, Seats, Waiter, WaitingRoom
from vllm_chill.core.target import Endpoint

KEYS = st.sampled_from("abcd")
CLASSES = st.sampled_from(Priority)
ENDPOINTS = tuple(Endpoint(f"10.0.0.{number}", 8000) for number in range(4))


class Room(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.room: WaitingRoom[Waiter] = WaitingRoom()
        self.inside: list[Waiter] = []

    @rule(key=KEYS, priority=CLASSES)
    def join(self, key: str, priority: Priority) -> None:
        waiter = Waiter(key, priority)
        self.room.join(waiter)
        self.inside.append(waiter)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        self.room.leave(waiter)
        assert waiter not in self.room

    @rule()
    def take(self) -> None:
        order = list(self.room.order())
        waiter = self.room.next()
        assert waiter is (order[0] if order else None)
        if waiter is not None:
            self.inside.remove(waiter)
            assert list(self.room.order()) == order[1:]

    @invariant()
    def everybody_is_in_the_order_once(self) -> None:
        order = list(self.room.order())
        assert len(order) == len(self.room) == len(self.inside)
        assert set(order) == set(self.inside)
        assert all(waiter in self.room for waiter in self.inside)

    @invariant()
    def classes_follow_one_another_and_a_key_is_first_come_first_served(self) -> None:
        order = list(self.room.order())
        assert [waiter.priority for waiter in order] == sorted(waiter.priority for waiter in order)
        for key in "abcd":
            for priority in Priority:
                came = [w for w in self.inside if (w.key, w.priority) == (key, priority)]
                assert [w for w in order if (w.key, w.priority) == (key, priority)] == came

    @invariant()
    def nobody_is_served_twice_before_another_key_is_served_once(self) -> None:
        order = list(self.room.order())
        for priority in Priority:
            left = Counter(w.key for w in order if w.priority == priority)
            served: Counter[str] = Counter()
            for waiter in (w for w in order if w.priority == priority):
                served[waiter.key] += 1
                left[waiter.key] -= 1
                behind = min((served[key] for key in left if left[key]), default=served[waiter.key])
                assert served[waiter.key] - behind <= 1


TestRoom = Room.TestCase


def test_a_room_is_left_once() -> None:
    room: WaitingRoom[Waiter] = WaitingRoom()
    waiter = Waiter()
    room.join(waiter)
    room.leave(waiter)
    with pytest.raises(KeyError):
        room.leave(waiter)
    assert len(room) == 0


def test_one_request_of_another_key_is_next_behind_a_thousand() -> None:
    room: WaitingRoom[Waiter] = WaitingRoom()
    for _ in range(1000):
        room.join(Waiter("a"))
    late, later = Waiter("b"), Waiter("b")
    room.join(late)
    room.join(later)
    taken = [room.next() for _ in range(4)]
    assert [waiter.key for waiter in taken if waiter] == ["a", "b", "a", "b"]


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from(ENDPOINTS))), max_size=60))
def test_no_replica_ever_has_more_than_its_seats_and_the_emptiest_is_taken(
    limit: int, steps: list[tuple[bool, set[Endpoint]]]
) -> None:
    seats, taken = Seats(limit), Counter[Endpoint]()
    for take, some in steps:
        endpoints = sorted(some, key=str)
        if take:
            found = seats.take(endpoints)
            free = [endpoint for endpoint in endpoints if taken[endpoint] < limit]
            assert (found is None) == (not free)
            if found is not None:
                assert taken[found] == min(taken[endpoint] for endpoint in endpoints)
                taken[found] += 1
        elif held := [endpoint for endpoint in ENDPOINTS if taken[endpoint]]:
            seats.give_back(held[0])
            taken[held[0]] -= 1
        assert all(seats.taken(endpoint) == taken[endpoint] <= limit for endpoint in ENDPOINTS)


def test_without_a_limit_there_is_always_a_seat() -> None:
    seats = Seats()
    assert all(seats.take(ENDPOINTS[:1]) for _ in range(1000))
    assert seats.take(()) is None
    assert seats.take(ENDPOINTS[:2]) == ENDPOINTS[1]
