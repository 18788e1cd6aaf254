"""VLLMModel objects on a real cluster, and a catalogue that follows them, as a proxy does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tests.cluster.cluster import IMAGE, Cluster
from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError
from vllm_chill.adapters.kubernetes.credentials import find
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.objects import KubernetesObjects, path_of
from vllm_chill.adapters.kubernetes.watch import ListWatch, Pace, Snapshot
from vllm_chill.api import crd as crds
from vllm_chill.api.crd import Definition, crd
from vllm_chill.api.workload import WorkloadDefaults, workload_name
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.lease import Lease
from vllm_chill.control.models import MODELS, ModelReconciler
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.objects import Json
from vllm_chill.core.target import Endpoint, Limits, Target

QUICK = Pace(watch_seconds=30, pause_first_seconds=0.1, pause_most_seconds=0.5)
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_MODELS = path_of(MODELS)
_EVENTS = "/api/v1/namespaces/default/events"  # where those about what is cluster-wide are


async def install_crd(api: ApiClient, of: Definition = crds.MODELS) -> None:
    """Have the cluster know models, or another kind; back when it does."""
    query = {"fieldManager": "tests", "force": "true"}
    await api.call("PATCH", f"{_CRDS}/{of.name}", query=query, body=crd(of), patch="apply")
    async with asyncio.timeout(20):
        while True:
            try:
                await api.call("GET", f"/apis/{of.kind.api_version}/{of.kind.plural}")
            except ApiError:
                await asyncio.sleep(0.05)
            else:
                return


async def remove_crd(api: ApiClient) -> None:
    """Have the cluster know no models; back when it does not."""
    await api.call("DELETE", f"{_CRDS}/{crds.MODELS.name}")
    async with asyncio.timeout(20):
        while True:
            try:
                await api.call("GET", _MODELS)
            except ApiError:
                return
            await asyncio.sleep(0.05)


def model(name: str, *, load_seconds: float = 0.5, **spec: Any) -> Json:
    """A model's object that runs the stub."""
    env = [{"name": "STUB_LOAD_SECONDS", "value": f"{load_seconds}"}]
    return {
        "apiVersion": MODELS.api_version,
        "kind": MODELS.kind,
        "metadata": {"name": name},
        "spec": {
            "modelName": f"test/{name}",
            "servedModelName": name,
            "image": IMAGE,
            "env": env,
            "terminationGracePeriodSeconds": 2,
            "probes": {"readiness": {"periodSeconds": 1}},
            **spec,
        },
    }


