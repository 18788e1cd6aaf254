"""Two ways to serve one model on a real cluster, callers of it, and what is told of them while they come and go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.cluster.cluster import Cluster, deployment
from tests.cluster.models import condition, install_crd
from tests.cluster.pods import is_ready
from tests.cluster.serving import CHAT, caller, question
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Snapshot
from vllm_chill.api import crd as crds
from vllm_chill.api.kinds import VARIANT
from vllm_chill.core.objects import Json

MODEL = "stub"
SEATS = 10
TOKENS = 50  # a second's worth


class Variants:
    """The variants of the model in a namespace. `told` has each number of replicas that a status said was wanted, by
    the variant's name, with when it was seen first; one that a later one hid is not lost, as every write is seen.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.path = f"/apis/{VARIANT.api_version}/namespaces/{cluster.namespace}/{VARIANT.plural}"
        self.told: dict[str, list[tuple[float, int]]] = {}
        self._seen: dict[str, Json] = {}
        self._changed = asyncio.Event()

    async def create(
        self, name: str, cost: float, *, replicas: int = 0, gpus: int = 0, load_seconds: float = 1, **spec: Any
    ) -> Json:
        """A Deployment of this name, which is returned, and a variant that has it scaled."""
        made = deployment(name, replicas, {"STUB_LOAD_SECONDS": f"{load_seconds}"})
        [container] = made["spec"]["template"]["spec"]["containers"]
        container["args"] = ["--model", MODEL, "--max-num-seqs", str(SEATS)]
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
        made["spec"]["strategy"] = {"type": "RollingUpdate"}
        await self.cluster.create(made)
        labels = {"inference.optimization/acceleratorName": f"GPU-{name}"}
        reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        wanted = {"scaleTargetRef": reference, "modelID": MODEL, "variantCost": f"{cost}", **spec}
        body = {
            "apiVersion": VARIANT.api_version,
            "kind": VARIANT.kind,
            "metadata": {"name": name, "labels": labels},
            "spec": wanted,
        }
        await self.cluster.api.call("POST", self.path, body=body)
        return made

    async def configure(self, name: str, **data: str) -> None:
        """One of the controller's ConfigMaps."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        await self.cluster.create(body)

    async def change(self, name: str, change: Json) -> None:
        """Change a variant's object, as `kubectl patch --type merge` does."""
        await self.cluster.patch(f"{self.path}/{name}", change)

    async def watch(self) -> None:
        """Take everything that is told of them, until cancelled."""
        watch: ListWatch[Json] = ListWatch(self.cluster.api, self.path, {}, lambda item: item)
        async with aclosing(watch.steps()) as steps:
            async for step in steps:
                match step:
                    case Snapshot():
                        self._take(dict(step.objects))
                    case Outage():
                        pass

    def _take(self, objects: dict[str, Json]) -> None:
        self._seen = objects
        for name, item in objects.items():
            wanted = desired(item)
            told = self.told.setdefault(name, [])
            if wanted is not None and (not told or told[-1][1] != wanted):
                told.append((time.monotonic(), wanted))
        self._changed.set()

    def numbers(self, name: str) -> list[int]:
        """Each number that was wanted, in order."""
        return [number for _, number in self.told.get(name, [])]

    def seen(self, name: str) -> Json:
        """The object as it was seen last."""
        return self._seen[name]

    def status(self, name: str) -> Json:
        """Its status."""
        return dict(self.seen(name).get("status") or {})

    async def until(self, name: str, holds: Callable[[Json], bool], seconds: float = 30) -> float:
        """When the object is such that `holds` is true, once it is."""
        try:
            async with asyncio.timeout(seconds):
                while name not in self._seen or not holds(self._seen[name]):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{name} is not so after {seconds:g} s: {self._seen.get(name)}") from None
        return time.monotonic()

    async def until_desired(self, name: str, number: int, seconds: float = 30) -> float:
        return await self.until(name, lambda item: desired(item) == number, seconds)

    async def until_condition(self, name: str, kind: str, status: str, reason: str, seconds: float = 30) -> float:
        return await self.until(name, lambda item: condition(item, kind) == (status, reason), seconds)

    async def events(self, name: str, reason: str) -> list[tuple[str, int]]:
        """The message of each event about a variant with a reason, and how often it was told."""
        listing = await self.cluster.api.call("GET", f"/api/v1/namespaces/{self.cluster.namespace}/events")
        return [
            (one["message"], one.get("count") or 1)
            for one in listing["items"]
            if one["involvedObject"]["name"] == name and one["reason"] == reason
        ]

    async def until_replicas(self, name: str, number: int, seconds: float = 30) -> float:
        """When its Deployment is asked to have so many."""
        return await self._until_deployment(name, lambda item: item["spec"]["replicas"] == number, seconds)

    async def until_ready(self, name: str, number: int, seconds: float = 30) -> float:
        """When its Deployment has so many replicas that are ready."""
        await self.cluster.until_pods(lambda pods: sum(map(is_ready, pods)) == number, name, seconds)
        return time.monotonic()

    async def _until_deployment(self, name: str, holds: Callable[[Json], bool], seconds: float) -> float:
        def found(items: list[Json]) -> bool:
            return any(item["metadata"]["name"] == name and holds(item) for item in items)

        await self.cluster.until("/apis/apps/v1", "deployments", found, seconds=seconds)
        return time.monotonic()


