"""Scaling policies on a stage: objects and Deployments in memory, and controllers that scale those on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.control.model_stage import DEPLOYMENTS, NAMESPACE, ObjectsBackend
from tests.control.nobody import Nobody
from tests.control.scaling_stage import Clock, Load
from vllm_chill.adapters.memory_objects import MemoryObjects, Said
from vllm_chill.control.autoscaler import Autoscaler, Autoscalers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.policies import OwnTarget, Policies, autoscalers_of
from vllm_chill.control.policy_sources import objects_of, policies_of
from vllm_chill.control.reconciler import Rhythm
from vllm_chill.control.unserved import UnservedBackend, unserved
from vllm_chill.core.objects import Json
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.target import STATEFUL_SETS, Limits, Resource, TargetRef
from vllm_chill.errors import BackendRefused

POLICIES = policies_of(NAMESPACE)
SCALED_OBJECTS, HPAS = autoscalers_of(NAMESPACE)
POLL = 15.0


class Kinds:
    """ports.Kinds with what `known` has."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Resource] = {}
        self.asked = 0

    async def find(self, api_version: str, kind: str) -> Resource:
        self.asked += 1
        await asyncio.sleep(0)
        found = self.known.get((api_version, kind))
        if found is None:
            raise BackendRefused(f"the API server does not know the kind {kind} of {api_version}")
        return found


@dataclass
class Targets:
    """control.policies.ScaleTargets. `models` are the names that models are served by, and their targets."""

    store: MemoryObjects
    known: bool = True
    models: dict[str, str] = field(default_factory=dict)
    own: dict[str, Policy] = field(default_factory=dict)
    made: list[TargetRef] = field(default_factory=list)
    loads: dict[str, Load] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def served(self, model: str) -> str | None:
        return self.models.get(model)

    def own_policy(self, name: str) -> Policy | None:
        return self.own.get(name)

    def controller(self, ref: TargetRef, name: str, *, served: bool = True) -> ScaleController:
        limits, backend = Limits(300, 1800, drain_seconds=0.0), ObjectsBackend(self.store, start_seconds=1.0)
        if served:
            controller = ScaleController(ref, limits, backend, Nobody())
        else:
            controller = ScaleController(ref, unserved(limits), UnservedBackend(backend), Nobody())
        self.loads[name] = Load(controller)
        return controller

    def make_target(self, ref: TargetRef) -> OwnTarget:
        self.made.append(ref)
        name = str(ref)
        controller = self.controller(ref, name, served=False)

        async def run() -> None:
            self.running.add(name)
            try:
                await controller.run()
            finally:
                self.running.discard(name)

        return OwnTarget(name, controller, self.loads[name], run)


@dataclass
class PolicyStage:
    """What tests have in hand."""

    store: MemoryObjects
    targets: Targets
    scalers: Autoscalers
    kinds: Kinds
    policies: Policies

    def item(self, name: str = "example") -> Json:
        item = self.store.read(POLICIES, name)
        assert item is not None
        return item

    def status(self, name: str = "example") -> Json:
        status: Json = self.item(name).get("status") or {}
        return status

    def condition(self, kind: str, name: str = "example") -> tuple[str, str]:
        return next((c["status"], c["reason"]) for c in self.status(name)["conditions"] if c["type"] == kind)

    def message(self, kind: str, name: str = "example") -> str:
        return str(next(c["message"] for c in self.status(name)["conditions"] if c["type"] == kind))

    def replicas(self, name: str = "vllm") -> int:
        item = self.store.read(DEPLOYMENTS, name)
        assert item is not None
        return int(item["spec"]["replicas"])

    def load(self, name: str = f"{NAMESPACE}/vllm") -> Load:
        return self.targets.loads[name]

    def scaler(self, name: str = f"{NAMESPACE}/vllm") -> Autoscaler:
        return self.scalers[name]

    def change(self, change: Json, name: str = "example") -> None:
        """Change a policy, as a user would."""
        self.store.change(POLICIES, name, change)

    def said(self, reason: str, name: str = "example") -> list[Said]:
        return [said for said in self.store.said if said.reason == reason and said.about == name]

    def statuses(self, name: str = "example") -> int:
        """How often the status of a policy was written."""
        return self.store.writes.count(("status", name))


def policy_object(name: str = "example", target: str = "vllm", *, kind: str = "Deployment", **spec: Any) -> Json:
    """A policy's object: one replica for each 10 requests in a queue, from 1 to 10, and down as soon as it may."""
    api_versions = {"Deployment": "apps/v1", "VLLMModel": "vllm.sir-alfred.io/v1alpha1"}
    return {
        "apiVersion": POLICIES.api_version,
        "kind": POLICIES.kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"kind": kind, "name": target, "apiVersion": api_versions.get(kind, "example.com/v1")},
            "minReplicas": 1,
            "maxReplicas": 10,
            "scalingRules": [{"metric": "queue_length", "threshold": 10}],
            "behavior": {
                "scaleDown": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
                }
            },
            **spec,
        },
    }


def deployment(name: str = "vllm", replicas: int = 1, annotations: Mapping[str, str] | None = None) -> Json:
    """A Deployment's object."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": dict(annotations or {})},
        "spec": {"replicas": replicas, "template": {}},
    }


def hpa(target: str = "vllm", name: str = "other") -> Json:
    """A HorizontalPodAutoscaler of a Deployment."""
    return {
        "apiVersion": HPAS.api_version,
        "kind": HPAS.kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}, "maxReplicas": 3},
    }


@asynccontextmanager
async def staged(
    *items: Json,
    store: MemoryObjects | None = None,
    served: Mapping[str, str] | None = None,
    own: Mapping[str, Policy] | None = None,
) -> AsyncIterator[PolicyStage]:
    """A stage on which these objects are; it has settled. `served` are the targets that requests go to, and their
    Deployments; `own` what their models say of their replicas.
    """
    store = store or MemoryObjects()
    stateful_sets = objects_of(STATEFUL_SETS, NAMESPACE)
    collections = {c.kind: c for c in (POLICIES, DEPLOYMENTS, stateful_sets, HPAS, SCALED_OBJECTS)}
    for item in items:
        store.create(collections[item["kind"]], item)
    targets, scalers, kinds = Targets(store, own=dict(own or {})), Autoscalers(), Kinds()
    policies = Policies(
        store, scalers, namespace=NAMESPACE, kinds=kinds, targets=targets, rhythm=Rhythm(0.1, 1.0), wall=Clock()
    )
    tasks = [asyncio.create_task(policies.run())]
    for name, target in (served or {}).items():
        controller = targets.controller(TargetRef(NAMESPACE, target), name)
        scaler = Autoscaler(name, controller, targets.loads[name], wall=Clock())
        targets.models[name] = name
        scalers.add(scaler)
        tasks += [asyncio.create_task(controller.run()), asyncio.create_task(scaler.run())]
    await asyncio.sleep(5)
    try:
        yield PolicyStage(store, targets, scalers, kinds, policies)
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
