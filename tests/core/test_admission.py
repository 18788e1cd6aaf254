"""The waiting room as laws over random histories."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_chill.core.admission import Priority, Waiter, WaitingRoom

KEYS = st.sampled_from("abcd")
CLASSES = st.sampled_from(Priority)


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
        assert self.room.first is (order[0] if order else None)
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
