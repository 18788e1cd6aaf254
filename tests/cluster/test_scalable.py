"""What is no Deployment as a target, held to the contract of every backend: a StatefulSet, and a kind of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.adapters.contract import BackendContract, Seen, is_ready
from tests.cluster.cluster import Cluster, deployment
from tests.cluster.engines import ENGINES, Engines, operated
from tests.cluster.test_backend import ENDPOINT, following
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.kinds import KubernetesKinds
from vllm_chill.core.target import STATEFUL_SETS, TargetRef
from vllm_chill.errors import BackendRefused


def stateful_set(name: str = "vllm") -> Json:
    item = deployment(name, 0, {"STUB_LOAD_SECONDS": "0.5"})
    spec = {**item["spec"], "serviceName": name}
    del spec["strategy"]
    return {**item, "kind": STATEFUL_SETS.kind, "spec": spec}


class StatefulSetWorld:
    def __init__(self, cluster: Cluster) -> None:
        self.backend = KubernetesBackend(cluster.api, ENDPOINT)
        self.ref = TargetRef(cluster.namespace, "vllm", STATEFUL_SETS)
        self.cluster = cluster

    async def kill(self) -> None:
        await self.cluster.delete_pods()

    async def break_start(self) -> None:
        path = f"/apis/apps/v1/namespaces/{self.cluster.namespace}/statefulsets/vllm"
        containers = [{"name": "vllm", "image": "bad/image"}]
        await self.cluster.patch(path, {"spec": {"template": {"spec": {"containers": containers}}}}, "strategic-merge")


class TestStatefulSet(BackendContract):
    @pytest.fixture
    async def world(self, cluster: Cluster) -> StatefulSetWorld:
        await cluster.create(stateful_set())
        return StatefulSetWorld(cluster)


class EngineWorld:
    def __init__(self, cluster: Cluster, engines: Engines) -> None:
        self.backend = KubernetesBackend(cluster.api, ENDPOINT)
        self.ref = TargetRef(cluster.namespace, "vllm", ENGINES)
        self.cluster = cluster
        self.engines = engines

    async def kill(self) -> None:
        await self.cluster.delete_pods()

    async def break_start(self) -> None:
        await self.engines.set_image("bad/image")


class TestKindOfOnesOwn(BackendContract):
    @pytest.fixture
    async def world(self, cluster: Cluster) -> AsyncIterator[EngineWorld]:
        async with operated(cluster) as engines:
            await engines.create()
            yield EngineWorld(cluster, engines)


async def test_pods_of_a_stateful_set_come_and_go_by_their_numbers(cluster: Cluster) -> None:
    await cluster.create(stateful_set())
    world, seen = StatefulSetWorld(cluster), Seen()
    async with following(world.backend, world.ref, seen):
        await world.backend.scale(world.ref, 2)
        both = await seen.until(lambda o: len(o.serving) == 2, seconds=30)
        assert both.serving == {"vllm-0", "vllm-1"}
        await world.backend.scale(world.ref, 1, doomed=["vllm-0"])
        one = await seen.until(lambda o: is_ready(o) and o.live == 1)
        assert one.serving == {"vllm-0"}


async def test_kinds_are_found_by_the_servers_discovery(cluster: Cluster) -> None:
    async with operated(cluster):
        kinds = KubernetesKinds(cluster.api)
        async with asyncio.timeout(20):
            while True:
                # Discovery is a little later than the kind itself.
                try:
                    found = await kinds.find(ENGINES.api_version, ENGINES.kind)
                except BackendRefused:
                    await asyncio.sleep(0.1)
                else:
                    break
        assert found == ENGINES
        assert (await kinds.find("v1", "ReplicationController")).plural == "replicationcontrollers"
        assert (await kinds.find("apps/v1", "ReplicaSet")).plural == "replicasets"
        with pytest.raises(BackendRefused, match="DaemonSet of apps/v1 cannot be scaled"):
            await kinds.find("apps/v1", "DaemonSet")
        with pytest.raises(BackendRefused, match="Node of v1 is cluster-wide"):
            await kinds.find("v1", "Node")
        with pytest.raises(BackendRefused, match=r"does not know the kind Thing of example\.com/v1"):
            await kinds.find("example.com/v1", "Thing")
