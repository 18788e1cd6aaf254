"""The Role in deploy/ suffices, and is the least: with it the backend wakes and sleeps, and without any of it not.

What it marks as optional is needed for what it says there, and for nothing else.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.adapters.contract import is_gone, is_ready
from tests.cluster.account import ROLE, install, mount
from tests.cluster.cluster import Cluster, Troubled, waits
from tests.cluster.kubelet import giving_logs
from tests.cluster.test_writes import version_of, versions
from vllm_chill.adapters.kubernetes.client import ApiClient, Json, connect
from vllm_chill.adapters.kubernetes.credentials import Places
from vllm_chill.adapters.kubernetes.deletion_costs import is_doomed
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.savings_map import SavingsMap, map_name
from vllm_chill.adapters.kubernetes.start_history import DeploymentHistory
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.target import Endpoint, Stage, TargetRef
from vllm_chill.errors import BackendRefused

OF_PEERS = "leases"
"""What is shown apart: what is told to other proxies is not the backend's."""
OPTIONAL = {
    *(("list", "events"), ("watch", "events"), ("get", "pods/log"), ("patch", "deployments"), ("patch", "pods")),
    *(("get", "configmaps"), ("patch", "configmaps"), ("create", "configmaps")),
}


def rights(*, optional: bool) -> list[Any]:
    return [
        pytest.param(i, verb, resource, id=f"{verb} {resource}")
        for i, rule in enumerate(ROLE["rules"])
        for resource in rule["resources"]
        if resource != OF_PEERS
        for verb in rule["verbs"]
        if ((verb, resource) in OPTIONAL) is optional
    ]


def without(index: int, verb: str) -> Json:
    """The Role less one right."""
    role: Json = copy.deepcopy(ROLE)
    role["rules"][index]["verbs"].remove(verb)
    role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
    return role


def least() -> Json:
    """The Role without all that is optional."""
    rules = [rule for rule in ROLE["rules"] if (rule["verbs"][0], rule["resources"][0]) not in OPTIONAL]
    return {**ROLE, "rules": rules}


async def wake_and_sleep(api: ApiClient, ref: TargetRef) -> str | None:
    """Scale it up and down by the backend; what came in the way, or None."""
    backend, seen = KubernetesBackend(api, Endpoint("vllm-svc", 80), pace=Pace(watch_seconds=2)), Troubled()

    async def cycle() -> str | None:
        await seen.until(lambda _: True)
        try:
            await backend.scale(ref, 1)
        except BackendRefused as error:
            return error.message
        await seen.until(is_ready)
        # Long enough for the watches to end and be begun anew.
        await asyncio.sleep(3)
        await backend.scale(ref, 0)
        await seen.until(is_gone)
        return None

    watching, cycling = asyncio.create_task(backend.watch(ref, seen)), asyncio.create_task(cycle())
    try:
        async with asyncio.timeout(60):
            either: list[asyncio.Future[Any]] = [cycling, seen.trouble]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return seen.trouble.result() if seen.trouble.done() else cycling.result()
    finally:
        for task in (watching, cycling):
            task.cancel()
        await asyncio.gather(watching, cycling, return_exceptions=True)


@asynccontextmanager
async def in_a_pod(cluster: Cluster, folder: Path) -> AsyncIterator[ApiClient]:
    """A client with the credentials that a pod of the ServiceAccount has, found where a pod has them."""
    environ = await mount(cluster, folder)
    async with connect(places=Places(environ, folder, folder / "no-kubeconfig")) as api:
        yield api


