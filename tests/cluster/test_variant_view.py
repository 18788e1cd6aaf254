"""What is seen of variants' targets on a real API server, and what their pods say of their load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.cluster.cluster import Cluster, deployment
from tests.cluster.engines import ENGINES, operated
from tests.cluster.test_scalable import stateful_set
from vllm_chill.adapters.engine_loads import EngineLoads
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.kinds import KubernetesKinds
from vllm_chill.adapters.kubernetes.objects import KubernetesObjects
from vllm_chill.adapters.vllm import EngineScraper
from vllm_chill.control.loads import LoadCollector
from vllm_chill.control.scaled_kinds import Named
from vllm_chill.control.variant_view import VariantView
from vllm_chill.core.saturation.targets import TargetFacts
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS

SECONDS = 30.0


@dataclass
class Viewed:
    """A view, and hands to wait until it is such."""

    view: VariantView
    namespace: str
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self, *key: str) -> None:
        self.changes.append((key[0], key[1], key[2]))
        self.changed.set()

    async def until(self, kind: str, holds: Callable[[TargetFacts | None], bool]) -> TargetFacts | None:
        """Wait until the target called vllm is such, looking only when it is told to be another."""
        async with asyncio.timeout(SECONDS):
            while not holds(facts := self.view.target(self.namespace, kind, "vllm")):
                self.changed.clear()
                await self.changed.wait()
        return facts

    async def until_ready(self, kind: str, pods: int) -> TargetFacts:
        facts = await self.until(
            kind,
            lambda facts: facts is not None and len(facts.ready_places) == pods == facts.ready == len(facts.pods),
        )
        assert facts is not None
        return facts


async def soon(holds: Callable[[], bool]) -> None:
    """Wait until something is so of which nobody is told."""
    async with asyncio.timeout(SECONDS):
        while True:
            if holds():
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def viewing(cluster: Cluster, namespace: str | None) -> AsyncIterator[Viewed]:
    view = VariantView(KubernetesObjects(cluster.api), KubernetesKinds(cluster.api), namespace)
    viewed = Viewed(view, cluster.namespace)
    view.on_change = viewed.told
    task = asyncio.create_task(view.run())
    try:
        await soon(lambda: view.known)
        assert view.troubles == {}
        yield viewed
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@asynccontextmanager
async def gpus_named(cluster: Cluster, product: str) -> AsyncIterator[None]:
    """The node says what its GPUs are."""
    path = "/api/v1/nodes/node-0"
    await cluster.patch(path, {"metadata": {"labels": {"nvidia.com/gpu.product": product}}})
    try:
        yield
    finally:
        await cluster.patch(path, {"metadata": {"labels": {"nvidia.com/gpu.product": None}}})


def with_gpus(item: Json, gpus: int, replicas: int) -> Json:
    [container] = item["spec"]["template"]["spec"]["containers"]
    container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    item["spec"]["replicas"] = replicas
    return item


@pytest.mark.parametrize("everywhere", [True, False], ids=["all namespaces", "one namespace"])
async def test_a_deployment_is_seen_with_its_pods_its_accelerator_and_what_is_left(
    cluster: Cluster, everywhere: bool
) -> None:
    async with (
        gpus_named(cluster, "NVIDIA-H100-80GB-HBM3"),
        viewing(cluster, None if everywhere else cluster.namespace) as viewed,
    ):
        kind = DEPLOYMENTS.kind
        before = viewed.view.free_gpus()
        assert before is not None
        await cluster.create(with_gpus(deployment("vllm", 0, {"STUB_LOAD_SECONDS": "0.2"}), 2, 2))
        facts = await viewed.until_ready(kind, 2)
        assert (facts.replicas, facts.existing, facts.gpus, facts.accelerator) == (2, 2, 2, "H100")
        assert {pod.place.name for pod in facts.pods} == {p["metadata"]["name"] for p in await cluster.pods()}
        assert {pod.place.endpoint and pod.place.endpoint.port for pod in facts.pods} == {8000}
        assert all(pod.since is not None for pod in facts.pods)
        now = await cluster.deployment()
        assert (facts.uid, facts.generation) == (now["metadata"]["uid"], now["metadata"]["generation"])
        left = viewed.view.free_gpus()
        assert left == {**before, "H100": before["H100"] - 4}
        assert viewed.view.owner_of(cluster.namespace, facts.pods[0].place.name) == (cluster.namespace, kind, "vllm")

        await cluster.scale(1)
        facts = await viewed.until_ready(kind, 1)
        assert facts.replicas == 1
        await cluster.delete_deployment()
        assert await viewed.until(kind, lambda facts: facts is None) is None
        await cluster.until_pods(lambda pods: not pods)
        await soon(lambda: viewed.view.free_gpus() == before)
        assert {key for key in viewed.changes if key[0] == cluster.namespace} == {(cluster.namespace, kind, "vllm")}


async def test_a_stateful_set_is_seen_with_its_pods(cluster: Cluster) -> None:
    async with viewing(cluster, None) as viewed:
        await cluster.create(with_gpus(stateful_set(), 1, 2))
        facts = await viewed.until_ready(STATEFUL_SETS.kind, 2)
        assert [pod.place.name for pod in facts.pods] == ["vllm-0", "vllm-1"]
        assert (facts.replicas, facts.gpus, facts.api_version) == (2, 1, "apps/v1")


async def test_a_target_of_a_kind_of_ones_own_is_seen_by_its_scale(cluster: Cluster) -> None:
    named = Named(ENGINES.api_version, ENGINES.kind, cluster.namespace, "vllm")
    async with viewing(cluster, None) as viewed, operated(cluster) as engines:
        viewed.view.want([named])
        await engines.create()
        path = f"/apis/{ENGINES.api_version}/namespaces/{cluster.namespace}/{ENGINES.plural}/vllm"
        await cluster.patch(path, {"spec": {"replicas": 2}})
        facts = await viewed.until_ready(ENGINES.kind, 2)
        assert (facts.replicas, facts.existing) == (2, 2)
        assert viewed.view.failure(named) is None
        await cluster.delete(path)
        await viewed.until(ENGINES.kind, lambda facts: facts is None)


async def test_what_the_pods_say_is_collected_straight_from_them(cluster: Cluster) -> None:
    loop = asyncio.get_running_loop()
    async with (
        viewing(cluster, None) as viewed,
        EngineScraper() as scraper,
        EngineLoads(scraper.scrape) as source,
    ):
        await cluster.create_deployment(replicas=2, load_seconds=0.2)
        facts = await viewed.until_ready(DEPLOYMENTS.kind, 2)
        collector = LoadCollector(source, now=loop.time)
        await collector.collect(cluster.namespace, facts.ready_places)
        loads = collector.loads(cluster.namespace, facts.ready_places)
        assert [load.name for load in loads] == [place.name for place in facts.ready_places]
        assert all((load.kv, load.queue, load.running, load.stale) == (0, 0, 0, False) for load in loads)
        assert collector.active_at(cluster.namespace, facts.ready_places) is None
        assert (collector.failure, collector.failures(cluster.namespace, facts.ready_places)) == (None, {})
