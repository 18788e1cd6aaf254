"""One target on a stage: replicas in memory that a controller scales on loop time, and a meter that says what it is
told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.control.nobody import Nobody
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.autoscaler import Autoscaler
from vllm_chill.control.controller import ScaleController
from vllm_chill.core.scaling.policy import Pace, Policy, Rule
from vllm_chill.core.scaling.signals import Metric, ReplicaReading, Sample, Signal
from vllm_chill.core.target import Endpoint, Limits, Observation, Phase, TargetRef

HERE = Endpoint("127.0.0.1", 8000)
REF = TargetRef("ai-apps", "vllm")
QUEUE = Signal(Metric.QUEUE_LENGTH)
IDLE_SECONDS = 300.0
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


class SharedBackend(MemoryBackend):
    """Replicas that others scale too; `by` is who did it last, None if it was us or is not told.

    `rival` is called when we have.
    """

    by: str | None = None
    rival: Callable[[], object] | None = None

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        self.by = None
        await super().scale(ref, replicas, doomed=doomed)
        if self.rival is not None:
            self.rival()

    def _tell(self, seen: Observation) -> None:
        super()._tell(replace(seen, replicas_by=self.by))


@dataclass
class Load:
    """A meter whose replicas share a queue; `queue` None: nothing is measured."""

    controller: ScaleController
    queue: float | None = 0.0
    busy: bool = False
    asked: int = 0

    def members(self, signals: Collection[Signal]) -> tuple[ReplicaReading, ...]:
        self.asked += 1
        seen, now = self.controller.target.observed, self.controller.now()
        live, ready_since = (seen.live, 0.0 if seen.endpoints else None) if seen is not None else (0, None)
        samples = {}
        if self.queue is not None and live:
            samples = {signal: Sample(self.queue / live, now) for signal in signals}
        return tuple(ReplicaReading(f"replica-{number}", ready_since, samples) for number in range(live))

    def of_target(self, signals: Collection[Signal]) -> Mapping[Signal, Sample]:
        return {}


@dataclass
class Stage:
    """What tests have in hand."""

    controller: ScaleController
    backend: SharedBackend
    load: Load
    scaler: Autoscaler

    @property
    def replicas(self) -> int:
        return self.backend.seen.replicas

    @property
    def conflict(self) -> str | None:
        return self.scaler.conflict

    def phase_is(self, kind: type[Phase]) -> bool:
        return isinstance(self.controller.target.phase, kind)

    def others_scale(self, replicas: int, by: str | None = None) -> None:
        """Somebody else writes the number."""
        self.backend.by = by
        self.backend.set_replicas(replicas)


def policy(**changes: Any) -> Policy:
    """One replica for each 10 requests in a queue, from 1 to 10, and down as soon as it may."""
    given: dict[str, Any] = {
        "name": "example",
        "min_replicas": 1,
        "max_replicas": 10,
        "rules": (Rule(QUEUE, 10, 10),),
        "down": Pace(0.0, ()),
        "up": Pace(0.0, ()),
    }
    return Policy(**{**given, **changes})


class Clock:
    """A time of day that goes with the loop's."""

    def __init__(self, start: datetime = NOON) -> None:
        self._start = start - timedelta(seconds=asyncio.get_running_loop().time())

    def __call__(self) -> datetime:
        return self._start + timedelta(seconds=asyncio.get_running_loop().time())


@asynccontextmanager
async def staged(
    given: Policy | None = None, *, replicas: int = 1, start: float = 0.0, idle: float = IDLE_SECONDS, **more: Any
) -> AsyncIterator[Stage]:
    """A stage with so many replicas that are ready; it has settled."""
    backend = SharedBackend(HERE, start_seconds=start, replicas=replicas)
    controller = ScaleController(REF, Limits(idle, 1800, drain_seconds=0.0), backend, Nobody())
    load = Load(controller)
    scaler = Autoscaler("vllm", controller, load, wall=Clock(), **more)
    scaler.policy = given
    stage = Stage(controller, backend, load, scaler)
    tasks = [asyncio.create_task(controller.run()), asyncio.create_task(scaler.run())]
    await asyncio.sleep(0.1)
    try:
        yield stage
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
