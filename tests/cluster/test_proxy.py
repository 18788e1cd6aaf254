"""The whole program on a real API server: callers, `vllm-chill serve`, pods, and what goes wrong between them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.account import ROLE, create_account, install
from tests.cluster.api_server import answers, away
from tests.cluster.cluster import Cluster, deployment
from tests.cluster.forwarder import Forwarder, address_of, through
from tests.cluster.pods import engine_of, is_ready
from tests.cluster.serving import CHAT, Answer, ask, caller, get, in_a_pod, in_front_of, metric, peak_memory, question
from tests.serving import Serving

MOST_MEMORY_MIB = 128
"""The memory limit that deploy/deployment.yaml sets."""


def error_of(body: bytes) -> dict[str, Any]:
    """The inside of OpenAI's error envelope."""
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "code", "param", "request_id"}
    return error


async def statuses_of_held(count: int, proxy: Serving) -> list[int]:
    """The statuses that so many callers at zero are answered with, all of whom are held at one moment."""
    async with caller() as session:
        callers = [asyncio.create_task(ask(proxy.url, session=session)) for _ in range(count)]
        await proxy.until(lambda target: target["waiting"] == count)
        return [answer.status for answer in await asyncio.gather(*callers)]


async def gone(cluster: Cluster) -> None:
    assert await cluster.replicas() == 0
    await cluster.until_pods(lambda pods: not pods)


class TestWakeAndSleep:
    async def test_from_zero_to_a_streamed_answer_and_back_and_again(self, cluster: Cluster) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster, "--idle-timeout", "1500ms") as proxy:
            for wake in (1, 2):
                assert await cluster.pods() == []
                answer = await ask(proxy.url, 20, stream=True)
                [pod] = await cluster.pods()
                direct = await ask(f"http://{pod['status']['podIP']}:8000", 20, stream=True)
                assert (answer.status, answer.chunks) == (200, 20)
                assert answer.body == direct.body
                assert answer.headers["Content-Type"] == direct.headers["Content-Type"]
                await proxy.until_logged("asleep", wake)
                await gone(cluster)
            assert await proxy.stop() == 0

    async def test_five_hundred_callers_at_zero_cause_one_scale_write(
        self, cluster: Cluster, capsys: pytest.CaptureFixture[str]
    ) -> None:
        await cluster.create_deployment(load_seconds=1)
        before = await cluster.generation()
        async with in_front_of(cluster) as proxy:
            assert await statuses_of_held(500, proxy) == [200] * 500
            assert await cluster.generation() == before + 1
            labels = f'direction="up",outcome="success",target="{cluster.namespace}/vllm"'
            assert await metric(proxy, f"vllm_chill_scale_operations_total{{{labels}}}") == 1
            with capsys.disabled():
                sys.stdout.write(f"\n500 held callers, with a kubeconfig: {peak_memory(proxy.process.pid):.0f} MiB\n")

    async def test_a_stream_longer_than_the_idle_timeout_arrives_whole(self, cluster: Cluster) -> None:
        await self.stream_whole(cluster, seconds=6, idle_timeout="2s")

    @pytest.mark.slow
    async def test_a_stream_of_half_a_minute_under_an_idle_timeout_of_five_seconds(self, cluster: Cluster) -> None:
        await self.stream_whole(cluster, seconds=30, idle_timeout="5s")

    async def stream_whole(self, cluster: Cluster, seconds: int, idle_timeout: str) -> None:
        await cluster.create_deployment(load_seconds=0, env={"STUB_TOKENS_PER_SECOND": "10"})
        async with in_front_of(cluster, "--idle-timeout", idle_timeout) as proxy:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            answer = await ask(proxy.url, 10 * seconds, stream=True)
            assert loop.time() - begun >= seconds
            assert answer.chunks == 10 * seconds
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert [line for line in proxy.log if line["event"] == "draining"] == []
            await proxy.until_logged("asleep")
            await gone(cluster)

    async def test_what_only_looks_neither_wakes_nor_keeps_awake(self, cluster: Cluster) -> None:
        paths = ["/metrics", "/health", "/readyz", "/proxy/status", "/proxy/metrics", "/proxy/version", "/proxy/none"]
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster, "--idle-timeout", "2s") as proxy:
            await proxy.until_logged("found asleep")
            for path in paths:
                await get(proxy.url + path)
            assert await cluster.generation() == 1
            await ask(proxy.url)
            _, text = await get(proxy.url + "/metrics")
            assert "vllm:num_requests_running" in text

            async def look() -> None:
                while True:
                    for path in paths:
                        await get(proxy.url + path)

            looking = asyncio.create_task(look())
            await proxy.until_logged("asleep")
            looking.cancel()
            await asyncio.wait([looking])
            await gone(cluster)

    async def test_memory_stays_within_the_limit_of_the_manifest(
        self, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        await cluster.create_deployment(load_seconds=1)
        await install(cluster, ROLE)
        async with in_a_pod(cluster, tmp_path) as proxy, caller() as session:
            assert set(await statuses_of_held(500, proxy)) == {200}
            streams = [ask(proxy.url, 50, stream=True, session=session) for _ in range(32)]
            assert {answer.chunks for answer in await asyncio.gather(*streams)} == {50}
            peak = peak_memory(proxy.process.pid)
            with capsys.disabled():
                sys.stdout.write(f"\n500 held callers and 32 streams, in a pod: {peak:.0f} MiB\n")
            assert peak < MOST_MEMORY_MIB


class TestSomebodyElse:
    async def test_who_scales_up_is_not_contradicted(self, cluster: Cluster) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster) as proxy:
            await proxy.until_logged("found asleep")
            await cluster.scale(2)
            await proxy.until(lambda target: target["phase"] == "ready")
            await cluster.until_pods(lambda pods: len(pods) == 2)
            assert (await ask(proxy.url)).status == 200
            assert await cluster.generation() == 2
            assert await cluster.replicas() == 2

    async def test_who_scales_down_is_respected_until_the_next_request(self, cluster: Cluster) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster) as proxy:
            assert (await ask(proxy.url)).status == 200
            await cluster.scale(0)
            await proxy.until_logged("asleep")
            await asyncio.sleep(2)
            await gone(cluster)
            assert await cluster.generation() == 3
            assert (await ask(proxy.url)).status == 200
            assert await cluster.generation() == 4


