"""Who waits for a target, and who is next. Time and tasks are somebody else's.

The rule of the order: classes one after the other; within a class the keys take turns; within a key the first come is
the first served. So one caller with a thousand requests delays another caller's one by one, not by a thousand.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar


class Priority(enum.IntEnum):
    """The classes of callers, the first served first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Waiter:
    """One that waits: `key` is whose turn it takes. Compared by identity."""

    __slots__ = ("key", "priority")

    def __init__(self, key: str = "", priority: Priority = Priority.NORMAL) -> None:
        self.key = key
        self.priority = priority


W = TypeVar("W", bound=Waiter)


class WaitingRoom(Generic[W]):
    """Those who wait. Joining, leaving and being next cost the same however many there are."""

    __slots__ = ("_classes", "_size")

    def __init__(self) -> None:
        # By class, by key in the order of their turns, the waiters in the order they came.
        self._classes: tuple[OrderedDict[str, dict[W, None]], ...] = tuple(OrderedDict() for _ in Priority)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, waiter: W) -> bool:
        return waiter in self._classes[waiter.priority].get(waiter.key, ())

    def join(self, waiter: W) -> None:
        """Come last of one's key; a key that is new takes the last turn. A waiter joins once."""
        self._classes[waiter.priority].setdefault(waiter.key, {})[waiter] = None
        self._size += 1

    def leave(self, waiter: W) -> None:
        """Give up one's place. Raises KeyError for who is not there."""
        keys = self._classes[waiter.priority]
        queue = keys[waiter.key]
        del queue[waiter]
        self._size -= 1
        if not queue:
            del keys[waiter.key]

    @property
    def first(self) -> W | None:
        """Who is next, if anybody waits."""
        for keys in self._classes:
            if keys:
                return next(iter(next(iter(keys.values()))))
        return None

    def next(self) -> W | None:
        """Take out who is next, if anybody waits."""
        waiter = self.first
        if waiter is not None:
            keys = self._classes[waiter.priority]
            queue = keys[waiter.key]
            self.leave(waiter)
            if queue:
                keys.move_to_end(waiter.key)
        return waiter

    def order(self) -> Iterator[W]:
        """All of them, in the order in which `next` would give them."""
        for keys in self._classes:
            turns = [iter(queue) for queue in keys.values()]
            while turns:
                left = []
                for turn in turns:
                    waiter = next(turn, None)
                    if waiter is not None:
                        yield waiter
                        left.append(turn)
                turns = left
