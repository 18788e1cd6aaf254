"""An existing Deployment as a scale target.

The rule: what is known comes from the two watches (the Deployment, and its pods), what is done is one write, to
the scale subresource; nothing is read on the way of a request. An observation is told only while both are seen.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Unreachable
from vllm_chill.adapters.kubernetes.facts import Workload, pod_facts, workload
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot
from vllm_chill.core.startup import PodFacts, missing, observation
from vllm_chill.core.target import Endpoint, Observation, TargetRef
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable
from vllm_chill.ports import Observer

SEEN_SECONDS = 10.0
_NUDGE_SECONDS = 2.0


class KubernetesBackend:
    """Deployments as scale targets, whose Service is `endpoint`; credentials need only what deploy/rbac.yaml grants.

    `pace` is that of the watches; `seen_seconds` how long a write may take to come back through the watch.
    """

    def __init__(
        self, api: ApiClient, endpoint: Endpoint, *, pace: Pace | None = None, seen_seconds: float = SEEN_SECONDS
    ) -> None:
        self._api = api
        self._endpoint = endpoint
        self._pace = pace or Pace()
        self._seen_seconds = seen_seconds
        self._views: dict[TargetRef, _View] = {}

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        view = _View(self._api, ref, self._endpoint, self._pace, observer)
        self._views[ref] = view
        try:
            await view.follow()
        finally:
            del self._views[ref]

    async def scale(self, ref: TargetRef, replicas: int) -> None:
        try:
            answer = await self._api.call(
                "PATCH", f"{_deployments(ref)}/{quote(ref.name)}/scale", body={"spec": {"replicas": replicas}}
            )
        except ApiError as error:
            raise _refusal(ref, error) from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error
        view = self._views.get(ref)
        if view is not None:
            await self._seen(view, int(answer["metadata"]["resourceVersion"]))

    async def _seen(self, view: _View, version: int) -> None:
        try:
            async with asyncio.timeout(self._seen_seconds):
                try:
                    async with asyncio.timeout(min(_NUDGE_SECONDS, self._seen_seconds / 2)):
                        await view.until(version)
                except TimeoutError:
                    # The write came through and the watch is silent: its connection may be dead without a word.
                    view.relist()
                    await view.until(version)
        except TimeoutError as error:
            raise BackendUnavailable(
                f"Deployment {view.ref} took the write, and it was not seen in the watch "
                f"within {self._seen_seconds:g} s"
            ) from error


class _View:
    """What one watch knows of one Deployment. Invariant: all up to `_version` has been told to the observer.

    `_workload` and `_pods` are None while they are not seen; `_workload` is False for a Deployment that is not there.
    """

    def __init__(self, api: ApiClient, ref: TargetRef, endpoint: Endpoint, pace: Pace, observer: Observer) -> None:
        self.ref = ref
        self._api = api
        self._endpoint = endpoint
        self._pace = pace
        self._observer = observer
        self._deployments = ListWatch(
            api, _deployments(ref), {"fieldSelector": f"metadata.name={ref.name}"}, workload, pace
        )
        self._seen: Snapshot[Workload] | None = None
        self._selector: str | None = None
        self._pod_watch: ListWatch[PodFacts] | None = None
        self._pods: Snapshot[PodFacts] | None = None
        self._following: asyncio.Task[None] | None = None
        self._told: Observation | str | None = None
        self._version = 0
        self._advanced = asyncio.Event()

    async def follow(self) -> None:
        """Follow the Deployment, and the pods of its selector as that is now, until cancelled."""
        async with asyncio.TaskGroup() as tasks, aclosing(self._deployments.steps()) as steps:
            async for step in steps:
                match step:
                    case Outage(cause):
                        self._seen = None
                        self._lost(cause)
                    case Snapshot():
                        self._seen = step
                        self._follow_pods(tasks)
                        self._tell()

    async def until(self, version: int) -> None:
        """Wait until the observer has been told all up to this version."""
        while self._version < version:
            self._advanced.clear()
            await self._advanced.wait()

    def relist(self) -> None:
        """Look again, now."""
        self._deployments.relist()
        if self._pod_watch is not None:
            self._pod_watch.relist()

    def _follow_pods(self, tasks: asyncio.TaskGroup) -> None:
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
            self._pod_watch, self._following = pods, tasks.create_task(self._pods_of(pods))

    async def _pods_of(self, pods: ListWatch[PodFacts]) -> None:
        async with aclosing(pods.steps()) as steps:
            async for step in steps:
                match step:
                    case Outage(cause):
                        self._pods = None
                        self._lost(cause)
                    case Snapshot():
                        self._pods = step
                        self._tell()

    def _own_pod(self, item: Json) -> PodFacts | None:
        return pod_facts(item, self.ref.name)

    def _workload(self) -> Workload | None:
        return self._seen.objects.get(self.ref.name) if self._seen is not None else None

    def _tell(self) -> None:
        if self._seen is None:
            return
        found = self._workload()
        if found is not None and self._pods is None:
            return
        pods = self._pods.objects.values() if self._pods is not None else ()
        now = observation(self.ref, found.facts if found is not None else None, pods, self._endpoint)
        if now != self._told:
            self._told = now
            self._observer.observed(now)
        self._version = self._seen.version
        self._advanced.set()

    def _lost(self, cause: str) -> None:
        if cause != self._told:
            self._told = cause
            self._observer.lost(cause)


def _deployments(ref: TargetRef) -> str:
    return f"/apis/apps/v1/namespaces/{quote(ref.namespace)}/deployments"


def _refusal(ref: TargetRef, error: ApiError) -> BackendError:
    said = error.message.rstrip(".")
    match error.status:
        case 401:
            return BackendRefused(
                f"the API server does not accept the credentials: {said}; log in again, or renew them"
            )
        case 403:
            return BackendRefused(
                f"Deployment {ref} may not be scaled: {said}; "
                'grant the verb "patch" on "deployments/scale" (deploy/rbac.yaml has the Role)'
            )
        case 404:
            return BackendRefused(missing(ref))
        case 409 | 408 | 429:
            return BackendUnavailable(f"Deployment {ref} could not be scaled just now: {said}; try again")
        case status if status >= 500:
            return BackendUnavailable(f"the API server could not scale Deployment {ref} ({status}): {said}; try again")
        case status:
            return BackendRefused(f"the API server refuses to scale Deployment {ref} ({status}): {said}")
