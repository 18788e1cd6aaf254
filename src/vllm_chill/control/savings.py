"""What this proxy counts of its targets, and how it is kept: GPU time, and how long its callers waited for a wake.

The rule: GPU time is counted by the proxy that leads, and callers by the one that they came to. What was counted is
added to what is kept, by compare-and-set, so that several proxies add to one sum; it is written every few minutes and
at the end, and never on a request's way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import structlog

from vllm_chill.core.savings import NOTHING, Days, Stretch, Tally, counted_replicas, day_of, total, waited
from vllm_chill.core.savings_ledger import KeptText, Ledger
from vllm_chill.core.target import Endpoint, Phase, Target, Unknown
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable
from vllm_chill.ports import SavingsStore

LEAST_SECONDS = 60.0
"""How long it waits at least from one write to the next, whatever happens."""
MOST_SECONDS = 300.0
"""And at most, while there is anything to write: what a proxy that is killed has not written is lost."""
_FRESH_SECONDS = 10.0
_READ_SECONDS = 2.0
_LAST_SECONDS = 5.0
_TRIES = 8


class GpuSeconds(NamedTuple):
    """What one target has had since this proxy began to count it."""

    target: str
    asleep: float
    awake: float


class Savings:
    """All targets of one proxy. `run` keeps what is counted, where there is a store; else it is there while this is.

    Invariant: what has been counted is in `_kept`, in `_sent` (a write that is not known to have come to pass, whose
    number is `_number`) or in `_pending`, and in one of them only.
    """

    def __init__(
        self,
        store: SavingsStore | None = None,
        writer: str = "",
        *,
        led_until: Callable[[float], float] = lambda now: now,
        wall: Callable[[], float] = time.time,
        least_seconds: float = LEAST_SECONDS,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        """`writer` is to be no other process's. `led_until` says of a moment until when, at most until then, this proxy
        is sure to have led without a break; alone it always does. `wall` is in seconds since 1970.
        """
        self._store = store
        self._writer = writer
        self._led_until = led_until
        self._wall = wall
        self._least_seconds, self._most_seconds = least_seconds, most_seconds
        self._clock = asyncio.get_running_loop().time
        self._targets: dict[str, TargetSavings] = {}
        self._kept = Ledger()
        self._sent: Ledger | None = None
        self._number = 0
        self._pending = self._begun = Ledger(wall())
        self._read_at = -_FRESH_SECONDS
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()
        self._log = structlog.get_logger("vllm_chill.savings")
        self._said: str | None = None

    def of(self, target: str, gpus: Callable[[], int | None], model: str | None = None) -> TargetSavings:
        """What counts a target from now on. `gpus` are those of a replica, None while not known; `model` is its name in
        the catalogue.
        """
        counting = self._targets[target] = TargetSavings(self, target, gpus, model)
        return counting

    def forget(self, target: str) -> None:
        """Count a target no longer; what was counted stays."""
        counting = self._targets.pop(target, None)
        if counting is not None:
            counting.settle(self._clock())

    @property
    def gpu_seconds(self) -> Iterator[GpuSeconds]:
        """What each target that is counted has had since this proxy began, up to this moment."""
        now = self._clock()
        for name, counting in self._targets.items():
            counting.settle(now)
            yield GpuSeconds(name, counting.counted.asleep, counting.counted.awake)

    @property
    def ledger(self) -> Ledger:
        """All that is known: what was read last, and what was counted here since it was written."""
        self._settle()
        sent = Ledger() if self._sent is None else self._sent
        return self._kept.plus(sent).plus(self._pending)

    async def refreshed(self) -> Ledger:
        """The same, with what other proxies have written until a few seconds ago."""
        if self._store is not None and self._clock() - self._read_at >= _FRESH_SECONDS:
            try:
                async with asyncio.timeout(_READ_SECONDS), self._turn:
                    await self._read(self._store)
            except TimeoutError:
                self._read_at = self._clock()  # whoever asks next is not to wait for as long
        return self.ledger

    async def run(self) -> None:
        """Keep what is counted, until cancelled, and then a last time."""
        if self._store is None:
            await asyncio.get_running_loop().create_future()
            return
        try:
            async with self._turn:
                await self._read(self._store)
            while True:
                await self._pause()
                await self._keep(self._store)
        finally:
            try:
                async with asyncio.timeout(_LAST_SECONDS):
                    await self._keep(self._store)
            except TimeoutError:
                self._log.warning("what was saved lately is not kept", cause="it could not be written in time")

    async def _pause(self) -> None:
        self._news.clear()
        await asyncio.sleep(self._least_seconds)
        try:
            async with asyncio.timeout(self._most_seconds - self._least_seconds):
                await self._news.wait()
        except TimeoutError:
            return

    # What the targets tell.

    def count(self, target: TargetSavings, days: Days) -> None:
        """Take what was counted of a target."""
        if days:
            self._pending = self._pending.counted(target.name, days, model=target.model, gpus=target.gpus())
            if self._store is None:
                self._pending = self._pending.bounded()

    def spent(self, stretch: Stretch, now: float) -> Days:
        """What is counted of a stretch until now, or for as long as this proxy is sure to have led."""
        until = min(now, self._led_until(now))
        return stretch.spent(until, self._wall() - (now - until))

    def today(self, tally: Tally) -> Days:
        """What is counted now, on its day."""
        return {day_of(self._wall()): tally}

    def hurry(self) -> None:
        """Have it written sooner than it would be."""
        self._news.set()

    def _settle(self) -> None:
        now = self._clock()
        for counting in self._targets.values():
            counting.settle(now)

    # What is kept.

    async def _read(self, store: SavingsStore) -> KeptText | None:
        """Read what is kept; what cannot be had is as it was, and one log line says why. To be called in turn."""
        self._read_at = self._clock()
        try:
            return await self._take(store)
        except BackendError as error:
            self._failed(error)
            return None

    async def _take(self, store: SavingsStore) -> KeptText | None:
        kept = await store.read()
        try:
            self._kept = Ledger() if kept is None or not kept.text else Ledger.parse(kept.text)
        except ValueError as error:
            raise BackendRefused(f"what is kept cannot be used: {error}; move it away, and it begins anew") from error
        if self._sent is not None and self._kept.has(self._writer, self._number):
            self._sent = None
        return kept

    async def _keep(self, store: SavingsStore) -> None:
        """Add what was counted to what is kept; if that fails it is added another time."""
        self._settle()
        async with self._turn:
            try:
                if self._sent is not None:
                    await self._add(store)
                await self._add(store)
            except BackendError as error:
                self._failed(error)
            else:
                self._said = None

    async def _add(self, store: SavingsStore) -> None:
        """Add what may not have been added yet, or else what was counted since."""
        for _ in range(_TRIES):
            self._read_at = self._clock()
            before = await self._take(store)
            if self._sent is None:
                if not self._pending.accounts:
                    return
                # From here on it is one write with one number, however often it has to be tried.
                self._sent, self._pending = self._pending, self._begun
                self._number += 1
            after = self._kept.written(self._sent, self._writer, self._number)
            try:
                await store.write(after.dump(), before)
            except BackendConflict:
                continue
            self._kept, self._sent = after, None
            return
        raise BackendUnavailable("others write at the same time, again and again")

    def _failed(self, error: BackendError) -> None:
        if self._said != error.message:
            self._said = error.message
            self._log.warning("what was saved is not kept", cause=error.message)


class TargetSavings:
    """ports.Recorder that counts one target: how long it has GPUs, and who waits for it to wake.

    `looked` is to be told whenever it may have another number of replicas.
    """

    def __init__(self, savings: Savings, name: str, gpus: Callable[[], int | None], model: str | None) -> None:
        self.name = name
        self.gpus = gpus
        self.model = model
        self.counted = NOTHING
        self._savings = savings
        self._clock = asyncio.get_running_loop().time
        self._stretch = Stretch(self._clock())
        self._phase: Phase = Unknown()

    def looked(self, target: Target, now: float) -> None:
        """Take how the target is from now on."""
        replicas, before = counted_replicas(target), self._stretch
        if replicas == before.replicas:
            return
        self.settle(now)
        self._stretch = Stretch(now, replicas, self._gpus)
        if before.is_woken(replicas):
            self._count(self._savings.today(Tally(wakes=1)))
        self._savings.hurry()

    def settle(self, now: float) -> None:
        """Count what has passed until now."""
        before = self._stretch
        if now > before.since:
            self._stretch = Stretch(now, before.replicas, self._gpus)
            self._count(self._savings.spent(before, now))

    @property
    def _gpus(self) -> int:
        found = self.gpus()
        return 1 if found is None else found

    def _count(self, days: Days) -> None:
        self.counted += total(days)
        self._savings.count(self, days)

    def changed(self, before: Target, after: Target, now: float) -> None:
        """Take the phase, which says whether who is held waits for a wake."""
        self._phase = after.phase

    def held(self, seconds: float) -> None:
        """Count a caller that waited for a wake."""
        seconds = waited(self._phase, seconds, self._clock())
        if seconds:
            self._count(self._savings.today(Tally(waited=seconds, callers=1)))
            self._savings.hurry()

    def progressed(self, target: Target, now: float) -> None:
        """How far a start is does not matter."""

    def answered(self, now: float) -> None:
        """Who is answered waits no longer."""

    def departed(self, endpoint: Endpoint) -> None:
        """The number of replicas tells enough."""

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        """The number of replicas tells enough."""
