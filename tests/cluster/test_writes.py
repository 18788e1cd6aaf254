"""What a write of the number of replicas is on the server: the doomed are marked before it, and it says whose it is."""

from __future__ import annotations

import json

from tests.cluster.cluster import Cluster
from tests.cluster.test_backend import is_passing, watched
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.deletion_costs import ANNOTATION, COST
from vllm_chill.core.objects import annotations_of


def version_of(item: Json) -> int:
    return int(item["metadata"]["resourceVersion"])


async def versions(cluster: Cluster, collection: str, since: int) -> list[Json]:
    """Every version of a collection's objects that was written since then, in the order of the writes."""
    root, _, plural = collection.rpartition("/")
    query: dict[str, str | int] = {"watch": "1", "resourceVersion": since, "timeoutSeconds": 1}
    async with cluster.api.stream(f"{root}/namespaces/{cluster.namespace}/{plural}", query) as response:
        return [json.loads(line)["object"] for line in (await response.read()).splitlines()]


async def test_the_doomed_are_marked_and_others_unmarked_before_the_number_is_written(cluster: Cluster) -> None:
    await cluster.create_deployment(replicas=3)
    # The controllers may have yet to come back after an API server that a test before this one has killed.
    ready = await cluster.until_pods(lambda pods: len(pods) == 3 and all(map(is_passing, pods)), seconds=90)
    spared, doomed, other = (pod["metadata"]["name"] for pod in ready)
    # Whoever marked it did not come to write the number.
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{spared}"
    await cluster.patch(path, {"metadata": {"annotations": {ANNOTATION: COST}}})
    async with watched(cluster) as (backend, ref, _):
        begun = version_of(await cluster.deployment())
        await backend.scale(ref, 2, doomed=[doomed])
    [scaled] = [item for item in await versions(cluster, "/apis/apps/v1/deployments", begun) if is_spec_of_two(item)][
        :1
    ]
    before = [pod for pod in await versions(cluster, "/api/v1/pods", begun) if version_of(pod) < version_of(scaled)]
    last = {pod["metadata"]["name"]: annotations_of(pod).get(ANNOTATION) for pod in before}
    assert last == {spared: None, doomed: COST}
    assert other not in last


def is_spec_of_two(item: Json) -> bool:
    return bool(item["spec"]["replicas"] == 2)


async def test_who_else_set_the_number_is_told_and_who_we_are_is_not(cluster: Cluster) -> None:
    await cluster.create_deployment()
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/vllm"
    async with watched(cluster) as (backend, ref, seen):
        await backend.scale(ref, 1)
        assert seen.last is not None
        assert (seen.last.replicas, seen.last.replicas_by) == (1, None)
        await cluster.api.call("PATCH", path, query={"fieldManager": "some-other"}, body={"spec": {"replicas": 2}})
        told = await seen.until(lambda o: o.replicas == 2)
        assert told.replicas_by == "some-other"
        await backend.scale(ref, 1)
        assert (seen.last.replicas, seen.last.replicas_by) == (1, None)


async def test_who_writes_through_a_scale_is_told_by_servers_that_record_it(cluster: Cluster) -> None:
    await cluster.create_deployment()
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/vllm"
    version = await cluster.api.call("GET", "/version")
    async with watched(cluster) as (backend, ref, seen):
        await backend.scale(ref, 1)
        by = {"fieldManager": "some-other"}
        await cluster.api.call("PATCH", f"{path}/scale", query=by, body={"spec": {"replicas": 2}})
        told = await seen.until(lambda o: o.replicas == 2)
        records = int(version["minor"].rstrip("+")) >= 22
        assert told.replicas_by == ("some-other" if records else None)
