"""The rights in deploy/policies beside those in deploy suffice, and each is needed: without one the proxy names it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.adapters.contract import is_gone, is_ready
from tests.adapters.objects_contract import SeenObjects
from tests.cluster.account import ROLE, install, mount
from tests.cluster.cluster import Cluster, Troubled
from tests.cluster.engines import ENGINES, operated
from tests.cluster.test_backend import ENDPOINT, following
from tests.cluster.test_scalable import stateful_set
from vllm_chill.adapters.kubernetes.client import ApiClient, Json, connect
from vllm_chill.adapters.kubernetes.credentials import Places
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.objects import KubernetesObjects
from vllm_chill.adapters.kubernetes.rights import Right, missing_rights, rights_of_policies
from vllm_chill.core.objects import Collection
from vllm_chill.core.target import STATEFUL_SETS, TargetRef
from vllm_chill.errors import BackendRefused

RBAC = Path(__file__).parents[2] / "deploy" / "policies" / "rbac.yaml"
[POLICIES] = [item for item in yaml.safe_load_all(RBAC.read_text()) if item["kind"] == "Role"]


def one_by_one(role: Json) -> list[Json]:
    """The rules of a role, with one verb and one resource each."""
    return [
        {**rule, "resources": [resource], "verbs": [verb]}
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


@asynccontextmanager
async def granted(
    cluster: Cluster, folder: Path, *more: Json, without: Right | None = None
) -> AsyncIterator[ApiClient]:
    """A client with the credentials of a pod of the proxy's ServiceAccount, which has all rights but for one."""
    lacking = None if without is None else (without.verb, without.group, without.resource)
    rules = [*one_by_one(POLICIES), *more]
    kept = [rule for rule in rules if (rule["verbs"][0], rule["apiGroups"][0], rule["resources"][0]) != lacking]
    await install(cluster, {**ROLE, "rules": [*ROLE["rules"], *kept]})
    environ = await mount(cluster, folder)
    async with connect(places=Places(environ, folder, folder / "no-kubeconfig")) as api:
        yield api


def rights() -> list[Any]:
    return [pytest.param(right, id=f"{right.verb} {right.resource}") for right in rights_of_policies("any")]


@pytest.mark.parametrize("right", rights())
async def test_a_right_that_is_missing_is_named_and_no_other(right: Right, cluster: Cluster, tmp_path: Path) -> None:
    async with granted(cluster, tmp_path, without=right) as api:
        [complaint] = await missing_rights(api, rights_of_policies(cluster.namespace))
    assert f'the right to "{right.verb}" "{right.resource}"' in complaint
    assert right.without in complaint


async def test_with_all_of_them_other_targets_and_rivals_are_seen(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create(stateful_set())
    rivals = Collection("autoscaling/v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", cluster.namespace)
    async with granted(cluster, tmp_path) as api:
        assert await missing_rights(api, rights_of_policies(cluster.namespace)) == ()
        store, seen_rivals = KubernetesObjects(api), SeenObjects()
        async with running(store.watch(rivals, seen_rivals)):
            await seen_rivals.until(lambda objects: not objects)
        backend, ref, seen = KubernetesBackend(api, ENDPOINT), sets(cluster), Troubled()
        async with following(backend, ref, seen):
            await backend.scale(ref, 1)
            await seen.until(is_ready)
            await backend.scale(ref, 0)
            await seen.until(is_gone)
        assert seen.losses == []


async def test_without_them_another_target_says_what_is_needed(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create(stateful_set())
    await install(cluster, ROLE)
    environ = await mount(cluster, tmp_path)
    async with connect(places=Places(environ, tmp_path, tmp_path / "no-kubeconfig")) as api:
        backend, ref, seen = KubernetesBackend(api, ENDPOINT), sets(cluster), Troubled()
        with pytest.raises(BackendRefused, match=r'"patch" on "statefulsets/scale" \(deploy/policies/rbac.yaml'):
            await backend.scale(ref, 1)
        async with running(backend.watch(ref, seen)):
            assert 'cannot list resource "statefulsets"' in await seen.until_lost()


@pytest.mark.parametrize("watched", [True, False])
async def test_another_kind_needs_its_scale_and_is_better_watched(
    watched: bool, cluster: Cluster, tmp_path: Path
) -> None:
    def rule(part: str, *verbs: str) -> list[Json]:
        return [{"apiGroups": [ENGINES.group], "resources": [ENGINES.plural + part], "verbs": [v]} for v in verbs]

    more = rule("/scale", "get", "patch") + (rule("", "list", "watch") if watched else [])
    async with operated(cluster) as engines, granted(cluster, tmp_path, *more) as api:
        await engines.create()
        backend, ref, seen = KubernetesBackend(api, ENDPOINT), TargetRef(cluster.namespace, "vllm", ENGINES), Troubled()
        async with following(backend, ref, seen):
            await backend.scale(ref, 1)
            await seen.until(is_ready)
        assert seen.losses == []


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """While something runs for ever."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def sets(cluster: Cluster) -> TargetRef:
    return TargetRef(cluster.namespace, "vllm", STATEFUL_SETS)
