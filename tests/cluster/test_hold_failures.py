"""Starts that cannot succeed, on a real API server: who waits is told why at once, and the next one may be luckier."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import IMAGE, Cluster, waits
from tests.cluster.kubelet import giving_logs
from tests.cluster.serving import Answer, ask, in_front_of, metric
from tests.serving import Serving
from vllm_chill.adapters.kubernetes.client import Json

MOST_SECONDS = 5
"""How long a final failure may take to reach who waits, from when it can be known."""


def message_of(answer: Answer, code: str = "wake_failed") -> str:
    """The sentence of a 503, which says when to come back."""
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert (answer.status, error["code"]) == (503, code)
    assert int(answer.headers["Retry-After"]) > 0
    return str(error["message"])


async def told_to_all(proxy: Serving, knowable: Awaitable[object], least_seconds: float = 0) -> str:
    """What three callers at zero are told, at most five seconds (and `least_seconds`) after that can be known."""
    loop = asyncio.get_running_loop()
    asked = [asyncio.create_task(ask(proxy.url)) for _ in range(3)]
    await knowable
    known = loop.time()
    [message] = {message_of(answer) for answer in await asyncio.gather(*asked)}
    took = loop.time() - known
    assert least_seconds - 0.5 < took < least_seconds + MOST_SECONDS
    return message


def has_condition(kind: str, status: str) -> Callable[[list[Json]], bool]:
    return lambda items: any(
        condition["type"] == kind and condition["status"] == status
        for item in items
        for condition in item["status"].get("conditions", [])
    )


async def given_back(cluster: Cluster, generation: int) -> None:
    """Wait until it is back at zero; its spec has been written as often as that."""
    await cluster.until("/apis/apps/v1", "deployments", lambda items: items[0]["spec"]["replicas"] == 0)
    await cluster.until_pods(lambda pods: not pods)
    assert await cluster.generation() == generation


async def answered_when_it_may_try_again(proxy: Serving) -> Answer:
    """The answer to a request that comes when the one before said so."""
    refused = await ask(proxy.url)
    message_of(refused)
    await asyncio.sleep(int(refused.headers["Retry-After"]))
    return await ask(proxy.url)


async def test_an_image_that_cannot_be_pulled_and_then_can(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0)
    await cluster.set_image("bad/image")
    async with in_front_of(cluster) as proxy:
        message = await told_to_all(proxy, cluster.until_pods(waits("ImagePullBackOff")))
        assert 'ImagePullBackOff: container vllm: Back-off pulling image "bad/image"' in message
        await given_back(cluster, generation=4)
        await cluster.set_image(IMAGE)
        assert (await answered_when_it_may_try_again(proxy)).status == 200


async def test_more_gpus_than_there_are_and_then_fewer(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0)
    await cluster.set_gpus(99)
    async with in_front_of(cluster, "--unschedulable-after", "2s") as proxy:
        knowable = cluster.until_pods(has_condition("PodScheduled", "False"))
        message = await told_to_all(proxy, knowable, least_seconds=2)
        assert "no node has had room for it for 2 s: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu" in message
        await given_back(cluster, generation=4)
        await cluster.set_gpus(1)
        assert (await answered_when_it_may_try_again(proxy)).status == 200


async def test_a_quota_without_room_and_then_with(cluster: Cluster) -> None:
    await cluster.limit_pods(0)
    await cluster.create_deployment(load_seconds=0)
    async with in_front_of(cluster) as proxy:
        refused = has_condition("ReplicaFailure", "True")
        message = await told_to_all(proxy, cluster.until("/apis/apps/v1", "deployments", refused))
        assert f"Deployment {cluster.namespace}/vllm cannot start a pod" in message
        assert "exceeded quota" in message
        await given_back(cluster, generation=3)
        await cluster.delete(f"/api/v1/namespaces/{cluster.namespace}/resourcequotas/pods")
        assert (await answered_when_it_may_try_again(proxy)).status == 200


async def test_a_crash_loop_with_its_log_whose_tenth_caller_costs_no_tenth_wake(
    cluster: Cluster, control_plane: Path
) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_FAIL": "start"})
    async with giving_logs(cluster.api, control_plane) as asked, in_front_of(cluster) as proxy:
        message = await told_to_all(proxy, cluster.until_pods(waits("CrashLoopBackOff", restarts=2)))
        assert "CrashLoopBackOff: container vllm ended with exit code 1 and was restarted 2 times" in message
        assert "its last output was: args" in message
        assert "CUDA out of memory (as asked)" in message
        assert [query["previous"] for query in asked] == ["true"]
        await given_back(cluster, generation=3)
        for _ in range(10):
            assert "CUDA out of memory" in message_of(await ask(proxy.url))
        assert await cluster.generation() == 3
        await cluster.set_variable("STUB_FAIL", "")
        assert (await answered_when_it_may_try_again(proxy)).status == 200
        assert await cluster.generation() == 5


async def test_a_crash_loop_without_its_log_says_how_to_look(cluster: Cluster) -> None:
    # The control plane's node gives no logs.
    await cluster.create_deployment(load_seconds=0, env={"STUB_FAIL": "start"})
    async with in_front_of(cluster) as proxy:
        message = await told_to_all(proxy, cluster.until_pods(waits("CrashLoopBackOff", restarts=2)))
        assert f"see `kubectl logs -n {cluster.namespace} vllm-" in message
        assert "-c vllm --previous`" in message


async def test_failed_wakes_are_further_and_further_apart(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0)
    await cluster.set_image("bad/image")
    async with in_front_of(cluster) as proxy:
        pauses = []
        for wake in (1, 2):
            refused = await ask(proxy.url)
            message_of(refused)
            pauses.append(int(refused.headers["Retry-After"]))
            await given_back(cluster, generation=2 + 2 * wake)
            await asyncio.sleep(pauses[-1])
        assert pauses == [5, 10]


async def test_an_engine_that_never_becomes_healthy_is_waited_for_until_the_starts_own_deadline(
    cluster: Cluster,
) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_FAIL": "health"})
    async with in_front_of(cluster, "--wake-timeout", "2s", "--start-timeout", "6s") as proxy:
        assert "still waking" in message_of(await ask(proxy.url), "model_waking")
        assert await cluster.replicas() == 1
        await proxy.until_logged("failed")
        assert "not ready 6 s after it was started" in message_of(await ask(proxy.url))
        await given_back(cluster, generation=3)
        await cluster.set_variable("STUB_FAIL", "")
        assert (await answered_when_it_may_try_again(proxy)).status == 200


@pytest.mark.parametrize("fail", ["start", "health"])
async def test_who_leaves_during_a_start_that_fails_leaves_no_pod_behind(fail: str, cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_FAIL": fail})
    async with in_front_of(cluster, "--start-timeout", "6s") as proxy:
        asked = asyncio.create_task(ask(proxy.url))
        await cluster.until_pods(lambda pods: len(pods) == 1)
        asked.cancel()
        await asyncio.wait([asked])
        await proxy.until_logged("failed")
        await given_back(cluster, generation=3)


async def test_an_engine_that_dies_within_a_stream_ends_it_with_an_error_and_the_next_is_served(
    cluster: Cluster,
) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_FAIL": "mid-stream"})
    async with in_front_of(cluster) as proxy:
        for _ in range(2):
            answer = await ask(proxy.url, 4, stream=True)
            events = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: ")]
            assert answer.status == 200
            assert len(events) == 2 + 2
            assert json.loads(events[2])["error"]["code"] == "upstream_reset"
            assert events[3] == "[DONE]"
        assert await metric(proxy, "vllm_chill_responses_cut_total") == 2
        assert (await ask(proxy.url)).status == 200


async def test_an_engine_that_hangs_is_let_go_with_its_callers(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_FAIL": "hang"})
    async with in_front_of(cluster, "--response-timeout", "2s", "--idle-timeout", "2s") as proxy:
        leaves = asyncio.create_task(ask(proxy.url))
        silent = await ask(proxy.url)
        assert (silent.status, json.loads(silent.body)["error"]["code"]) == (504, "upstream_silent")
        leaves.cancel()
        await asyncio.wait([leaves])
        await proxy.until_logged("asleep")
        await given_back(cluster, generation=3)
