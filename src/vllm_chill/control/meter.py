"""The measuring of one target's replicas: each is scraped every few seconds while there are any.

The rule: a scrape that fails adds nothing, so what was measured last grows old; it is never taken for 0. Nothing here
is on a request's way, and nothing is asked while the target sleeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from random import uniform

from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.histogram import merged
from vllm_chill.core.scaling.figures import ReplicaFigures
from vllm_chill.core.scaling.signals import Metric, ReplicaReading, Sample, Signal
from vllm_chill.core.scaling.track import Looked, Track, is_quiet, latency_ms
from vllm_chill.core.target import Endpoint, Replica
from vllm_chill.errors import BackendUnavailable

SCRAPE_SECONDS = 5.0
FRESH_SECONDS = 15.0
QUERY_SECONDS = 15.0
_JITTER = 0.1
_LOOK_SECONDS = 1.0
_LEAST_SECONDS = 0.001  # less may not move the clock at all
_FORGET_SECONDS = 600.0

Scrape = Callable[[Endpoint], Awaitable[EngineSample]]
"""What the engine there says of itself now. Raises BackendUnavailable."""

GpuUse = Callable[[str], Sample | None]
"""How much the GPUs of the replica of this name are used, in percent."""

Query = Callable[[str], Awaitable[float | None]]
"""What a Prometheus answers to this expression; None if that is no number. Raises BackendUnavailable."""


def _unknown(name: str) -> Sample | None:
    """What is known where nobody tells of GPUs."""


class _Measured:
    """One replica: its address, since when it is ready, what it said, and when it is to be asked again."""

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None
        self.ready_since: float | None = None
        self.track = Track()
        self.failure: str | None = None
        self.due = 0.0
        self.scraping: asyncio.Task[None] | None = None

    def is_due(self, now: float) -> bool:
        """Whether it is to be asked now."""
        return self.ready_since is not None and self.due <= now and (self.scraping is None or self.scraping.done())


class _Asked:
    """One expression: when somebody wanted its value last, its last answer, and when it is to be asked again."""

    def __init__(self, now: float) -> None:
        self.wanted_at = now
        self.due = now
        self.answer: Sample | None = None
        self.failure: str | None = None
        self.asking: asyncio.Task[None] | None = None


class Meter:
    """One target's. Its replicas are those that `members` gives, none while it sleeps (figures.measured_replicas)."""

    def __init__(
        self,
        members: Callable[[], Sequence[Replica]],
        scrape: Scrape,
        *,
        now: Callable[[], float],
        gpu: GpuUse = _unknown,
        query: Query | None = None,
        between: Callable[[float, float], float] = uniform,
    ) -> None:
        """`now` is the clock of the phases; `between` gives a number between two, at random."""
        self._replicas = members
        self._scrape = scrape
        self._now = now
        self._gpu = gpu
        self._query = query
        self._between = between
        self._measured: dict[str, _Measured] = {}
        self._asked: dict[str, _Asked] = {}

    async def run(self) -> None:
        """Scrape each replica every 5 s, give or take a tenth, until cancelled. Expressions are asked every 15 s."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._look()
                now = self._now()
                self._scrape_due(tasks, now)
                self._ask_due(tasks, now)
                await asyncio.sleep(max(_LEAST_SECONDS, self._next_due(now) - now))

    def members(self, signals: Collection[Signal]) -> tuple[ReplicaReading, ...]:
        """Each replica with what was measured of it."""
        self._look()
        return tuple(
            ReplicaReading(
                name,
                one.ready_since,
                {signal: sample for signal in signals if (sample := self._of(name, one, signal)) is not None},
            )
            for name, one in self._measured.items()
        )

    def of_target(self, signals: Collection[Signal]) -> Mapping[Signal, Sample]:
        """What was measured of the target as a whole: latencies, over the requests of all replicas, and expressions.

        An expression is asked from when it was in here first, so its first answer comes a moment later.
        """
        self._look()
        found = {}
        for signal in signals:
            match signal.metric:
                case Metric.LATENCY:
                    sample = self._latency(signal)
                case Metric.PROMQL:
                    sample = self._answer(signal.query)
                case _:
                    sample = None
            if sample is not None:
                found[signal] = sample
        return found

    def figures(self) -> tuple[ReplicaFigures, ...]:
        """What is known of each replica, for whoever wants to see it."""
        self._look()
        return tuple(
            ReplicaFigures(name, one.ready_since, one.track.newest, self._gpu(name), one.failure)
            for name, one in self._measured.items()
        )

    def trouble(self, query: str) -> str | None:
        """Why an expression had no answer when it was asked last; None if it had one, or was not asked yet."""
        if self._query is None:
            return "no Prometheus is known that could be asked"
        asked = self._asked.get(query)
        return None if asked is None else asked.failure

    @property
    def busy(self) -> bool:
        """Whether an engine has requests, by a sample that is fresh."""
        return any(looked.sample.running or looked.sample.waiting for _, looked in self._fresh())

    # Which replicas there are.

    def _look(self) -> None:
        now, before = self._now(), self._measured
        self._measured = {}
        for replica in self._replicas():
            one = before.pop(replica.name, None) or _Measured()
            self._measured[replica.name] = one
            one.endpoint = replica.endpoint
            if not replica.ready:
                one.ready_since = None
            elif one.ready_since is None:
                one.ready_since = now
                # Those that are found at the same time are not to be scraped at the same time for ever.
                one.due = now + self._between(0, _LOOK_SECONDS)
        for gone in before.values():
            if gone.scraping is not None:
                gone.scraping.cancel()

    # Asking them.

    def _scrape_due(self, tasks: asyncio.TaskGroup, now: float) -> None:
        for one in self._measured.values():
            if one.endpoint is not None and one.is_due(now):
                one.due = now + SCRAPE_SECONDS * self._between(1 - _JITTER, 1 + _JITTER)
                one.scraping = tasks.create_task(self._scrape_one(one, one.endpoint))

    async def _scrape_one(self, one: _Measured, endpoint: Endpoint) -> None:
        try:
            sample = await self._scrape(endpoint)
        except BackendUnavailable as error:
            one.failure = error.message
        else:
            one.failure = None
            one.track.add(self._now(), sample)

    def _ask_due(self, tasks: asyncio.TaskGroup, now: float) -> None:
        if self._query is None or not self._measured:
            return
        self._asked = {query: asked for query, asked in self._asked.items() if now - asked.wanted_at < _FORGET_SECONDS}
        for query, asked in self._asked.items():
            if asked.due <= now and (asked.asking is None or asked.asking.done()):
                asked.due = now + QUERY_SECONDS * self._between(1 - _JITTER, 1 + _JITTER)
                asked.asking = tasks.create_task(self._ask(self._query, query, asked))

    async def _ask(self, ask: Query, query: str, asked: _Asked) -> None:
        try:
            value = await ask(query)
        except BackendUnavailable as error:
            asked.failure = error.message
            return
        asked.failure = None
        if value is not None:
            asked.answer = Sample(value, self._now())

    def _next_due(self, now: float) -> float:
        """When there is something to do next, or to look again for who is there."""
        dues = (one.due for one in self._measured.values() if one.ready_since is not None and one.due > now)
        return min((now + _LOOK_SECONDS, *dues))

    # What is known.

    def _of(self, name: str, one: _Measured, signal: Signal) -> Sample | None:
        if one.ready_since is None:
            return None
        return self._gpu(name) if signal.metric is Metric.GPU_UTILIZATION else one.track.signal(signal)

    def _fresh(self) -> Iterator[tuple[Track, Looked]]:
        """The replicas that were scraped a moment ago, with what was found."""
        oldest = self._now() - FRESH_SECONDS
        for one in self._measured.values():
            newest = one.track.newest
            if one.ready_since is not None and newest is not None and newest.at >= oldest:
                yield one.track, newest

    def _latency(self, signal: Signal) -> Sample | None:
        fresh = tuple(self._fresh())
        latencies = merged(found for track, _ in fresh if (found := track.latencies(signal)) is not None)
        value = latency_ms(signal, latencies, quiet=all(is_quiet(looked.sample) for _, looked in fresh))
        return None if value is None else Sample(value, min(looked.at for _, looked in fresh))

    def _answer(self, query: str | None) -> Sample | None:
        if query is None:
            return None
        now = self._now()
        asked = self._asked.setdefault(query, _Asked(now))
        asked.wanted_at = now
        return asked.answer
