"""KubernetesBackend, held to the contract of every backend, and to what is Kubernetes' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.adapters.contract import BackendContract, Seen, is_gone, is_ready
from tests.cluster.cluster import IMAGE, Cluster, deployment
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.core.startup import missing
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage, TargetRef
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
async def following(backend: KubernetesBackend, ref: TargetRef, seen: Seen) -> AsyncIterator[None]:
    watching = asyncio.create_task(backend.watch(ref, seen))
    try:
        await seen.until(lambda _: True)
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@asynccontextmanager
async def watched(cluster: Cluster) -> AsyncIterator[tuple[KubernetesBackend, TargetRef, Seen]]:
    backend, ref, seen = KubernetesBackend(cluster.api, ENDPOINT), ref_of(cluster), Seen()
    async with following(backend, ref, seen):
        yield backend, ref, seen


def ref_of(cluster: Cluster) -> TargetRef:
    return TargetRef(cluster.namespace, "vllm")


async def test_requests_go_to_the_service(cluster: Cluster) -> None:
    await cluster.create_deployment(replicas=1)
    async with watched(cluster) as (_, _, seen):
        assert (await seen.until(is_ready)).endpoints == (ENDPOINT,)


async def test_each_pod_is_a_member_with_its_own_address_before_it_is_ready_and_after(cluster: Cluster) -> None:
    await cluster.create_deployment(replicas=2)
    async with watched(cluster) as (_, _, seen):
        ready = await seen.until(lambda o: len(o.serving) == 2)
        pods = sorted(await cluster.pods(), key=lambda pod: str(pod["metadata"]["name"]))
        own = {pod["metadata"]["name"]: Endpoint(pod["status"]["podIP"], 8000) for pod in pods}
        assert {member.name: member.endpoint for member in ready.members} == own
        assert {member.progress for member in ready.members} == {Progress(Stage.ANSWERING)}
        early = [member for o in seen.observations for member in o.members if not member.ready and member.endpoint]
        assert {member.endpoint for member in early} == set(own.values())


async def test_a_start_goes_through_its_stages_and_never_back(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=1)
    async with watched(cluster) as (backend, ref, seen):
        await backend.scale(ref, 1)
        await seen.until(is_ready)
        stages = [o.progress.stage for o in seen.observations if o.progress is not None]
        assert stages == sorted(stages)
        assert {Stage.CREATING, Stage.STARTING, Stage.ANSWERING} <= set(stages)
        assert stages[0] is Stage.REQUESTED
        told = len(seen.observations)
        await asyncio.sleep(1)
        assert len(seen.observations) == told


async def test_a_pull_is_told_from_its_events(cluster: Cluster) -> None:
    # The node leaves such a pod alone once it has said so; the test goes on in its place.
    await cluster.create_deployment()
    await cluster.set_image("bad/image")
    async with watched(cluster) as (backend, ref, seen):
        await backend.scale(ref, 1)
        await seen.until(lambda o: o.failure is not None)
        [pod] = await cluster.pods()
        await cluster.make_of(pod, {"waiting": {"reason": "ContainerCreating"}})
        await seen.until(at(Stage.CREATING))
        await cluster.say_of(pod, "Pulling", 'Pulling image "bad/image"')
        pulling = await seen.until(at(Stage.PULLING))
        assert pulling.progress == Progress(Stage.PULLING, 'Pulling image "bad/image"')
        await cluster.say_of(pod, "Pulled", 'Successfully pulled image "bad/image" in 1s')
        await seen.until(at(Stage.CREATING))


def at(stage: Stage) -> Callable[[Observation], bool]:
    return lambda seen: seen.progress is not None and seen.progress.stage is stage


async def test_more_gpus_than_there_are_are_waited_for_with_the_schedulers_words_and_then_given_up(
    cluster: Cluster,
) -> None:
    words = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu"
    await cluster.create_deployment()
    await cluster.set_gpus(99)
    backend, ref, seen = KubernetesBackend(cluster.api, ENDPOINT, unschedulable_seconds=2), ref_of(cluster), Seen()
    async with following(backend, ref, seen):
        await backend.scale(ref, 1)
        waiting = await seen.until(lambda o: o.progress == Progress(Stage.SCHEDULING, words))
        assert waiting.failure is None
        [member] = waiting.members
        assert member == Replica(member.name, None, False, Progress(Stage.SCHEDULING, words))
        failed = await seen.until(lambda o: o.failure is not None, seconds=5)
        assert failed.failure is not None
        assert f"no node has had room for it for 2 s: {words}" in failed.failure
        await cluster.set_gpus(1)
        assert (await seen.until(is_ready)).failure is None


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
    await cluster.limit_pods(0)
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
