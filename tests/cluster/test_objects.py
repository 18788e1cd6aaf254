"""KubernetesObjects, held to the contract of every object store, and to what is a server's own."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tests.adapters.objects_contract import ObjectsContract, SeenObjects, deployment
from tests.cluster.cluster import Cluster
from vllm_chill.adapters.kubernetes.objects import KubernetesObjects
from vllm_chill.adapters.kubernetes.watch import ListWatch, Pace
from vllm_chill.core.objects import Collection, Json
from vllm_chill.errors import BackendRefused


class KubernetesObjectsWorld:
    def __init__(self, cluster: Cluster) -> None:
        self.store = KubernetesObjects(cluster.api)
        self.deployments = Collection("apps/v1", "Deployment", "deployments", cluster.namespace)
        self.others = Collection("apps/v1", "Deployment", "deployments", "default")
        self.cluster = cluster

    async def change(self, name: str, change: Json) -> None:
        await self.cluster.patch(f"/apis/apps/v1/namespaces/{self.cluster.namespace}/deployments/{name}", change)

    async def said(self, name: str) -> list[tuple[str, str, str, int]]:
        events = await self.cluster.api.call("GET", f"/api/v1/namespaces/{self.cluster.namespace}/events")
        ours = [event for event in events["items"] if event["source"].get("component") == "vllm-chill"]
        assert all(event["involvedObject"]["name"] == name for event in ours)
        return [(event["type"], event["reason"], event["message"], event["count"]) for event in ours]


@pytest.fixture
async def world(cluster: Cluster) -> KubernetesObjectsWorld:
    return KubernetesObjectsWorld(cluster)


class TestKubernetesObjects(ObjectsContract):
    pass


async def test_a_kind_that_the_server_does_not_know_is_lost_with_what_to_do_about_it(cluster: Cluster) -> None:
    things = Collection("example.com/v1", "Thing", "things", absent="install it")
    store, seen = KubernetesObjects(cluster.api, Pace(pause_first_seconds=0.01)), SeenObjects()
    watching = asyncio.create_task(store.watch(things, seen))
    await seen.until_lost(2)
    watching.cancel()
    await asyncio.wait([watching])
    assert set(seen.losses) == {"the API server does not know things of example.com/v1: install it"}
    with pytest.raises(BackendRefused, match="Thing a cannot be written"):
        await store.apply(things, {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}})


async def test_what_the_server_finds_wrong_is_refused_in_its_words(cluster: Cluster) -> None:
    world = KubernetesObjectsWorld(cluster)
    bad = deployment()
    bad["spec"]["replicas"] = -1
    with pytest.raises(BackendRefused, match=r"Deployment .*/d cannot be written \(422\): .*spec.replicas"):
        await world.store.apply(world.deployments, bad)


async def test_a_server_that_is_asked_for_metadata_leaves_out_the_rest(cluster: Cluster) -> None:
    world = KubernetesObjectsWorld(cluster)
    items: list[Json] = []
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments"
    watch: ListWatch[None] = ListWatch(cluster.api, path, {}, items.append, metadata_only=True)
    await world.store.apply(world.deployments, deployment("listed"))
    async with aclosing(watch.steps()) as steps:
        await anext(steps)
        await world.store.apply(world.deployments, deployment("watched"))
        while not any(item["metadata"]["name"] == "watched" for item in items):
            await anext(steps)
    assert {item["metadata"]["name"] for item in items} == {"listed", "watched"}
    assert not any("spec" in item for item in items)