class TestPods:
    async def test_one_that_is_killed_under_traffic_loses_no_request(
        self, cluster: Cluster, control_plane: Path
    ) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster) as proxy, load(proxy) as answered:
            await until(lambda: len(answered) > 50)
            [pod] = await cluster.pods()
            os.kill(engine_of(pod["metadata"]["name"]), signal.SIGKILL)
            await proxy.until_logged("no longer ready")
            await proxy.until_logged("ready", 2)
            mark = len(answered)
            await until(lambda: len(answered) > mark + 50)
            assert [answer for answer in answered if answer.status != 200] == []
            assert await metric(proxy, "vllm_chill_replays_total") > 0

    async def test_one_that_is_deleted_under_traffic_loses_no_request(self, cluster: Cluster) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster) as proxy, load(proxy) as answered:
            await until(lambda: len(answered) > 50)
            await cluster.delete_pods()
            await proxy.until_logged("ready", 2)
            mark = len(answered)
            await until(lambda: len(answered) > mark + 50)
            assert [answer for answer in answered if answer.status != 200] == []

    async def test_one_that_ends_slowly_gets_no_request_however_healthy_it_says_it_is(
        self, cluster: Cluster, control_plane: Path
    ) -> None:
        await cluster.create(stubborn(grace_seconds=6))
        async with in_front_of(cluster, "--idle-timeout", "1s") as proxy, caller() as session:
            first = await self.pod_asked(proxy, session)
            [old] = await cluster.pods()
            assert old["metadata"]["name"] == first
            await proxy.until_logged("asleep")
            told = f"http://{old['status']['podIP']}:8000"
            assert (await get(f"{told}/health"))[0] == 200
            new = {await self.pod_asked(proxy, session) for _ in range(20)}
            assert len(new) == 1
            assert first not in new
            assert json.loads((await get(f"{told}/asked"))[1]) == {"pod": first, "asked": 1}

    async def test_one_of_two_that_ends_slowly_gets_no_request_either(
        self, cluster: Cluster, control_plane: Path
    ) -> None:
        await cluster.create(stubborn(grace_seconds=6, replicas=2))
        async with in_front_of(cluster) as proxy, caller() as session:
            await cluster.until_pods(lambda pods: len(pods) == 2 and all(is_ready(pod) for pod in pods))
            both = set(await asyncio.gather(*(self.pod_asked(proxy, session) for _ in range(20))))
            assert len(both) == 2
            await cluster.scale(1)
            leaving = await cluster.until_pods(
                lambda pods: len([p for p in pods if "deletionTimestamp" in p["metadata"]]) == 1
            )
            [old] = [pod for pod in leaving if "deletionTimestamp" in pod["metadata"]]
            await proxy.until(lambda target: target["replicas"] == 1)
            await asyncio.sleep(0.5)
            told = f"http://{old['status']['podIP']}:8000"
            before = json.loads((await get(f"{told}/asked"))[1])
            assert both > set(await asyncio.gather(*(self.pod_asked(proxy, session) for _ in range(20))))
            assert json.loads((await get(f"{told}/asked"))[1]) == before

    async def pod_asked(self, proxy: Serving, session: Any) -> str:
        async with session.post(proxy.url + CHAT, json=question()) as response:
            assert response.status == 200
            return str((await response.json())["pod"])


