"""KubernetesBackend, held to the contract of every backend, and to what is Kubernetes' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.adapters.contract import BackendContract, Seen, is_gone, is_ready
from tests.cluster.cluster import IMAGE, Cluster, deployment
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.core.startup import missing
from vllm_chill.core.target import Endpoint, Observation, TargetRef
from vllm_chill.errors import BackendRefused

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


@asynccontextmanager
async def watched(cluster: Cluster, name: str = "vllm") -> AsyncIterator[tuple[KubernetesBackend, TargetRef, Seen]]:
    backend, ref, seen = KubernetesBackend(cluster.api, ENDPOINT), TargetRef(cluster.namespace, name), Seen()
    watching = asyncio.create_task(backend.watch(ref, seen))
    try:
        await seen.until(lambda _: True)
        yield backend, ref, seen
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def test_requests_go_to_the_service(cluster: Cluster) -> None:
    await cluster.create_deployment(replicas=1)
    async with watched(cluster) as (_, _, seen):
        assert (await seen.until(is_ready)).endpoints == (ENDPOINT,)


async def test_a_deployment_that_is_not_there_is_a_failure_until_it_is_created(cluster: Cluster) -> None:
    async with watched(cluster) as (backend, ref, seen):
        assert seen.observations == [Observation(0, 0, failure=missing(ref))]
        with pytest.raises(BackendRefused, match=f"Deployment {ref} does not exist"):
            await backend.scale(ref, 1)
        await cluster.create_deployment()
        await seen.until(lambda o: o == Observation(0, 0))
        await backend.scale(ref, 1)
        await seen.until(is_ready)
        await cluster.delete_deployment()
        await seen.until(lambda o: o == Observation(0, 0, failure=missing(ref)))


async def test_a_namespace_that_is_not_there_is_a_deployment_that_is_not_there(cluster: Cluster) -> None:
    ref = TargetRef("no-such-namespace", "vllm")
    with pytest.raises(BackendRefused, match="set --deployment and --namespace"):
        await KubernetesBackend(cluster.api, ENDPOINT).scale(ref, 1)


async def test_what_someone_else_scales_is_seen(cluster: Cluster) -> None:
    await cluster.create_deployment()
    async with watched(cluster) as (_, _, seen):
        await cluster.scale(1)
        await seen.until(is_ready)
        await cluster.scale(0)
        await seen.until(is_gone)


async def test_scaling_to_what_is_writes_nothing(cluster: Cluster) -> None:
    await cluster.create_deployment()
    async with watched(cluster) as (backend, ref, _):
        before = await cluster.generation()
        await backend.scale(ref, 0)
        assert await cluster.generation() == before
        await backend.scale(ref, 1)
        await backend.scale(ref, 1)
        assert await cluster.generation() == before + 1


async def test_pods_of_others_do_not_count_whatever_their_labels(cluster: Cluster) -> None:
    spec = deployment("vllm", 0, {})["spec"]["template"]["spec"]
    await cluster.create_deployment()
    labels = {"app": "vllm"}
    await cluster.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stray", "labels": labels}, "spec": spec}
    )
    other = deployment("vllm-other", 1, {"STUB_LOAD_SECONDS": "0"})
    other["spec"]["selector"]["matchLabels"] = {**labels, "of": "other"}
    other["spec"]["template"]["metadata"]["labels"] = {**labels, "of": "other"}
    await cluster.create(other)
    await cluster.until_pods(lambda pods: len(pods) == 2 and all(is_passing(pod) for pod in pods))
    async with watched(cluster) as (backend, ref, seen):
        assert seen.observations == [Observation(0, 0)]
        await backend.scale(ref, 1)
        await seen.until(is_ready)
        await seen.until(lambda o: o.live == 1)


def is_passing(pod: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


async def test_a_deployment_made_anew_with_another_selector_is_followed(cluster: Cluster) -> None:
    await cluster.create_deployment()
    async with watched(cluster) as (backend, ref, seen):
        await backend.scale(ref, 1)
        await seen.until(is_ready)
        await cluster.delete_deployment()
        await seen.until(lambda o: o.failure is not None)
        await cluster.until_pods(lambda pods: not pods)
        anew = deployment("vllm", 1, {"STUB_LOAD_SECONDS": "0"})
        expression = {"key": "app", "operator": "In", "values": ["new", "newer"]}
        anew["spec"]["selector"] = {"matchExpressions": [expression]}
        anew["spec"]["template"]["metadata"]["labels"] = {"app": "new"}
        await cluster.create(anew)
        await seen.until(is_ready)


async def test_a_crash_loop_says_how_it_crashed(cluster: Cluster) -> None:
    await cluster.create_deployment(replicas=1, load_seconds=0, env={"STUB_FAIL": "start"})
    async with watched(cluster) as (_, _, seen):
        failed = await seen.until(lambda o: o.failure is not None, seconds=40)
        assert failed.failure is not None
        assert "cannot start: CrashLoopBackOff: container vllm ended with exit code 1" in failed.failure
        # A single crash is forgiven.
        assert "restarted 2 times" in failed.failure


async def test_a_quota_without_room_is_a_failure(cluster: Cluster) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await cluster.create(quota)
    await cluster.until("/api/v1", "resourcequotas", lambda quotas: all("hard" in q["status"] for q in quotas))
    await cluster.create_deployment(replicas=1)
    async with watched(cluster) as (_, ref, seen):
        failed = await seen.until(lambda o: o.failure is not None)
        assert failed.failure is not None
        assert f"Deployment {ref} cannot start a pod" in failed.failure
        assert "exceeded quota" in failed.failure


async def test_a_new_image_mends_what_the_old_one_could_not(cluster: Cluster) -> None:
    await cluster.create_deployment()
    await cluster.set_image("bad/image")
    async with watched(cluster) as (backend, ref, seen):
        await backend.scale(ref, 1)
        await seen.until(lambda o: o.failure is not None)
        await cluster.set_image(IMAGE)
        assert (await seen.until(is_ready)).failure is None
