"""What was learned of a Deployment's starts outlasts the proxy, on the Deployment, and rolls nothing out."""

from __future__ import annotations

from tests.cluster.cluster import Cluster
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