def desired(item: Json) -> int | None:
    """How many replicas a variant is to have, as its status says."""
    return ((item.get("status") or {}).get("desiredOptimizedAlloc") or {}).get("numReplicas")


@contextlib.asynccontextmanager
async def variants_of(cluster: Cluster) -> AsyncIterator[Variants]:
    """A cluster that knows variants, without any; what is told of those that come is taken."""
    await install_crd(cluster.api, crds.VARIANTS)
    variants = Variants(cluster)
    watching = asyncio.create_task(variants.watch())
    try:
        yield variants
        assert not watching.done(), watching.exception()
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@dataclass
class Crowd:
    """Callers that ask one answer of a second after another, each of the ready replica with the fewest at it, as a
    gateway would. `failed` is what was not answered with 200.
    """

    cluster: Cluster
    session: aiohttp.ClientSession
    failed: list[str] = field(default_factory=list)
    answered: int = 0
    _at: dict[str, int] = field(default_factory=dict)
    _there: asyncio.Event = field(default_factory=asyncio.Event)
    _callers: list[asyncio.Task[None]] = field(default_factory=list)

    def grow_to(self, callers: int) -> None:
        while len(self._callers) < callers:
            self._callers.append(asyncio.create_task(self._call()))

    async def leave(self) -> None:
        """Have each caller end with the answer that it waits for."""
        callers, self._callers = self._callers, []
        for one in callers:
            if not self._at:
                one.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

    async def follow(self) -> None:
        """Take which replicas are ready, until cancelled."""
        path = f"/api/v1/namespaces/{self.cluster.namespace}/pods"
        watch: ListWatch[Json] = ListWatch(self.cluster.api, path, {}, lambda item: item)
        async with aclosing(watch.steps()) as steps:
            async for step in steps:
                if isinstance(step, Snapshot):
                    self._take(step.objects.values())

    def _take(self, pods: Iterable[Json]) -> None:
        there = {pod["status"]["podIP"] for pod in pods if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]}
        self._at = {address: self._at.get(address, 0) for address in there}
        if there:
            self._there.set()
        else:
            self._there.clear()

    async def _call(self) -> None:
        while asyncio.current_task() in self._callers:
            await self._there.wait()
            address = min(self._at, key=lambda one: self._at[one])
            self._at[address] += 1
            try:
                async with self.session.post(f"http://{address}:8000{CHAT}", json=question(TOKENS)) as response:
                    text = await response.text()
                    if response.status != 200:
                        self.failed.append(f"{response.status}: {text[-200:]}")
            except aiohttp.ClientError as error:
                self.failed.append(repr(error))
            finally:
                if address in self._at:
                    self._at[address] -= 1
            self.answered += 1


@contextlib.asynccontextmanager
async def crowd_of(cluster: Cluster) -> AsyncIterator[Crowd]:
    """Nobody yet."""
    async with caller() as session:
        crowd = Crowd(cluster, session)
        following = asyncio.create_task(crowd.follow())
        try:
            yield crowd
        finally:
            following.cancel()
            await asyncio.wait([following])
            await crowd.leave()
