"""The measuring of GPUs, for the replicas of all targets: one reading every few seconds, while somebody wants it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from vllm_chill.core.gpu import GpuUse
from vllm_chill.core.scaling.signals import Sample
from vllm_chill.errors import BackendUnavailable

READ_SECONDS = 5.0
_PAUSE_SECONDS = 30.0
_WANTED_SECONDS = 60.0

Read = Callable[[], Awaitable[GpuUse]]
"""How much GPUs are used now. Raises BackendUnavailable."""


class GpuMeter:
    """`sources` are asked in their order, until one tells. If none does, what was read last grows old."""

    def __init__(self, sources: Sequence[Read], *, now: Callable[[], float]) -> None:
        self._sources = tuple(sources)
        self._now = now
        self._read: GpuUse = GpuUse()
        self._read_at = -math.inf
        self._wanted_at = -math.inf
        self.failure: str | None = None
        """Why the last reading failed, None if it did not."""

    async def run(self) -> None:
        """Read while somebody has asked within the last minute, until cancelled; after a failure less often."""
        while True:
            if self._sources and self._now() - self._wanted_at < _WANTED_SECONDS:
                await self._look()
            await asyncio.sleep(READ_SECONDS if self.failure is None else _PAUSE_SECONDS)

    def of_pod(self, namespace: str, name: str) -> Sample | None:
        """How much a pod's GPUs are used, in percent, and when that was read."""
        return self._sample(self._wanted.by_pod.get((namespace, name)))

    def of_machine(self) -> Sample | None:
        """How much all GPUs that are told of are used, in percent."""
        return self._sample(self._wanted.all)

    @property
    def _wanted(self) -> GpuUse:
        self._wanted_at = self._now()
        return self._read

    def _sample(self, percent: float | None) -> Sample | None:
        return None if percent is None else Sample(percent, self._read_at)

    async def _look(self) -> None:
        failures = []
        for source in self._sources:
            try:
                self._read = await source()
            except BackendUnavailable as error:
                failures.append(error.message)
                continue
            self._read_at, self.failure = self._now(), None
            return
        self.failure = "; ".join(failures)
