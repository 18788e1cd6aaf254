"""What is seen of one target, told as observations: of a Deployment, or of whatever else has a scale and pods.

The rule: an observation is told only while the target and its pods are both seen, and only when it differs from
the one before. What explains a start beyond that (events, logs) is looked for only while it is needed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol
from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import ApiClient, Json
from vllm_chill.adapters.kubernetes.crash_logs import CrashLogs
from vllm_chill.adapters.kubernetes.facts import Workload, pod_facts, workload
from vllm_chill.adapters.kubernetes.objects import MANAGER, collection_of
from vllm_chill.adapters.kubernetes.pulls import Pulls
from vllm_chill.adapters.kubernetes.scale_watch import ScaleWatch
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot
from vllm_chill.adapters.mask import Mask
from vllm_chill.core.pods import (
    ContainerRun,
    PodFacts,
    PodPast,
    is_being_made,
    is_crash_loop,
    is_live,
    recalled,
    remembered,
    run_of,
)
from vllm_chill.core.startup import Terms, WorkloadFacts, gives_up_at, observation
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Observation
from vllm_chill.core.writers import Written, written
from vllm_chill.ports import Observer

_STEADY_SECONDS = 15.0


class _Workloads(Protocol):
    """What follows the target itself: the object, or where its kind is not known, its scale."""

    def steps(self) -> AsyncGenerator[Snapshot[Workload] | Outage, None]: ...

    def relist(self) -> None: ...

    async def newest(self) -> int: ...


class View:
    """What one watch knows of one target. Invariant: all up to `_version` has been told to the observer.

    `_seen` and `_pods` are None while they are not seen; `_past` has what is remembered of each pod in `_pods`, and
    `_written` who set the number of replicas.
    """

    def __init__(
        self,
        api: ApiClient,
        terms: Terms,
        pace: Pace,
        observer: Observer,
        *,
        explains: bool = True,
        mask: Mask | None = None,
    ) -> None:
        """`explains`: somebody wants to know why a start takes so long, and credentials may see events and logs. What
        `mask` hides is not told of logs.
        """
        self.ref = terms.ref
        self._explains = explains
        self._api = api
        self._terms = terms
        self._pace = pace
        self._observer = observer
        self._tasks = asyncio.TaskGroup()
        self._workloads = self._following_of()
        self._pulls = Pulls(api, self.ref, pace, self._tell)
        self._logs = CrashLogs(api, self.ref.namespace, self._tell, mask)
        self._seen: Snapshot[Workload] | None = None
        self._selector: str | None = None
        self._pod_watch: ListWatch[PodFacts] | None = None
        self._pods: Snapshot[PodFacts] | None = None
        self._past: Mapping[str, PodPast] = {}
        self._written: Written | None = None
        self._following: asyncio.Task[None] | None = None
        self._told: Observation | str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lost_at = -math.inf
        self._version = 0
        self._advanced = asyncio.Event()

    async def follow(self) -> None:
        """Follow the target, and the pods of its selector as that is now, until cancelled. Once only."""
        async with self._tasks:
            try:
                await self._follow_workload()
            finally:
                self._look_again_at(None)

    @property
    def served(self) -> tuple[tuple[str, ...], str] | None:
        """What the next pod runs, and the name of its template; None while that is not seen."""
        found = self._workload()
        return None if found is None else (found.command, found.template)

    @property
    def gpus(self) -> int | None:
        """The GPUs that the next pod asks for; None if it names none, or while that is not seen."""
        found = self._workload()
        return None if found is None else found.gpus

    @property
    def doomed(self) -> frozenset[str]:
        """The pods that are marked as the first to go, and still there."""
        pods = self._pods.objects.values() if self._pods is not None else ()
        return frozenset(pod.name for pod in pods if pod.doomed and is_live(pod))

    @property
    def runs(self) -> tuple[ContainerRun, ...]:
        """What of each pod is to be read to know how it is, the oldest pod first."""
        pods = sorted(self._pods.objects.values(), key=lambda pod: pod.created) if self._pods is not None else ()
        return tuple(run for pod in pods if (run := run_of(pod)) is not None)

    @property
    def newest_crash(self) -> tuple[str, str] | None:
        """The pod that crashed last in this start or the last one, and what it wrote; None where that is not known."""
        return self._logs.newest

    async def moved(self) -> None:
        """Wait until the observer may have been told something."""
        self._advanced.clear()
        await self._advanced.wait()

    @property
    def replicas(self) -> int | None:
        """The number that was last seen to be asked for; None while it is not seen."""
        found = self._workload()
        return None if found is None else found.facts.replicas

    @property
    def object_version(self) -> str:
        """The resource version of the object as it was last seen; empty while it is not."""
        found = self._workload()
        return "" if found is None else found.version

    async def beyond(self, object_version: str) -> None:
        """Wait until the observer has been told of another version of the object than this."""
        while self.object_version == object_version:
            self._advanced.clear()
            await self._advanced.wait()

    @property
    def steady(self) -> bool:
        """Whether there was no outage lately. A server that has just begun refuses what it allows a moment later, as it
        has not read who may do what.
        """
        return asyncio.get_running_loop().time() >= self._lost_at + _STEADY_SECONDS

    async def until(self, version: int) -> None:
        """Wait until the observer has been told all up to this version."""
        while self._version < version:
            self._advanced.clear()
            await self._advanced.wait()

    async def newest(self) -> int:
        """The version of the last write to the target, as the server says now. Raises ApiError or Unreachable."""
        return await self._workloads.newest()

    def relist(self) -> None:
        """Look again, now."""
        self._workloads.relist()
        if self._pod_watch is not None:
            self._pod_watch.relist()

    def _following_of(self) -> _Workloads:
        if self.ref.resource not in {DEPLOYMENTS, STATEFUL_SETS}:
            return ScaleWatch(self._api, self.ref, self._pace, self._tasks)
        query = {"fieldSelector": f"metadata.name={self.ref.name}"}
        return ListWatch(self._api, collection_of(self.ref), query, workload, self._pace)

    async def _follow_workload(self) -> None:
        async with aclosing(self._workloads.steps()) as steps:
            async for step in steps:
                match step:
                    case Outage(cause):
                        self._seen = None
                        self._lost(cause)
                    case Snapshot():
                        self._seen = step
                        self._remember_writers()
                        self._follow_pods()
                        self._tell()

    def _follow_pods(self) -> None:
        found = self._workload()
        selector = found.selector if found is not None else None
        if selector == self._selector:
            return
        if self._following is not None:
            self._following.cancel()
        self._selector, self._pods, self._pod_watch, self._following = selector, None, None, None
        if selector is not None:
            path = f"/api/v1/namespaces/{quote(self.ref.namespace)}/pods"
            pods = ListWatch(self._api, path, {"labelSelector": selector}, self._own_pod, self._pace)
            self._pod_watch, self._following = pods, self._tasks.create_task(self._pods_of(pods))

    async def _pods_of(self, pods: ListWatch[PodFacts]) -> None:
        async with aclosing(pods.steps()) as steps:
            async for step in steps:
                match step:
                    case Outage(cause):
                        self._pods = None
                        self._lost(cause)
                    case Snapshot():
                        self._pods = step
                        self._remember(step)
                        self._tell()

    def _own_pod(self, item: Json) -> PodFacts | None:
        return pod_facts(item, self.ref, self._terms.endpoint.port)

    def _workload(self) -> Workload | None:
        return self._seen.objects.get(self.ref.name) if self._seen is not None else None

    def _remember_writers(self) -> None:
        found, before = self._workload(), self._written
        self._written = None if found is None else written(before, found.facts.replicas, found.writers, MANAGER)

    def _facts(self) -> WorkloadFacts | None:
        found = self._workload()
        by = self._written.by if self._written is not None else None
        return None if found is None else replace(found.facts, replicas_by=by)

    def _remember(self, pods: Snapshot[PodFacts]) -> None:
        self._past = remembered(self._past, pods.objects, asyncio.get_running_loop().time())
        self._logs.forget_all_but(self._past)
        if (newest := self._logs.newest) is not None and self._past and newest[0] not in self._past:
            self._logs.newest = None  # that start was another one

    def _known_pods(self) -> tuple[PodFacts, ...]:
        """The pods with all that is known of them besides their status."""
        if self._pods is None:
            return ()
        pods = (recalled(pod, self._past[name]) for name, pod in self._pods.objects.items())
        return tuple(
            replace(
                pod,
                pulling=self._pulls.of(pod.name),
                containers=tuple(replace(c, log=self._logs.of(pod.name, c)) for c in pod.containers),
            )
            for pod in pods
        )

    def _tell(self) -> None:
        if self._seen is None:
            return
        facts = self._facts()
        if facts is not None and self._pods is None:
            return
        pods, time = self._known_pods(), asyncio.get_running_loop().time()
        now = observation(self._terms, facts, pods, time)
        if now.failure is not None and self._explains_later(pods):
            now = replace(now, failure=None)
        is_pulling = self._explains and now.replicas > 0 and any(map(is_being_made, pods))
        self._pulls.follow(self._tasks, wanted=is_pulling)
        self._look_again_at(gives_up_at(self._terms, pods, time) if now.replicas else None)
        if now != self._told:
            self._told = now
            self._observer.observed(now)
        self._version = self._seen.version
        self._advanced.set()

    def _explains_later(self, pods: tuple[PodFacts, ...]) -> bool:
        """Whether the log of a crash is still being read: a failure is told once, and waits for what explains it."""
        crashes = [
            (pod.name, container.name, container.restarts)
            for pod in pods
            if is_live(pod)
            for container in pod.containers
            if is_crash_loop(container)
        ]
        return self._explains and self._logs.read(self._tasks, crashes)

    def _look_again_at(self, time: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if time is None else asyncio.get_running_loop().call_at(time, self._tell)

    def _lost(self, cause: str) -> None:
        self._lost_at = asyncio.get_running_loop().time()
        if cause != self._told:
            self._told = cause
            self._observer.lost(cause)
