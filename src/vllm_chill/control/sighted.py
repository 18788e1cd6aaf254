"""A backend of which it is known whether it tells how its target is."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_chill.core.target import Observation, TargetRef
from vllm_chill.ports import ClusterBackend, Observer


class SightedBackend:
    """ports.ClusterBackend: another one, whose observations and losses pass by. Its observer is told the same.

    It stands before whatever adds to what is seen: a prober goes on telling while the API server is away.
    """

    def __init__(self, inner: ClusterBackend) -> None:
        self._inner = inner
        self.sees = False
        """Whether what was told last is how the target is."""

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        await self._inner.watch(ref, _Sight(self, observer))

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        await self._inner.scale(ref, replicas, doomed=doomed)

    async def catch_up(self, ref: TargetRef) -> None:
        await self._inner.catch_up(ref)


class _Sight:
    def __init__(self, backend: SightedBackend, observer: Observer) -> None:
        self._backend = backend
        self._observer = observer

    def observed(self, observation: Observation) -> None:
        self._backend.sees = True
        self._observer.observed(observation)

    def lost(self, cause: str) -> None:
        self._backend.sees = False
        self._observer.lost(cause)
