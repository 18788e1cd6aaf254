"""The hold: what happens to a request between its arrival and its lease, if it has to wait for one.

The rule: a caller that is held has asked for something that makes sense, has a place in the order, and hears of it
where it can. Whatever ends the wait, its place and its share of the budget are free at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from vllm_chill.control.controller import ScaleController
from vllm_chill.control.lease import Lease, Ticket
from vllm_chill.core.admission import Priority
from vllm_chill.core.call import Call, read_call
from vllm_chill.core.keys import Key
from vllm_chill.errors import HoldBudgetSpent, HoldRefused
from vllm_chill.proxy.committed import Committed, Kind
from vllm_chill.proxy.hold_terms import HoldOptions, takes_beats, terms, turn

Describe = Callable[[int], str]
"""What the target is doing, in words, for who is at that place in the order."""


STREAMED_BYTES = 384 * 1024
"""As much of a body that is streamed may be here before its request is sent: what is read until reading stops."""


class Caller(Protocol):
    """A request that may be held, as either lane has it. `body` is all of it, empty if it is streamed; `opening` as in
    affinity.Asker; `held_bytes` is how much of it there is in memory, at most.
    """

    committed: Committed | None
    """What its client has been told already, from the moment that a hold is heard."""

    @property
    def key(self) -> Key | None:
        """The key with which it was let in; None where none is asked for."""

    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str:
        """The path and the query that it asks for, as they were sent."""

    @property
    def peer_address(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def opening(self) -> bytes: ...
    @property
    def held_bytes(self) -> int: ...
    def field(self, name: str) -> str | None:
        """A field of its head."""

    def commit(self, kind: Kind) -> Committed:
        """Say that there will be a response of this kind, and send its head."""

    def tell(self, data: bytes) -> None:
        """Send bytes of the committed response, if the client takes any now."""


class Budget:
    """Bytes of bodies that are held. Invariant: none is taken that makes them more than `most`."""

    __slots__ = ("most", "taken")

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    def has(self, size: int) -> bool:
        """Whether such a share can be had."""
        return self.taken + size <= self.most

    def take(self, size: int) -> None:
        """Have a share. Raises HoldBudgetSpent."""
        if not self.has(size):
            message = f"held requests keep {self.taken} bytes of bodies, and may keep {self.most}; try again later."
            raise HoldBudgetSpent(message, retry_after_seconds=5)
        self.taken += size

    def give_back(self, size: int) -> None:
        """Give a share back."""
        self.taken -= size


class Held(Ticket):
    """The ticket of a request that is held. `caller` is None once it is no longer held; `id` is what it was listed
    under, empty if it never was.
    """

    __slots__ = ("caller", "id")

    def __init__(self, key: str, priority: Priority, key_of_replica: int | None, caller: Caller) -> None:
        super().__init__(key, priority, key_of_replica)
        self.caller: Caller | None = caller
        self.id = ""


class HoldDesk:
    """Where requests to one target wait. `budget` is that of all bodies that are held, whatever their target; `check`
    raises an AnswerableError for a call that the target cannot serve; `answered` is called with the first bytes of the
    answer to a request that was held.
    """

    def __init__(
        self,
        controller: ScaleController,
        options: HoldOptions,
        budget: Budget,
        describe: Describe,
        retry_after: Callable[[], int],
        check: Callable[[Call], None] = lambda _: None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        self.answered = answered
        self.options = options
        self.budget = budget
        self._controller = controller
        self._describe = describe
        self._retry_after = retry_after
        self._check = check

    def refuse_early(self) -> None:
        """Raise TooManyWaiting if a request that comes now would have to wait and could not."""
        if self.holds and self._controller.full:
            raise self._controller.too_many()

    def gather(self, size: int) -> None:
        """Take a share of the budget for a body that is read whole before its request is looked at.

        Raises as refuse_early does, and HoldBudgetSpent.
        """
        self.refuse_early()
        self.budget.take(size)

    def streams(self, size: int) -> bool:
        """Whether such a body goes on as it comes: there is no room to read it whole, and no need to wait either."""
        return not self.budget.has(size) and not self.holds

    @property
    def holds(self) -> bool:
        """Whether a request that comes now has to wait."""
        return self._controller.endpoint is None or self._controller.target.waiting > 0

    async def lease(self, caller: Caller, *, again: bool, key_of_replica: int | None = None) -> Lease:
        """A lease for who could not have one at once; `again`: it was looked at before. `key_of_replica` as in Ticket.

        Raises BadRequest and what `check` raises, HoldRefused if the caller does not want to wait, HoldBudgetSpent,
        and whatever ScaleController.lease raises.
        """
        self.refuse_early()
        call = _looked_at(caller)
        if not again and self._controller.endpoint is None:
            self._check(call)
        options = self.options
        granted = terms(
            options, stream=call.stream, prefer=caller.field("Prefer"), wake_timeout=caller.field("X-Wake-Timeout")
        )
        if not granted.seconds:
            raise self._refused()
        key, priority = turn(
            options,
            key=caller.field(options.key_field),
            peer=caller.peer_address,
            priority=caller.field("X-Priority"),
            let_in=caller.key,
        )
        ticket, size = Held(key, priority, key_of_replica, caller), caller.held_bytes
        self.budget.take(size)
        beats = granted.beats if takes_beats(caller.field("Accept")) else None
        heart = _Heart(self, caller, beats, ticket) if beats is not None else None
        try:
            return await self._controller.lease(granted.seconds, ticket)
        finally:
            ticket.caller = None  # who lists tickets may still have this one, and it has the whole request
            self.budget.give_back(size)
            if heart is not None:
                heart.stop()

    def words(self, ticket: Ticket) -> str:
        """What the target is doing, for the one with this ticket."""
        return self._describe(self._controller.position(ticket))

    def _refused(self) -> HoldRefused:
        self._controller.wake_for_nobody()
        seconds = self._retry_after()
        message = f"{self._controller.target.ref} is not ready: {self._describe(0)}. Try again in {seconds} s."
        return HoldRefused(message, retry_after_seconds=seconds)


def _looked_at(caller: Caller) -> Call:
    """What it calls for. On its own, as a wait with the body in hand would keep a second copy of it."""
    return read_call(caller.field("Content-Type"), caller.body, caller.field("Content-Encoding"))


class _Heart:
    """Signs of life to one held client, until it is stopped."""

    __slots__ = ("_caller", "_desk", "_kind", "_loop", "_ticket", "_timer")

    def __init__(self, desk: HoldDesk, caller: Caller, kind: Kind, ticket: Ticket) -> None:
        self._desk = desk
        self._caller = caller
        self._kind = kind
        self._ticket = ticket
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(
            desk.options.beat_seconds if caller.committed is not None else desk.options.beat_after_seconds, self._beat
        )

    def stop(self) -> None:
        self._timer.cancel()

    def _beat(self) -> None:
        committed = self._caller.committed or self._caller.commit(self._kind)
        self._caller.tell(committed.beat(self._desk.words(self._ticket)))
        self._timer = self._loop.call_later(self._desk.options.beat_seconds, self._beat)