class Models:
    """The models of a cluster, and hands to do with them what users do. The names of a test's models end in its
    namespace's, as models are the whole cluster's.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.created: list[str] = []

    def name(self, short: str) -> str:
        return f"{short}-{self.cluster.namespace.rpartition('-')[2]}"

    async def create(self, item: Json) -> Json:
        made = await self.api.call("POST", _MODELS, body=item)
        self.created.append(item["metadata"]["name"])
        return made

    async def read(self, name: str) -> Json:
        return await self.api.call("GET", f"{_MODELS}/{name}")

    async def change(self, name: str, change: Json) -> None:
        await self.cluster.patch(f"{_MODELS}/{name}", change)

    async def delete(self, name: str) -> None:
        await self.cluster.delete(f"{_MODELS}/{name}")

    async def is_gone(self, name: str) -> bool:
        try:
            await self.read(name)
        except ApiError as error:
            return error.status == 404
        return False

    async def until(self, name: str, holds: Callable[[Json | None], bool], seconds: float = 30) -> Json | None:
        """Wait until a model (None: it is gone) is such that `holds` is true."""
        watch: ListWatch[Json] = ListWatch(self.api, _MODELS, {}, lambda item: item, QUICK)
        async with asyncio.timeout(seconds), aclosing(watch.steps()) as steps:
            async for step in steps:
                if isinstance(step, Snapshot) and holds(step.objects.get(name)):
                    return step.objects.get(name)
        raise AssertionError("a watch does not end by itself")

    async def until_phase(self, name: str, phase: str) -> Json:
        item = await self.until(name, lambda item: item is not None and item.get("status", {}).get("phase") == phase)
        assert item is not None
        return item

    async def until_condition(self, name: str, kind: str, status: str, reason: str) -> Json:
        item = await self.until(name, lambda item: item is not None and condition(item, kind) == (status, reason))
        assert item is not None
        return item

    async def columns(self, name: str) -> dict[str, str]:
        """What `kubectl get vm NAME` shows."""
        table = await table_of(self.cluster.kubeconfig, f"{_MODELS}/{name}")
        [row] = table["rows"]
        return dict(zip((column["name"] for column in table["columnDefinitions"]), row["cells"], strict=True))

    async def events(self, name: str) -> list[tuple[str, str]]:
        """The reason and message of each event about a model."""
        listing = await self.api.call("GET", _EVENTS)
        return _about(name, listing["items"])

    async def until_said(self, name: str, reason: str, times: int = 1) -> list[str]:
        """Wait until so many events with a reason are about a model; their messages."""
        watch: ListWatch[Json] = ListWatch(self.api, _EVENTS, {}, lambda item: item, QUICK)
        async with asyncio.timeout(30), aclosing(watch.steps()) as steps:
            async for step in steps:
                if isinstance(step, Snapshot):
                    said = [message for why, message in _about(name, step.objects.values()) if why == reason]
                    if len(said) >= times:
                        return said
        raise AssertionError("a watch does not end by itself")

    async def deployment(self, name: str) -> Json:
        return await self.cluster.deployment(workload_name(name))

    async def until_deployment(self, name: str, holds: Callable[[Json | None], bool], seconds: float = 30) -> None:
        wanted = workload_name(name)

        def found(items: list[Json]) -> bool:
            return holds(next((item for item in items if item["metadata"]["name"] == wanted), None))

        await self.cluster.until("/apis/apps/v1", "deployments", found, seconds=seconds)

    async def pods(self, name: str) -> list[Json]:
        path = f"/api/v1/namespaces/{self.cluster.namespace}/pods"
        listing = await self.api.call("GET", path, query={"labelSelector": f"app.kubernetes.io/instance={name}"})
        return list(listing["items"])

    async def clean(self) -> None:
        """Remove what a test has left."""
        for name in self.created:
            if not await self.is_gone(name):
                await self.cluster.patch(f"{_MODELS}/{name}", {"metadata": {"finalizers": None}})
                await self.delete(name)


async def table_of(kubeconfig: Path, path: str) -> Json:
    """An object as kubectl asks for it: as a table."""
    access = await find(str(kubeconfig)).load()
    headers = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(access.server + path, ssl=access.tls, headers=headers) as response,
    ):
        table: Json = await response.json()
        return table


def _about(name: str, events: Iterable[Json]) -> list[tuple[str, str]]:
    return [(event["reason"], event["message"]) for event in events if event["involvedObject"]["name"] == name]


def condition(item: Json, kind: str) -> tuple[str, str] | None:
    conditions = item.get("status", {}).get("conditions", [])
    return next(((each["status"], each["reason"]) for each in conditions if each["type"] == kind), None)


class _Nobody:
    """A recorder that tells of each change."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told

    def changed(self, before: Target, after: Target, now: float) -> None:
        self._told()

    def progressed(self, target: Target, now: float) -> None:
        self._told()

    def answered(self, now: float) -> None: ...
    def departed(self, endpoint: Endpoint) -> None: ...
    def held(self, seconds: float) -> None: ...
    def scaled(self, target: Target, replicas: int, error: str | None) -> None: ...


@dataclass
class Following:
    """A proxy's catalogue: ports.CatalogueObserver with a controller for each model."""

    api: ApiClient
    idle_seconds: float
    models: ModelReconciler | None = None
    controllers: dict[str, ScaleController] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def catalogued(self, entries: Sequence[ModelEntry]) -> None:
        there = {entry.name: entry for entry in entries}
        for name in self.controllers.keys() - there.keys():
            self.controllers[name].retire(f'The model "{name}" was deleted.')
        for name, entry in there.items():
            if name not in self.controllers:
                self._begin(name, entry)
        self._changed.set()

    def _begin(self, name: str, entry: ModelEntry) -> None:
        assert self.models is not None
        backend = KubernetesBackend(self.api, Endpoint(f"{entry.ref.name}.{entry.ref.namespace}", 80), pace=QUICK)
        limits = Limits(entry.idle_seconds or self.idle_seconds, 1800)
        changed = partial(self.models.changed, name)
        self.controllers[name] = controller = ScaleController(entry.ref, limits, backend, _Nobody(changed))
        self.tasks.append(asyncio.create_task(controller.run()))

    def lost(self, cause: str) -> None:
        self.losses.append(cause)
        self._changed.set()

    async def lease(self, name: str) -> Lease:
        """A lease on a model, which may not be there yet."""
        await self.until(lambda: name in self.controllers)
        return await self.controllers[name].lease(60)

    async def until(self, holds: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until what has been told is such that `holds` is true."""
        async with asyncio.timeout(seconds):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def following(
    cluster: Cluster, api: ApiClient | None = None, *, idle_seconds: float = 300, grace_seconds: float = 30
) -> AsyncIterator[Following]:
    """Follow the models, as a proxy does."""
    api = api or cluster.api
    follows = Following(api, idle_seconds)
    follows.models = ModelReconciler(
        KubernetesObjects(api, QUICK),
        follows,
        follows.controllers.get,
        namespace=cluster.namespace,
        defaults=WorkloadDefaults(gpu_count=1),
        grace_seconds=grace_seconds,
    )
    running = asyncio.create_task(follows.models.run())
    try:
        yield follows
        assert not running.done(), running.exception()
    finally:
        tasks = (running, *follows.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
