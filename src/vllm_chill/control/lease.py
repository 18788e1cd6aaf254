"""A lease on a replica, the place of a caller that waits for one, and how many there may be of either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from msgspec import Struct

from vllm_chill.core.admission import Priority, Waiter
from vllm_chill.core.target import Endpoint


class Lease(Struct, eq=False):
    """One request's hold on a replica of a ready target, until its last byte. A context manager; `release` may come
    twice.
    """

    endpoint: Endpoint
    _release: Callable[[Endpoint], None] | None

    def release(self) -> None:
        """End the lease."""
        if self._release is not None:
            self._release(self.endpoint)
            self._release = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class Ticket(Waiter):
    """A caller's place among those who wait for a lease, for one wait. `key_of_replica`: its key in core.balancing.

    It waits from `since` to `until` at the latest, in seconds on the clock of the phases, once it waits at all.
    """

    __slots__ = ("key_of_replica", "lease", "since", "until")

    since: float
    until: float

    def __init__(self, key: str = "", priority: Priority = Priority.NORMAL, key_of_replica: int | None = None) -> None:
        super().__init__(key, priority)
        self.key_of_replica = key_of_replica
        self.lease: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many callers may wait at a time, and how many requests a replica has at a time (None: any number).

    `load_factor` is that of core.balancing.HashedSeats, None where no request has a key.
    """

    waiting: int = 1000
    in_flight: int | None = None
    load_factor: float | None = None
