"""The record of a target's cold starts: told of each change, asked for the time that is left, kept over restarts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from vllm_chill.core.cold_start import STAGE_NAMES, ColdStart, Outcome
from vllm_chill.core.past_starts import PastStarts
from vllm_chill.core.starts import Starts
from vllm_chill.core.target import Endpoint, Target, TargetRef
from vllm_chill.ports import StartHistory
from vllm_chill.telemetry.metrics import Metrics

MOST_KEPT = 20


class StartRecord:
    """ports.Recorder for one target's starts: a log line and the phases' metrics for each that is over.

    `starts` is the value that it keeps, `newest` the last ones that are over, oldest first; `on_change` is called with
    the value as it was and as it has become. `awaits_answer` is true between ready and the first byte of an answer;
    only then does `answered` do anything, so the request path looks at it first.
    """

    def __init__(self, ref: TargetRef, metrics: Metrics) -> None:
        self.starts = Starts()
        self.newest: deque[ColdStart] = deque(maxlen=MOST_KEPT)
        self.awaits_answer = False
        self.on_change: Callable[[Starts, Starts], None] | None = None
        self._ref = ref
        self._phases = metrics.cold_start_phases
        self._log = structlog.get_logger("vllm_chill.target")
        self._learned = asyncio.Event()
        self._unloaded: list[ColdStart] | None = []

    @property
    def current(self) -> ColdStart | None:
        """The start under way, until the first byte of its first answer."""
        return self.starts.current

    @property
    def last(self) -> ColdStart | None:
        """The newest start that is over."""
        return self.starts.last

    @property
    def history(self) -> PastStarts:
        """What the starts so far have taken."""
        return self.starts.past

    def eta(self, now: float) -> float | None:
        """The seconds until the start under way is ready; None without one, or while nothing is known."""
        return self.starts.eta(now)

    def retry_after(self, now: float) -> int:
        """The seconds for the Retry-After of whoever is not held: 1 to 600."""
        return self.starts.retry_after(now)

    def describe(self, now: float, position: int | None = None, held_back: str | None = None) -> str:
        """What a caller waits for, in one short line: see `Starts.describe`."""
        return self.starts.describe(now, position, held_back)

    def changed(self, before: Target, after: Target, now: float) -> None:
        """Begin a start, or end it; one that became ready is learned from."""
        self._become(self.starts.changed(before, after, now))

    def progressed(self, target: Target, now: float) -> None:
        """Take how far the start is."""
        if target.observed is not None:
            self._become(self.starts.progressed(target.observed.progress, now))

    def answered(self, now: float) -> None:
        """Take that the first byte of an answer has come."""
        if self.awaits_answer:
            self._become(self.starts.answered(now))

    def settle(self, target: Target) -> Starts:
        """The starts, without waiting for an answer that nobody is there to get."""
        self._become(self.starts.settled(target))
        return self.starts

    def departed(self, endpoint: Endpoint) -> None:
        """The phases and the progress tell enough."""

    def held(self, seconds: float) -> None:
        """The phases and the progress tell enough."""

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        """The phases and the progress tell enough."""

    async def keep(self, history: StartHistory) -> None:
        """Take up what was learned before this process began, and save what is learned from now on, until cancelled."""
        await self._recall(history)
        while True:
            await self._learned.wait()
            self._learned.clear()
            if self._unloaded is not None:
                # Nothing was there, or it could not be had then; what is saved now takes its place.
                await self._recall(history)
                self._unloaded = None
            await history.save(self._ref, self.starts.past.dump())

    async def _recall(self, history: StartHistory) -> None:
        text = await history.load(self._ref)
        if text is None:
            return
        past = PastStarts.parse(text)
        for start in self._unloaded or ():
            past = past.learned(start)
        self._unloaded = None
        self.starts = replace(self.starts, past=past)

    def _become(self, after: Starts) -> None:
        before, self.starts = self.starts, after
        self.awaits_answer = after.awaits_answer
        if self.on_change is not None:
            self.on_change(before, after)
        if after.past is not before.past:
            self._learn(after.current or after.last)
        if after.last is not None and after.last is not before.last:
            self.newest.append(after.last)
            self._tell(after.last)

    def _learn(self, start: ColdStart | None) -> None:
        if self._unloaded is not None and start is not None:
            self._unloaded.append(start)
        self._learned.set()

    def _tell(self, start: ColdStart) -> None:
        assert start.ended is not None
        assert start.outcome is not None
        stages = {STAGE_NAMES[stage]: seconds for stage, seconds in start.seconds(start.ended).items()}
        if start.whole and start.outcome is Outcome.READY:
            for name, seconds in stages.items():
                self._phases.labels(str(self._ref), name).observe(seconds)
        fields: dict[str, Any] = {"target": str(self._ref), "outcome": start.outcome.value}
        if start.outcome is not Outcome.READY:
            fields |= {"stage": STAGE_NAMES[start.stage], "detail": start.detail, "cause": start.cause}
        if not start.whole:
            fields["whole"] = False
        fields["seconds"] = round(start.elapsed(start.ended), 3)
        level = self._log.warning if start.outcome is Outcome.FAILED else self._log.info
        level("cold start", **fields, **{name: round(seconds, 3) for name, seconds in stages.items()})
