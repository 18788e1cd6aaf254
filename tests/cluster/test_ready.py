"""Ready before the kubelet knows: the whole program on a real API server, and a node that looks at pods rarely."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.cluster.cluster import Cluster, deployment
from tests.cluster.pods import engine_of, is_ready
from tests.cluster.serving import ask, in_front_of

_NEVER_SECONDS = 600


async def create(cluster: Cluster, period_seconds: int) -> None:
    """A Deployment that takes half a second to load, which the kubelet's first look at it does not wait for."""
    body = deployment("vllm", 0, {"STUB_LOAD_SECONDS": "0.5"})
    [container] = body["spec"]["template"]["spec"]["containers"]
    container["readinessProbe"]["periodSeconds"] = period_seconds
    await cluster.create(body)


async def only_pod(cluster: Cluster) -> dict[str, Any]:
    [pod] = await cluster.pods()
    return pod


async def test_a_request_is_answered_by_a_pod_that_the_kubelet_has_not_looked_at_again(cluster: Cluster) -> None:
    await create(cluster, _NEVER_SECONDS)
    async with in_front_of(cluster, "--route", "pod", "--idle-timeout", "1s") as proxy:
        assert (await ask(proxy.url)).status == 200
        pod = await only_pod(cluster)
        assert not is_ready(pod)
        await proxy.until_logged("asleep")
        await cluster.until_pods(lambda pods: not pods)


async def test_an_engine_that_dies_unknown_to_the_kubelet_is_asked_anew(cluster: Cluster) -> None:
    await create(cluster, _NEVER_SECONDS)
    async with in_front_of(cluster, "--route", "pod") as proxy:
        assert (await ask(proxy.url)).status == 200
        pod = await only_pod(cluster)
        os.kill(engine_of(pod["metadata"]["name"]), signal.SIGKILL)
        await proxy.until_logged("no longer ready")
        assert (await ask(proxy.url)).status == 200
        after = await only_pod(cluster)
        assert after["metadata"]["name"] == pod["metadata"]["name"]
        assert after["status"]["containerStatuses"][0]["restartCount"] == 1
        assert not is_ready(after)


async def test_a_service_is_not_overtaken(cluster: Cluster) -> None:
    await create(cluster, 3)
    async with in_front_of(cluster, "--route", "service") as proxy:
        assert (await ask(proxy.url)).status == 200
        assert is_ready(await only_pod(cluster))


async def test_by_the_kubelets_word_alone_it_is_waited_for(cluster: Cluster) -> None:
    await create(cluster, 3)
    async with in_front_of(cluster, "--route", "pod", "--readiness", "kubernetes") as proxy:
        assert (await ask(proxy.url)).status == 200
        pod = await only_pod(cluster)
        assert is_ready(pod)
        assert (await proxy.status())["endpoints"] == [f"{pod['status']['podIP']}:8000"]
