"""The Role in deploy/ suffices, and is the least: with it the backend wakes and sleeps, and without any of it not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.contract import is_gone, is_ready
from tests.cluster.account import ROLE, install, mount
from tests.cluster.cluster import Cluster, Troubled
from vllm_chill.adapters.kubernetes.client import ApiClient, connect
from vllm_chill.adapters.kubernetes.credentials import Places
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.errors import BackendRefused

RIGHTS = [
    pytest.param(i, verb, resource, id=f"{verb} {resource}")
    for i, rule in enumerate(ROLE["rules"])
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


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


async def test_the_role_suffices(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment()
    await install(cluster, ROLE)
    async with in_a_pod(cluster, tmp_path) as api:
        assert await wake_and_sleep(api, TargetRef(cluster.namespace, "vllm")) is None


@pytest.mark.parametrize(("index", "verb", "resource"), RIGHTS)
async def test_without_one_right_it_does_not_work_and_says_which(
    index: int, verb: str, resource: str, cluster: Cluster, tmp_path: Path
) -> None:
    role = copy.deepcopy(ROLE)
    role["rules"][index]["verbs"].remove(verb)
    role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
    await cluster.create_deployment()
    await install(cluster, role)
    async with in_a_pod(cluster, tmp_path) as api:
        trouble = await wake_and_sleep(api, TargetRef(cluster.namespace, "vllm"))
    assert trouble is not None
    assert f'cannot {verb} resource "{resource}"' in trouble
    assert "deploy/rbac.yaml" in trouble


async def test_the_role_lets_it_touch_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment("other")
    await install(cluster, ROLE)
    async with in_a_pod(cluster, tmp_path) as api:
        backend = KubernetesBackend(api, Endpoint("vllm-svc", 80))
        with pytest.raises(BackendRefused, match=r'grant the verb "patch" on "deployments/scale"'):
            await backend.scale(TargetRef(cluster.namespace, "other"), 1)
    assert await cluster.replicas("other") == 0
