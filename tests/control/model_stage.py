"""A catalogue on a stage: model objects and workloads in memory, and controllers that scale those on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.control.nobody import Nobody
from vllm_chill.adapters.memory_objects import MemoryObjects, Said
from vllm_chill.api.workload import WorkloadDefaults, workload_name
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.lease import Lease
from vllm_chill.control.models import MODELS, ModelReconciler
from vllm_chill.control.reconciler import Rhythm
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.objects import Collection, Json
from vllm_chill.core.target import Endpoint, Limits, Observation, TargetRef
from vllm_chill.ports import Observer

NAMESPACE = "ai-apps"
DEPLOYMENTS = Collection("apps/v1", "Deployment", "deployments", NAMESPACE)
SERVICES = Collection("v1", "Service", "services", NAMESPACE)
GRACE_SECONDS = 100.0
_HERE = Endpoint("127.0.0.1", 8000)


class ObjectsBackend:
    """Deployments in memory as scale targets; one is ready `start_seconds` after its replicas are asked for, and gone
    `stop_seconds` after they are taken back.
    """

    def __init__(self, store: MemoryObjects, start_seconds: float = 10.0, stop_seconds: float = 1.0) -> None:
        self._store = store
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self.scales: list[tuple[str, int]] = []

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        await self._store.watch(DEPLOYMENTS, _Pods(ref, observer, self._start_seconds, self._stop_seconds))

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        await asyncio.sleep(0)
        self.scales.append((ref.name, replicas))
        self._store.change(DEPLOYMENTS, ref.name, {"spec": {"replicas": replicas}})

    async def catch_up(self, ref: TargetRef) -> None: ...


class _Pods:
    def __init__(self, ref: TargetRef, observer: Observer, start_seconds: float, stop_seconds: float) -> None:
        self._ref = ref
        self._observer = observer
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._seen: Observation | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._template: object = None

    def seen(self, objects: Mapping[str, Json]) -> None:
        item = objects.get(self._ref.name)
        if item is None:
            self._tell(Observation(0, 0, failure="it is not there"))
            return
        replicas, template = item["spec"]["replicas"], item["spec"]["template"]
        if self._seen is not None and self._seen.replicas == replicas and template == self._template:
            return
        # A pod that was there before the watch is ready at once, as one is that runs when a proxy starts.
        first = self._seen is None
        self._template = template
        if self._timer is not None:
            self._timer.cancel()
        if replicas and first:
            self._ready(replicas)
        elif replicas:
            self._tell(Observation(replicas, replicas))
            self._timer = asyncio.get_running_loop().call_later(self._start_seconds, self._ready, replicas)
        else:
            self._tell(Observation(0, self._seen.live if self._seen is not None else 0))
            self._timer = asyncio.get_running_loop().call_later(self._stop_seconds, self._tell, Observation(0, 0))

    def lost(self, cause: str) -> None:
        self._observer.lost(cause)

    def _ready(self, replicas: int) -> None:
        self._tell(Observation(replicas, replicas, (_HERE,), serving=frozenset({"pod"})))

    def _tell(self, seen: Observation) -> None:
        self._seen = seen
        self._observer.observed(seen)


@dataclass
class Served:
    """ports.CatalogueObserver that has a controller for each model; one whose model is gone is retired."""

    backend: ObjectsBackend
    told: list[tuple[ModelEntry, ...]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    controllers: dict[str, ScaleController] = field(default_factory=dict)
    models: ModelReconciler | None = None
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def catalogued(self, entries: Sequence[ModelEntry]) -> None:
        self.told.append(tuple(entries))
        there = {entry.name: entry for entry in entries}
        for name in self.controllers.keys() - there.keys():
            self.controllers[name].retire(f'The model "{name}" was deleted.')
        for name, entry in there.items():
            if name not in self.controllers:
                self._begin(name, entry)

    def _begin(self, name: str, entry: ModelEntry) -> None:
        limits = Limits(entry.idle_seconds or 300, 1800)
        controller = self.controllers[name] = ScaleController(entry.ref, limits, self.backend, Nobody())
        assert self.models is not None
        models = self.models
        controller.on_change = lambda: models.changed(name)
        self.tasks[name] = asyncio.create_task(controller.run())

    def lost(self, cause: str) -> None:
        self.losses.append(cause)

    @property
    def names(self) -> list[str]:
        """The models of the catalogue as it was told last."""
        return [entry.name for entry in self.told[-1]] if self.told else []


@dataclass
class ModelStage:
    """What tests have in hand."""

    store: MemoryObjects
    served: Served
    models: ModelReconciler

    def status(self, name: str = "qwen") -> Json:
        item = self.store.read(MODELS, name)
        assert item is not None
        status: Json = item.get("status") or {}
        return status

    def condition(self, kind: str, name: str = "qwen") -> tuple[str, str]:
        return next((c["status"], c["reason"]) for c in self.status(name)["conditions"] if c["type"] == kind)

    def deployment(self, name: str = "qwen") -> Json | None:
        return self.store.read(DEPLOYMENTS, workload_name(name))

    def there(self, name: str = "qwen") -> Json:
        item = self.deployment(name)
        assert item is not None
        return item

    def service(self, name: str = "qwen") -> Json | None:
        return self.store.read(SERVICES, workload_name(name))

    def args(self, name: str = "qwen") -> list[str]:
        args: list[str] = self.there(name)["spec"]["template"]["spec"]["containers"][0]["args"]
        return args

    def controller(self, name: str = "qwen") -> ScaleController:
        return self.served.controllers[name]

    async def lease(self, name: str = "qwen") -> Lease:
        return await self.controller(name).lease(120)

    def change(self, change: Json, name: str = "qwen") -> None:
        """Change a model, as a user would."""
        self.store.change(MODELS, name, change)

    def said(self, reason: str, name: str = "qwen") -> list[Said]:
        return [said for said in self.store.said if said.reason == reason and said.about == name]


def model(name: str = "qwen", **spec: Any) -> Json:
    """A model's object, as a user has it."""
    return {
        "apiVersion": MODELS.api_version,
        "kind": MODELS.kind,
        "metadata": {"name": name},
        "spec": {"modelName": f"test/{name}", "servedModelName": name, **spec},
    }


@asynccontextmanager
async def staged(*items: Json, store: MemoryObjects | None = None) -> AsyncIterator[ModelStage]:
    """A stage on which these models are; it has settled."""
    store = store or MemoryObjects()
    for item in items:
        store.create(MODELS, item)
    served = Served(ObjectsBackend(store))
    models = ModelReconciler(
        store,
        served,
        served.controllers.get,
        namespace=NAMESPACE,
        defaults=WorkloadDefaults(),
        grace_seconds=GRACE_SECONDS,
        rhythm=Rhythm(0.1, 1.0),
        wall_clock=asyncio.get_running_loop().time,
    )
    served.models = models
    running = asyncio.create_task(models.run())
    await asyncio.sleep(5)
    try:
        yield ModelStage(store, served, models)
        assert not running.done()
    finally:
        tasks = (running, *served.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