class TestApiServer:
    async def test_one_that_is_killed_costs_no_warm_request_and_is_followed_again(
        self, cluster: Cluster, control_plane: Path
    ) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster, "--idle-timeout", "4s") as proxy:
            assert (await ask(proxy.url)).status == 200
            async with away(control_plane):
                for _ in range(20):
                    assert (await ask(proxy.url, 2, stream=True)).chunks == 2
                    assert (await get(proxy.url + "/readyz"))[0] == 200
                    await asyncio.sleep(0.1)
            await answers(cluster.api)
            assert (await ask(proxy.url)).status == 200
            await proxy.until_logged("asleep", seconds=40)
            await gone(cluster)
            assert (await ask(proxy.url)).status == 200
            assert await cluster.replicas() == 1

    async def test_a_request_at_zero_while_it_is_away_is_held_and_answered(
        self, cluster: Cluster, control_plane: Path
    ) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with in_front_of(cluster) as proxy:
            await proxy.until_logged("found asleep")
            async with away(control_plane):
                asked = asyncio.create_task(ask(proxy.url))
                failed = await proxy.until_logged("scaling failed")
                assert "cannot be reached" in failed["cause"]
                await asyncio.sleep(1)
                assert not asked.done()
            assert (await asked).status == 200
            await answers(cluster.api)
            assert await cluster.generation() == 2

    async def test_one_that_is_away_at_the_start_is_waited_for(self, cluster: Cluster, tmp_path: Path) -> None:
        await cluster.create_deployment(load_seconds=0)
        async with Forwarder(*address_of(cluster.kubeconfig)) as network:
            await network.refuse()
            elsewhere = through(cluster.kubeconfig, network.port, tmp_path / "kubeconfig")
            async with in_front_of(cluster, kubeconfig=elsewhere) as proxy:
                answer = await ask(proxy.url)
                error = error_of(answer.body)
                assert (answer.status, error["code"]) == (503, "backend_unavailable")
                assert f"the API server https://127.0.0.1:{network.port} cannot be reached" in error["message"]
                assert int(answer.headers["Retry-After"]) > 0
                assert (await get(proxy.url + "/health"))[0] == 200
                status, why = await get(proxy.url + "/readyz")
                assert status == 503
                assert "cannot be reached" in why
                await network.listen()
                await proxy.until_logged("found asleep", seconds=30)
                assert (await get(proxy.url + "/readyz"))[0] == 200
                assert (await ask(proxy.url)).status == 200


