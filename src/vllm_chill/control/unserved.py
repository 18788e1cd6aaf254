"""Targets that are scaled and not served: no request comes to them through this proxy, and none could wake them.

The rule: their last replica is never taken here, whatever becomes of it, but for those that whoever scales them also
wakes. What cannot start is for whoever runs it to mend, as with HPA. Of no replica it is known here what it is at, so
the cluster chooses which go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from vllm_chill.core.target import Limits, Observation, TargetRef
from vllm_chill.errors import BackendRefused, BackendUnavailable
from vllm_chill.ports import ClusterBackend, Observer


def unserved(limits: Limits) -> Limits:
    """Limits of such a target: it is never idle, and has all the time that a start takes."""
    return replace(limits, idle_seconds=math.inf, start_seconds=math.inf, always_on=False)


class UnservedBackend:
    """ports.ClusterBackend over another one, by which nothing ever fails for good.

    `to_zero`: whoever recommends also wakes it, so it may be put to sleep.
    """

    def __init__(self, inner: ClusterBackend, *, to_zero: bool = False) -> None:
        self._inner = inner
        self._to_zero = to_zero

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        await self._inner.watch(ref, _Hopeful(observer))

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        if not replicas and not self._to_zero:
            raise BackendRefused(f"{ref} is not served here, so it is not put to sleep")
        try:
            await self._inner.scale(ref, replicas)
        except BackendRefused as error:
            raise BackendUnavailable(error.message) from error

    async def catch_up(self, ref: TargetRef) -> None:
        await self._inner.catch_up(ref)


class _Hopeful:
    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def observed(self, observation: Observation) -> None:
        self._observer.observed(observation if observation.failure is None else replace(observation, failure=None))

    def lost(self, cause: str) -> None:
        self._observer.lost(cause)