@asynccontextmanager
async def following(api: ApiClient, ref: TargetRef) -> AsyncIterator[Troubled]:
    """What a backend that uses this client is seen to tell."""
    seen = Troubled()
    watching = asyncio.create_task(KubernetesBackend(api, Endpoint("vllm-svc", 80)).watch(ref, seen))
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@pytest.mark.parametrize("role", [pytest.param(ROLE, id="whole"), pytest.param(least(), id="required part")])
async def test_the_role_suffices(role: Json, cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment()
    await install(cluster, role)
    async with in_a_pod(cluster, tmp_path) as api:
        assert await wake_and_sleep(api, TargetRef(cluster.namespace, "vllm")) is None


@pytest.mark.parametrize(("index", "verb", "resource"), rights(optional=False))
async def test_without_one_right_it_does_not_work_and_says_which(
    index: int, verb: str, resource: str, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.create_deployment()
    await install(cluster, without(index, verb))
    async with in_a_pod(cluster, tmp_path) as api:
        trouble = await wake_and_sleep(api, TargetRef(cluster.namespace, "vllm"))
    assert trouble is not None
    assert f'cannot {verb} resource "{resource}"' in trouble
    assert "deploy/rbac.yaml" in trouble


@pytest.mark.parametrize(("index", "verb", "resource"), rights(optional=True))
async def test_without_an_optional_right_it_works(
    index: int, verb: str, resource: str, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.create_deployment()
    await install(cluster, without(index, verb))
    async with in_a_pod(cluster, tmp_path) as api:
        assert await wake_and_sleep(api, TargetRef(cluster.namespace, "vllm")) is None


@pytest.mark.parametrize(("role", "kept"), [(ROLE, "1 2 3"), (least(), None)], ids=["with it", "without it"])
async def test_the_right_to_patch_keeps_the_history(
    role: Json, kept: str | None, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.create_deployment()
    await install(cluster, role)
    async with in_a_pod(cluster, tmp_path) as api:
        history, ref = DeploymentHistory(api), TargetRef(cluster.namespace, "vllm")
        with structlog.testing.capture_logs() as log:
            await history.save(ref, "1 2 3")
            await history.save(ref, "1 2 3")
        assert await history.load(ref) == kept
        assert len(log) == (kept is None)


@pytest.mark.parametrize("verb", [None, "get", "create", "patch"])
async def test_the_rights_to_one_config_map_keep_what_was_saved(
    verb: str | None, cluster: Cluster, tmp_path: Path
) -> None:
    indexes = [i for i, rule in enumerate(ROLE["rules"]) if "configmaps" in rule["resources"] and verb in rule["verbs"]]
    await install(cluster, ROLE if verb is None else without(indexes[0], verb))
    async with in_a_pod(cluster, tmp_path) as api:

        async def keep() -> str:
            store = SavingsMap(api, cluster.namespace, map_name("vllm-chill"))
            await store.write("1", await store.read())
            await store.write("2", await store.read())
            kept = await store.read()
            return "" if kept is None else kept.text

        if verb is None:
            assert await keep() == "2"
            with pytest.raises(BackendRefused, match='cannot get resource "configmaps"'):
                await SavingsMap(api, cluster.namespace, "another").read()
        else:
            with pytest.raises(BackendRefused, match=f'cannot {verb} resource "configmaps" .*deploy/rbac.yaml'):
                await keep()


@pytest.mark.parametrize(
    ("role", "words"),
    [
        pytest.param(ROLE, "CUDA out of memory (as asked)", id="with it"),
        pytest.param(least(), "see `kubectl logs", id="without it"),
    ],
)
async def test_the_right_to_logs_tells_why_it_crashed(
    role: Json, words: str, cluster: Cluster, control_plane: Path, tmp_path: Path
) -> None:
    await cluster.create_deployment(replicas=1, load_seconds=0, env={"STUB_FAIL": "start"})
    await install(cluster, role)
    async with (
        giving_logs(cluster.api, control_plane),
        in_a_pod(cluster, tmp_path) as api,
        following(api, TargetRef(cluster.namespace, "vllm")) as seen,
    ):
        failed = await seen.until(lambda o: o.failure is not None, seconds=40)
        assert words in (failed.failure or "")


@pytest.mark.parametrize(("role", "marked"), [(ROLE, True), (least(), False)], ids=["with it", "without it"])
async def test_the_right_to_patch_pods_chooses_which_replicas_go(
    role: Json, marked: bool, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.create_deployment(replicas=2)
    await install(cluster, role)
    [first, _] = await cluster.until_pods(lambda pods: len(pods) == 2)
    name, begun = first["metadata"]["name"], version_of(await cluster.deployment())
    async with in_a_pod(cluster, tmp_path) as api:
        with structlog.testing.capture_logs() as log:
            backend = KubernetesBackend(api, Endpoint("vllm-svc", 80))
            await backend.scale(TargetRef(cluster.namespace, "vllm"), 1, doomed=[name])
    assert await cluster.replicas() == 1
    doomed = {pod["metadata"]["name"] for pod in await versions(cluster, "/api/v1/pods", begun) if is_doomed(pod)}
    assert doomed == ({name} if marked else set())
    assert len(log) == (0 if marked else 1)
    for said in log:
        assert 'cannot patch resource "pods"' in said["cause"]
        assert 'grant the verb "patch" on "pods" (deploy/rbac.yaml has it)' in said["cause"]


@pytest.mark.parametrize(
    ("role", "stage"),
    [pytest.param(ROLE, Stage.PULLING, id="with it"), pytest.param(least(), Stage.CREATING, id="without it")],
)
async def test_the_right_to_events_tells_a_pull(role: Json, stage: Stage, cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment(replicas=1)
    await cluster.set_image("bad/image")
    await install(cluster, role)
    [pod] = await cluster.until_pods(lambda pods: len(pods) == 1 and waits("ImagePullBackOff")(pods))
    await cluster.say_of(pod, "Pulling", 'Pulling image "bad/image"')
    await cluster.make_of(pod, {"waiting": {"reason": "ContainerCreating"}})
    async with in_a_pod(cluster, tmp_path) as api, following(api, TargetRef(cluster.namespace, "vllm")) as seen:
        await seen.until(lambda o: o.progress is not None and o.progress.stage is stage)
        assert not seen.trouble.done()


async def test_the_role_lets_it_touch_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment("other")
    await install(cluster, ROLE)
    async with in_a_pod(cluster, tmp_path) as api:
        backend = KubernetesBackend(api, Endpoint("vllm-svc", 80))
        with pytest.raises(BackendRefused, match=r'grant the verb "patch" on "deployments/scale"'):
            await backend.scale(TargetRef(cluster.namespace, "other"), 1)
    assert await cluster.replicas("other") == 0
