"""Targets that run nothing, faithfully: the backend of tests and the measure of what a backend must do.

Readiness comes `start_seconds` after the scale, the end `stop_seconds` after it is taken back, on the loop's
clock. Its replicas have names that never come again, and one address, which serves as soon as one of them does; or,
where they are `apart`, an address each, on the ports from that one on. The other methods are what the outside world
does to a target.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage, TargetRef
from vllm_chill.errors import BackendError, BackendUnavailable
from vllm_chill.ports import Observer

_STARTING = Progress(Stage.STARTING)
_ANSWERING = Progress(Stage.ANSWERING)


class MemoryBackend:
    """One target that starts and stops as told. Invariant: what `watch` told last is `self.seen`."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        start_seconds: float = 0.0,
        stop_seconds: float = 0.0,
        replicas: int = 0,
        apart: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.apart = apart
        self.start_seconds = start_seconds
        self.stop_seconds = stop_seconds
        self._numbers = itertools.count()
        self.seen = self._with(self._new(replicas), ready=True) if replicas else Observation(0, 0)
        self.writes: list[int] = []
        self.fail_next: list[BackendError] = []
        self.fail_start: str | None = None
        self.unseen: BackendUnavailable | None = None
        self.unseen_seconds = 0.0
        self._observer: Observer | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        self._observer = observer
        observer.observed(self.seen)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._observer = None

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        await asyncio.sleep(0)
        if self.fail_next:
            raise self.fail_next.pop(0)
        if replicas != self.seen.replicas:
            self.writes.append(replicas)
            self.set_replicas(replicas, doomed)

    async def catch_up(self, ref: TargetRef) -> None:
        if self.unseen is not None:
            await asyncio.sleep(self.unseen_seconds)
            raise self.unseen

    def set_replicas(self, replicas: int, doomed: Sequence[str] = ()) -> None:
        """Scale it, whoever does so; the doomed go before the others, and the newest before the oldest."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        if replicas:
            members = self.seen.members if self.seen.replicas else ()
            kept = tuple(sorted(members, key=lambda replica: replica.name in doomed)[:replicas])
            ready = None if self.apart else bool(self.seen.endpoints)
            self._tell(self._with(kept + self._new(replicas - len(kept)), ready=ready))
            self._timer = loop.call_later(self.start_seconds, self._started)
        else:
            self._tell(Observation(0, self.seen.live))
            self._timer = loop.call_later(self.stop_seconds, self._stopped)

    def unready(self) -> None:
        """Its replicas live on and fail their readiness probe."""
        self._tell(self._with(self.seen.members, ready=False))

    def ready(self) -> None:
        """Its replicas pass their readiness probe."""
        self._tell(self._with(self.seen.members, ready=True))

    def restart(self) -> None:
        """Its containers end, and are started again."""
        members = tuple(replace(replica, restarts=replica.restarts + 1) for replica in self.seen.members)
        self._tell(self._with(members, ready=False))

    def die(self, cause: str) -> None:
        """It ends by itself, for good."""
        self._tell(Observation(0, 0, failure=cause))

    def lose(self, cause: str) -> None:
        """It can no longer be seen."""
        if self._observer is not None:
            self._observer.lost(cause)

    def _started(self) -> None:
        if self.fail_start is not None:
            self.die(self.fail_start)
        elif self.seen.members:  # all of them may have died before they were ready
            self.ready()

    def _stopped(self) -> None:
        self._tell(replace(self.seen, live=0))

    def _new(self, count: int) -> tuple[Replica, ...]:
        host, port = self.endpoint
        return tuple(
            Replica(
                f"memory-{number + 1}",
                Endpoint(host, port + number) if self.apart else self.endpoint,
                ready=False,
                progress=_STARTING,
            )
            for number in itertools.islice(self._numbers, count)
        )

    def _with(self, members: tuple[Replica, ...], *, ready: bool | None) -> Observation:
        """What it is with these replicas, all of them ready or none, or (None) each as it is."""
        if ready is not None:
            progress = _ANSWERING if ready else _STARTING
            members = tuple(replace(replica, ready=ready, progress=progress) for replica in members)
        if not self.apart:
            members = tuple(replace(replica, endpoint=self.endpoint) for replica in members)
        serving = tuple(replica for replica in members if replica.ready)
        return Observation(
            replicas=len(members),
            live=len(members),
            endpoints=tuple(dict.fromkeys(r.endpoint for r in serving if r.endpoint is not None)),
            serving=frozenset(replica.name for replica in serving),
            members=members,
            progress=max((replica.progress for replica in members), key=lambda progress: progress.stage),
        )

    def _tell(self, seen: Observation) -> None:
        self.seen = seen
        if self._observer is not None:
            self._observer.observed(seen)
