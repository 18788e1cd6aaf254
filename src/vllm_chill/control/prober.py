"""A backend whose replicas are asked themselves whether they are ready, by one prober for each that starts.

The rule: all that is decided is decided by core.readiness; here are the tasks that ask. What the inner backend tells
is passed on in the same call, so a write that it has seen is seen by whoever watches this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from vllm_chill.core.readiness import (
    MODELS_PATH,
    Answer,
    Answered,
    Probe,
    Readiness,
    health_found,
    list_found,
    lists_models,
    pause_seconds,
)
from vllm_chill.core.target import Endpoint, Observation, Stage, TargetRef
from vllm_chill.ports import ClusterBackend, Observer

TIMEOUT_SECONDS = 1.0

Ask = Callable[[Endpoint, str, float], Awaitable[Answer]]
"""GETs a path of an endpoint, within so many seconds; it never raises."""


def _nobody(endpoint: Endpoint, body: bytes) -> None:
    """Who takes lists of models where nobody does."""


@dataclass(frozen=True, slots=True)
class Probing:
    """How a replica is asked: `health_path` answers 200 once it is healthy.

    `listed` takes each list of models that was seen, as it came; it returns at once and never raises.
    """

    ask: Ask
    health_path: str = "/health"
    listed: Callable[[Endpoint, bytes], None] = _nobody
    random: Random = field(default_factory=Random)

    async def look(self, endpoint: Endpoint) -> Stage | None:
        """How far the start of the replica at this address is; None if it takes no connection."""
        found = health_found(await self.ask(endpoint, self.health_path, TIMEOUT_SECONDS))
        if found is not Stage.LISTING:
            return found
        answer = await self.ask(endpoint, MODELS_PATH, TIMEOUT_SECONDS)
        if lists_models(answer):
            assert isinstance(answer, Answered)
            self.listed(endpoint, answer.body)
        return list_found(answer)


class ProbingBackend:
    """The inner backend with readiness as it is found. `probing` None: by the backend's word alone.

    `direct`: requests go to the replicas' own addresses, else to where the inner backend says (core.readiness).
    """

    def __init__(self, inner: ClusterBackend, probing: Probing | None, *, direct: bool) -> None:
        self._inner = inner
        self._probing = probing
        self._direct = direct

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        async with asyncio.TaskGroup() as tasks:
            await self._inner.watch(ref, _View(tasks, self._probing, observer, direct=self._direct))

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        await self._inner.scale(ref, replicas, doomed=doomed)

    async def catch_up(self, ref: TargetRef) -> None:
        await self._inner.catch_up(ref)


class _View:
    """One watch. Invariant: `_probers` are those that the readiness asks for, and what it is has been told."""

    def __init__(self, tasks: asyncio.TaskGroup, probing: Probing | None, observer: Observer, *, direct: bool) -> None:
        self._tasks = tasks
        self._probing = probing
        self._observer = observer
        self._readiness = Readiness(probed=probing is not None, direct=direct)
        self._probers: dict[Probe, asyncio.Task[None]] = {}
        self._told: Observation | None = None

    def observed(self, observation: Observation) -> None:
        """Take what the inner backend sees, and pass it on with what is known besides."""
        self._settle(self._readiness.told(observation))

    def lost(self, cause: str) -> None:
        """Take that the inner backend sees nothing; the probers go on with what was seen last."""
        self._told = None
        self._observer.lost(cause)

    def _settle(self, readiness: Readiness) -> None:
        self._readiness = readiness
        probes = readiness.probes
        for probe in self._probers.keys() - probes:
            self._probers.pop(probe).cancel()
        if self._probing is not None:
            for probe in probes - self._probers.keys():
                self._probers[probe] = self._tasks.create_task(self._probe(self._probing, probe))
        now = readiness.observation
        if now != self._told:
            self._told = now
            self._observer.observed(now)

    async def _probe(self, probing: Probing, probe: Probe) -> None:
        """Look at a replica until `_settle` ends this, as there is nothing more to find out."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            at = loop.time()
            stage = await probing.look(probe.endpoint)
            readiness = self._readiness.found(probe, stage)
            if readiness is not self._readiness:
                self._settle(readiness)
            pause = pause_seconds(at - begun, probing.random.random())
            await asyncio.sleep(max(0.0, at + pause - loop.time()))
