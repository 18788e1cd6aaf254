"""Variants on a stage: objects and pods in memory, engines that say what they are told to, on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import generate_latest

from tests.control.policy_stage import Kinds
from tests.core.saturation.cluster_objects import NAMESPACE, owned, pod, workload
from vllm_chill.adapters.memory_objects import MemoryObjects
from vllm_chill.control.loads import LoadCollector
from vllm_chill.control.reconciler import Rhythm
from vllm_chill.control.variant_configs import VariantConfigs
from vllm_chill.control.variant_sources import variants_of
from vllm_chill.control.variant_view import VariantView
from vllm_chill.control.variants import VariantOptions, Variants
from vllm_chill.core.objects import Collection, Json
from vllm_chill.core.saturation.places import EngineLoad, LoadReading, PodPlace
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import BackendUnavailable
from vllm_chill.telemetry.variant_metrics import ControllerMetrics

VARIANTS = variants_of(NAMESPACE)
DEPLOYMENTS = Collection("apps/v1", "Deployment", "deployments", NAMESPACE)
SETS = Collection("apps/v1", "ReplicaSet", "replicasets", NAMESPACE)
PODS = Collection("v1", "Pod", "pods", NAMESPACE)
CONFIGS = Collection("v1", "ConfigMap", "configmaps", NAMESPACE)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
QUICK = {"scaleDownStabilization": "60s", "scaleDownPeriod": "30s"}


@dataclass
class Engines:
    """ports.LoadSource. `loads` are by the Deployment whose pods they are; `away` is why nothing can be asked."""

    loads: dict[str, EngineLoad] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    away: str | None = None
    asked: int = 0

    async def read(self, namespace: str, pods: Sequence[PodPlace]) -> LoadReading:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.away is not None:
            raise BackendUnavailable(self.away)
        told = {place.name: self.loads.get(place.name.rpartition("-5d-")[0]) for place in pods}
        return LoadReading({name: load for name, load in told.items() if load is not None}, self.held)


@dataclass
class Actuated:
    """control.variants.Actuator that does at once what it is told, on the objects."""

    stage: Stage
    told: list[tuple[str, int]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    hindered: str | None = None

    def have(self, ref: TargetRef, replicas: int) -> str | None:
        if not self.told or self.told[-1] != (ref.name, replicas):
            self.told.append((ref.name, replicas))
        if self.hindered is None:
            self.stage.scale(ref.name, replicas)
        return self.hindered

    def leave(self, ref: TargetRef) -> None:
        self.left.append(ref.name)


@dataclass
class Stage:
    """A cluster in memory with a controller of variants."""

    store: MemoryObjects
    engines: Engines
    metrics: ControllerMetrics
    actuated: Actuated = field(init=False)

    def __post_init__(self) -> None:
        self.actuated = Actuated(self)

    def deploy(self, name: str, replicas: int, *, gpus: int = 1) -> None:
        """A Deployment, all of whose replicas are ready."""
        item = workload(name, replicas=0, gpus=gpus)
        uid = self.store.create(DEPLOYMENTS, item)["metadata"]["uid"]
        meta = {"name": f"{name}-5d", "namespace": NAMESPACE, "ownerReferences": owned("Deployment", name, uid)}
        self.store.create(SETS, {"metadata": meta})
        self.scale(name, replicas)

    def scale(self, name: str, replicas: int) -> None:
        """Have so many replicas, all ready."""
        self.store.change(
            DEPLOYMENTS,
            name,
            {"spec": {"replicas": replicas}, "status": {"replicas": replicas, "readyReplicas": replicas}},
        )
        there = [i for i in range(99) if self.store.read(PODS, f"{name}-5d-{i}") is not None]
        for i in there:
            if i >= replicas:
                self.store.remove(PODS, f"{name}-5d-{i}")
        owner = self.store.read(SETS, f"{name}-5d")
        assert owner is not None
        for i in range(replicas):
            if i not in there:
                of = owned("ReplicaSet", f"{name}-5d", owner["metadata"]["uid"])
                self.store.create(PODS, pod(f"{name}-5d-{i}", of, address=f"10.0.{len(name)}.{i + 1}"))

    def variant(self, name: str, model: str = "llama", **spec: Any) -> None:
        """A variant of the Deployment of its name."""
        given = {"scaleTargetRef": {"kind": "Deployment", "name": name}, "modelID": model, **spec}
        meta = {"name": name, "namespace": NAMESPACE, "labels": {"inference.optimization/acceleratorName": "H100"}}
        self.store.create(VARIANTS, {"metadata": meta, "spec": given})

    def one(self, replicas: int, load: EngineLoad, **spec: Any) -> None:
        """A Deployment called one, with a variant, whose engines say this."""
        self.deploy("one", replicas)
        self.variant("one", **spec)
        self.engines.loads = {"one": load}

    def config(self, **keys: object) -> None:
        """The controller's saturation-scaling-config."""
        text = "\n".join(f"{key}: {value}" for key, value in keys.items())
        name = "saturation-scaling-config"
        if self.store.read(CONFIGS, name) is None:
            meta = {"name": name, "namespace": NAMESPACE}
            self.store.create(CONFIGS, {"metadata": meta, "data": {"default": text}})
        else:
            self.store.change(CONFIGS, name, {"data": {"default": text}})

    def status(self, name: str) -> Json:
        """What its object says."""
        item = self.store.read(VARIANTS, name)
        assert item is not None
        return item.get("status") or {}

    def wanted(self, name: str) -> int | None:
        """How many replicas its object says that it is to have."""
        found: int | None = (self.status(name).get("desiredOptimizedAlloc") or {}).get("numReplicas")
        return found

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """One condition: status, reason, message."""
        found: Mapping[str, str] = next(one for one in self.status(name)["conditions"] if one["type"] == kind)
        return found["status"], found["reason"], found.get("message", "")

    def series(self, name: str) -> dict[str, float]:
        """What is told in metrics of variants, by `variant`."""
        text = generate_latest(self.metrics.registry).decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(f"{name}{{"))
        return {labels.partition('variant="')[2].partition('"')[0]: float(value) for labels, _, value in lines}


@asynccontextmanager
async def controlling(
    *, interval: float = 30.0, direct: bool = False, instance: str = "", stage: Stage | None = None
) -> AsyncIterator[Stage]:
    """A controller that runs. With `stage` it is another one on the same cluster."""
    if stage is None:
        stage = Stage(MemoryObjects(), Engines(), ControllerMetrics("1", instance))
    now = asyncio.get_running_loop().time
    begun = now()
    configs = VariantConfigs(stage.store, NAMESPACE)
    variants = Variants(
        stage.store,
        VariantView(stage.store, Kinds(), NAMESPACE, inventory=False),
        LoadCollector(stage.engines, now=now, ttl_seconds=interval / 2),
        configs,
        stage.metrics,
        options=VariantOptions(NAMESPACE, instance, interval, 4, direct),
        wall=lambda: NOON + timedelta(seconds=now() - begun),
        actuator=stage.actuated,
        rhythm=Rhythm(0.5, 5.0, 600.0),
    )

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(configs.run())
            tasks.create_task(variants.run())

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    try:
        yield stage
        if running.done():
            running.result()
    finally:
        running.cancel()
        await asyncio.wait([running])
