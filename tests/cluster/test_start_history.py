"""What was learned of a Deployment's starts outlasts the proxy, on the Deployment, and rolls nothing out."""

from __future__ import annotations

import json

from tests.cluster.cluster import Cluster
from tests.cluster.serving import ask, get, in_front_of
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.start_history import ANNOTATION, DeploymentHistory
from vllm_chill.core.target import TargetRef


async def test_a_history_is_kept_on_the_deployment_and_rolls_nothing_out(cluster: Cluster) -> None:
    await cluster.create_deployment(replicas=1, load_seconds=0)
    [pod] = await cluster.until_pods(lambda pods: len(pods) == 1)
    template = (await cluster.deployment())["spec"]["template"]
    ref = TargetRef(cluster.namespace, "vllm")
    assert await DeploymentHistory(cluster.api).load(ref) is None
    await DeploymentHistory(cluster.api).save(ref, "1 2")
    await DeploymentHistory(cluster.api).save(ref, "1 2 3")
    assert await DeploymentHistory(cluster.api).load(ref) == "1 2 3"
    deployment = await cluster.deployment()
    assert deployment["metadata"]["annotations"][ANNOTATION] == "1 2 3"
    assert deployment["spec"]["template"] == template
    await cluster.until("/apis/apps/v1", "deployments", lambda items: all(is_observed(item) for item in items))
    assert [item["metadata"]["uid"] for item in await cluster.pods()] == [pod["metadata"]["uid"]]


def is_observed(deployment: Json) -> bool:
    return bool(deployment["status"].get("observedGeneration") == deployment["metadata"]["generation"])


async def test_a_deployment_that_is_not_there_has_no_history(cluster: Cluster) -> None:
    ref = TargetRef(cluster.namespace, "vllm")
    await DeploymentHistory(cluster.api).save(ref, "1")
    assert await DeploymentHistory(cluster.api).load(ref) is None


async def test_the_time_left_is_known_to_the_next_proxy(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=1)
    keeping = ("--state-dir", "any", "--idle-timeout", "1s")
    address = await cluster.create_service()
    async with in_front_of(cluster, *keeping, address=address) as proxy:
        assert (await ask(proxy.url)).status == 200
        await cluster.until("/apis/apps/v1", "deployments", lambda items: all(map(is_annotated, items)))
        await proxy.until_logged("asleep")
    async with in_front_of(cluster, *keeping, address=address) as proxy:
        await proxy.until_logged("found asleep")
        [model] = json.loads((await get(proxy.url + "/v1/models"))[1])["data"]
        assert model["vllm_chill"]["state"] == "asleep"
        assert model["vllm_chill"]["eta_seconds"] > 0.5


def is_annotated(deployment: Json) -> bool:
    return ANNOTATION in (deployment["metadata"].get("annotations") or {})
