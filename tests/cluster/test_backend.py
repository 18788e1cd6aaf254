"""KubernetesBackend, held to the contract of every backend, and to what is Kubernetes' own."""

from __future__ import annotations

import pytest
from tests.adapters.contract import BackendContract
from tests.cluster.cluster import Cluster

from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.core.target import Endpoint, TargetRef

ENDPOINT = Endpoint("vllm-svc", 80)


class KubernetesWorld:
    def __init__(self, cluster: Cluster) -> None:
        self.backend = KubernetesBackend(cluster.api, ENDPOINT)
        self.ref = TargetRef(cluster.namespace, "vllm")
        self.cluster = cluster

    async def kill(self) -> None:
        await self.cluster.delete_pods()

    async def break_start(self) -> None:
        await self.cluster.set_image("bad/image")


@pytest.fixture
async def world(cluster: Cluster) -> KubernetesWorld:
    await cluster.create_deployment()
    return KubernetesWorld(cluster)


class TestKubernetesBackend(BackendContract):
    pass