class TestTrouble:
    async def test_an_image_that_cannot_be_pulled_is_told_and_its_gpu_given_back(self, cluster: Cluster) -> None:
        await cluster.create_deployment(load_seconds=0)
        await cluster.set_image("bad/image")
        async with in_front_of(cluster) as proxy:
            answer = await asyncio.wait_for(ask(proxy.url), 15)
            error = error_of(answer.body)
            assert (answer.status, error["code"]) == (503, "wake_failed")
            assert 'ImagePullBackOff: container vllm: Back-off pulling image "bad/image"' in error["message"]
            assert int(answer.headers["Retry-After"]) > 0
            await proxy.until(lambda target: target["replicas"] == 0)
            await gone(cluster)

    async def test_a_deployment_that_does_not_exist_is_named_with_what_to_set(self, cluster: Cluster) -> None:
        async with in_front_of(cluster) as proxy:
            answer = await ask(proxy.url)
            error = error_of(answer.body)
            assert (answer.status, error["code"]) == (503, "wake_failed")
            assert f"Deployment {cluster.namespace}/vllm does not exist" in error["message"]
            assert "set --deployment and --namespace" in error["message"]

    async def test_a_service_account_without_the_role_is_told_which_right_it_lacks(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        await cluster.create_deployment(load_seconds=0)
        await create_account(cluster)
        async with in_a_pod(cluster, tmp_path) as proxy:
            answer = await ask(proxy.url)
            error = error_of(answer.body)
            assert (answer.status, error["code"]) == (503, "backend_unavailable")
            assert 'cannot list resource "deployments"' in error["message"]
            status, why = await get(proxy.url + "/readyz")
            assert status == 503
            assert 'cannot list resource "deployments"' in why
            assert "deploy/rbac.yaml has the Role" in why

    async def test_a_role_without_the_scale_is_told_so(self, cluster: Cluster, tmp_path: Path) -> None:
        await cluster.create_deployment(load_seconds=0)
        rules = [rule for rule in ROLE["rules"] if rule["resources"] != ["deployments/scale"]]
        await install(cluster, {**ROLE, "rules": rules})
        async with in_a_pod(cluster, tmp_path) as proxy:
            answer = await ask(proxy.url)
            assert answer.status == 503
            assert 'grant the verb "patch" on "deployments/scale"' in error_of(answer.body)["message"]


async def test_in_a_pod_with_the_role_it_wakes_and_sleeps(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create_deployment(load_seconds=0)
    await install(cluster, ROLE)
    async with in_a_pod(cluster, tmp_path, "--idle-timeout", "1s") as proxy:
        assert (await ask(proxy.url, 3, stream=True)).chunks == 3
        await proxy.until_logged("asleep")
        await gone(cluster)
        assert await proxy.stop() == 0


async def test_sigterm_lets_a_stream_finish_and_leaves_the_deployment_as_it_is(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_TOKENS_PER_SECOND": "10"})
    async with in_front_of(cluster, "--shutdown-delay", "1s") as proxy, caller() as session:
        async with session.post(proxy.url + CHAT, json=question(30, stream=True)) as response:
            await response.content.readany()
            ended = asyncio.create_task(proxy.stop())
            await proxy.until_logged("draining")
            status, why = await get(proxy.url + "/readyz")
            assert status == 503
            assert "shutting down" in why
            assert not ended.done()
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        assert await ended == 0
    assert await cluster.replicas() == 1
    assert len(await cluster.pods()) == 1


@asynccontextmanager
async def load(proxy: Serving, callers: int = 8) -> AsyncIterator[list[Answer]]:
    """Short requests, one after another from each of so many callers; what they have been answered."""
    answered: list[Answer] = []

    async def call(session: Any) -> None:
        while True:
            answered.append(await ask(proxy.url, session=session))

    async with caller() as session:
        calling = [asyncio.create_task(call(session)) for _ in range(callers)]
        try:
            yield answered
        finally:
            for task in calling:
                task.cancel()
            failures = await asyncio.gather(*calling, return_exceptions=True)
            assert {type(failure) for failure in failures} == {asyncio.CancelledError}


async def until(holds: Any, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is awaited is anything at all
            await asyncio.sleep(0.02)


def stubborn(grace_seconds: int, replicas: int = 0) -> dict[str, Any]:
    """A Deployment whose pods outlive SIGTERM; only the control plane's own node runs such a command."""
    body = deployment("vllm", replicas, {})
    spec = body["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = grace_seconds
    [container] = spec["containers"]
    container["image"] = "stubborn"
    container["command"] = [sys.executable, str(Path(__file__).with_name("stubborn_engine.py"))]
    container["args"] = []
    return body
