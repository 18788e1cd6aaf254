"""A work loop over keys: each that is named is made as it should be, in its own time, until it is.

The rule: a key says only where to look, never what has happened, so any number of changes to it are one visit. No key
is visited twice at a time, and one that fails is tried again after a pause of its own, while the others go on.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from vllm_chill.errors import BackendError


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When a key is visited without being named, in seconds: the first pause after a failure, and the bound that
    doubling stops at; and how long after a success it is looked at again, whatever was told meanwhile.
    """

    pause_first_seconds: float = 0.5
    pause_most_seconds: float = 60.0
    resync_seconds: float = 600.0


class Reconciler:
    """Visits keys. Invariant: a key is due, being visited, or asleep until its timer; one that is named while it is
    visited is visited once more.
    """

    def __init__(
        self,
        visit: Callable[[str], Awaitable[float | None]],
        *,
        workers: int = 4,
        rhythm: Rhythm | None = None,
        failed: Callable[[str, BackendError, float], None] | None = None,
        chance: Callable[[], float] = random.random,
        turn: asyncio.Event | None = None,
    ) -> None:
        """`visit` makes a key as it should be, and returns after how many seconds it wants to look again: None for
        the next resync, infinity for not before it is named. It raises BackendError for what has to be tried again,
        and `failed` is told, with the pause in seconds until then. `chance` is from 0 to 1. Nothing is visited while
        `turn` is not set: another process does the work.
        """
        self._visit = visit
        self._workers = workers
        self._rhythm = rhythm or Rhythm()
        self._failed = failed
        self._chance = chance
        self._turn = turn
        self._due: dict[str, None] = {}
        self._visited: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._work = asyncio.Semaphore(0)

    @property
    def depth(self) -> int:
        """How many keys are due to be visited."""
        return len(self._due)

    def add(self, key: str) -> None:
        """Have a key visited, now or as soon as the visit that is under way has ended."""
        self._cancel_timer(key)
        if key not in self._due:
            self._due[key] = None
            if key not in self._visited:
                self._work.release()

    def add_after(self, key: str, seconds: float) -> None:
        """Have a key visited after so many seconds, unless it is to be visited before."""
        if key in self._due:
            return
        at = asyncio.get_running_loop().time() + seconds
        timer = self._timers.get(key)
        if timer is None or timer.when() > at:
            self._cancel_timer(key)
            self._timers[key] = asyncio.get_running_loop().call_at(at, self.add, key)

    async def run(self) -> None:
        """Visit what is due, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._workers):
                    tasks.create_task(self._work_off())
        finally:
            for key in tuple(self._timers):
                self._cancel_timer(key)

    async def _work_off(self) -> None:
        while True:
            await self._work.acquire()
            if self._turn is not None:
                await self._turn.wait()
            key = next(key for key in self._due if key not in self._visited)
            del self._due[key]
            self._visited.add(key)
            try:
                pause = await self._visit_once(key)
            finally:
                self._visited.discard(key)
                if key in self._due:
                    self._work.release()
            if pause < math.inf:
                self.add_after(key, pause)

    async def _visit_once(self, key: str) -> float:
        """Visit a key; in how many seconds it is to be visited again."""
        try:
            pause = await self._visit(key)
        except BackendError as error:
            return self._pause(key, error)
        except Exception:
            # A bug of ours with one object must not end the care for all the others.
            structlog.get_logger("vllm_chill").exception("an object could not be dealt with", key=key)
            return self._pause(key)
        self._failures.pop(key, None)
        rhythm = self._rhythm
        return rhythm.resync_seconds * (1 + self._chance() / 10) if pause is None else pause

    def _pause(self, key: str, error: BackendError | None = None) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = pause_seconds(self._rhythm, failures, self._chance())
        if error is not None and self._failed is not None:
            self._failed(key, error, pause)
        return pause

    def _cancel_timer(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()


def pause_seconds(rhythm: Rhythm, failures: int, chance: float) -> float:
    """The pause after so many failures in a row: it doubles up to a bound; `chance` (0 to 1) takes up to half off."""
    most: float = min(rhythm.pause_first_seconds * 2 ** min(failures - 1, 30), rhythm.pause_most_seconds)
    return most * (1 - chance / 2)
