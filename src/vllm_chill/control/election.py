"""One candidate for leadership: it runs something while it leads, and nowhere else is it run meanwhile.

The rule: what is run is cancelled, and has time to end, before anybody else can lead; the Lease is given back only
after it has ended. What a leader must not do twice it asks `leads` about right before, because a process may be
stopped for a while and go on without knowing it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog

from vllm_chill.core.election import (
    Acquire,
    Candidate,
    Record,
    Renew,
    StoredLease,
    Terms,
    Wait,
    decide,
    observe,
    release,
    resigned,
    written,
)
from vllm_chill.errors import BackendConflict, BackendError, BackendUnavailable
from vllm_chill.ports import LeaseStore

_T = TypeVar("_T")
_WRITES = 3
"""How often in a row a write that came too late is tried anew: after each the Lease is read again."""
_SHORTEST_SECONDS = 0.01
_SPREAD = 0.1
"""Part of the retry period that is left off at random, so that candidates that start together do not look together."""


def new_identity() -> str:
    """Who this candidate is: the host, which is a pod's name, and what no other process of it has, earlier or later."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


class Election:
    """One candidate. Invariant: what `run` is given runs only after its Lease was written, and at most once at a time.

    `changed` is told whether it leads, each time that changes. `overdue` is told when what was run has not ended in
    time: somebody else may lead by now, and a caller that cannot have that ends the process.
    """

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        terms: Terms | None = None,
        *,
        changed: Callable[[bool], None] = lambda _: None,
        overdue: Callable[[], None] = lambda: None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`identity` is to be no other process's, as `new_identity` is. `chance` is from 0 to 1."""
        self._store = store
        self._me = Candidate(identity, terms or Terms())
        self._stored: StoredLease | None = None
        self._changed = changed
        self._overdue = overdue
        self._wall = wall
        self._stamped = datetime.min.replace(tzinfo=UTC)
        self._chance = chance
        self._now = asyncio.get_running_loop().time
        self._log = structlog.get_logger("vllm_chill.election")
        self._trouble = ""
        self._running: asyncio.Task[None] | None = None

    @property
    def leads(self) -> bool:
        """Whether it may act as the leader at this moment, by the clock and not by what runs."""
        return self._me.leads(self._now())

    @property
    def holder(self) -> str:
        """The identity that the Lease was seen to be held by last; empty for nobody."""
        return self._me.holder

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `lead` whenever this candidate leads, until cancelled or `lead` ends by itself.

        Once the Lease is lost `lead` is cancelled, and is run anew when it is won again. What it raises is raised here.
        """
        try:
            while True:
                await self._win()
                if await self._lead(lead):
                    return
        finally:
            if self._running is None or self._running.done():
                await self._give_back()

    async def _win(self) -> None:
        while True:
            pause = await self._turn()
            if self.leads:
                return
            await asyncio.sleep(pause)

    async def _lead(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run it while the Lease is held; whether it ended by itself."""
        self._log.info("leading", identity=self._me.identity)
        self._changed(True)
        running = self._running = asyncio.create_task(lead())
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.wait({running, renewing}, return_when=asyncio.FIRST_COMPLETED)
            by_itself = running.done()
        finally:
            try:
                # It is renewed meanwhile, if it still is held.
                await self._end(running)
            finally:
                self._changed(False)
                self._log.info("no longer leading", identity=self._me.identity, cause=self._trouble or None)
                renewing.cancel()
                await asyncio.wait([renewing])
        self._me = resigned(self._me)
        for task in (renewing, running):
            if not task.cancelled():
                task.result()
        return by_itself

    async def _end(self, running: asyncio.Task[None]) -> None:
        """Cancel it and wait for it, for as long as it takes: it must not be run twice."""
        running.cancel()
        spare = self._me.terms.lease_seconds - self._me.terms.renew_deadline_seconds
        await asyncio.wait([running], timeout=spare)
        while not running.done():
            if self.leads:
                # It is still renewed: this is an end that was asked for.
                await asyncio.wait([running], timeout=spare)
                continue
            self._log.error("what only a leader may do has not ended in time", seconds=spare)
            self._overdue()
            await asyncio.wait([running])

    async def _renew(self) -> None:
        """Renew the Lease until it is lost."""
        pause = self._pause()
        while True:
            await asyncio.sleep(min(pause, max(self._me.leads_until - self._now(), _SHORTEST_SECONDS)))
            if not self.leads:
                break
            try:
                async with asyncio.timeout_at(self._me.leads_until):
                    pause = await self._turn()
            except TimeoutError:
                break
        if not self._trouble:
            held_by = self.holder if self.holder != self._me.identity else ""
            late = f"it was not renewed within {self._me.terms.renew_deadline_seconds:g} s"
            self._trouble = f"it is held by {held_by}" if held_by else late

    async def _turn(self) -> float:
        """Look at the Lease, and write it if it is to be; in how many seconds to do so again."""
        try:
            wait = await self._look_and_write()
        except BackendError as error:
            if error.message != self._trouble:
                self._trouble = error.message
                self._log.warning("the Lease cannot be used", cause=error.message)
            return self._pause()
        self._trouble = ""
        return min(wait, self._pause())

    async def _look_and_write(self) -> float:
        for left in reversed(range(_WRITES)):
            # Whoever leads knows what is there, and asks only after a write that came too late.
            if self._stored is None or not self.leads:
                await self._read()
            match decide(self._me, self._now(), self._stamp()):
                case Wait(seconds):
                    return max(seconds, _SHORTEST_SECONDS)
                case Acquire(record) | Renew(record):
                    begun = self._now()
                    try:
                        await self._write(record)
                    except BackendConflict:
                        self._stored = None
                        if not left:
                            raise
                    else:
                        self._me = written(self._me, record, begun)
                        return self._me.terms.retry_seconds
        raise AssertionError("the loop above returns or raises")

    async def _read(self) -> None:
        self._stored = await self._bounded(self._store.get())
        before = self._me.holder
        self._me = observe(self._me, self._stored.record if self._stored else None, self._now())
        if self.holder not in {before, "", self._me.identity}:
            self._log.info("another leads", leader=self.holder, identity=self._me.identity)

    async def _write(self, record: Record) -> None:
        if self._stored is None:
            self._stored = await self._bounded(self._store.create(record))
        else:
            self._stored = await self._bounded(self._store.update(self._stored, record))

    async def _give_back(self) -> None:
        """Let the next one lead at once, if that can be done at once."""
        try:
            for _ in range(_WRITES):
                record = release(self._me, self._stamp())
                if record is None:
                    return
                try:
                    if self._stored is not None:
                        await self._write(record)
                        self._me = observe(self._me, record, self._now())
                        return
                except BackendConflict:
                    pass
                await self._read()
        except BackendError as error:
            self._log.warning("the Lease was not given back, and runs out by itself", cause=error.message)

    async def _bounded(self, call: Awaitable[_T]) -> _T:
        seconds = self._me.terms.call_seconds
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError as error:
            raise BackendUnavailable(f"the Lease was neither read nor written within {seconds:g} s") from error

    def _stamp(self) -> datetime:
        """The time, or, where the clock was set back, what comes after the one before: no two are the same."""
        self._stamped = max(self._wall(), self._stamped + timedelta(microseconds=1))
        return self._stamped

    def _pause(self) -> float:
        return self._me.terms.retry_seconds * (1 - _SPREAD * self._chance())
