"""What engines write, by the `pods/log` of a real API server: while they start, and after they have crashed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.adapters.contract import Seen
from tests.adapters.output_contract import followed
from tests.cluster.account import ROLE, install
from tests.cluster.cluster import Cluster
from tests.cluster.kubelet import giving_logs
from tests.cluster.serving import ask, in_front_of
from tests.cluster.test_rbac import in_a_pod, least
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.errors import BackendRefused


async def test_from_sleep_a_start_is_followed_and_told_in_the_status(cluster: Cluster, control_plane: Path) -> None:
    await cluster.create_deployment(load_seconds=4)
    async with (
        giving_logs(cluster.api, control_plane) as asked,
        in_front_of(cluster) as proxy,
        aiohttp.ClientSession() as session,
        session.get(f"{proxy.url}/proxy/logs?follow=true") as following,
    ):
        assert not asked
        asking = asyncio.create_task(ask(proxy.url))
        async with asyncio.timeout(20):
            assert (await following.content.readline()).startswith(b"==> vllm-")
            assert (await following.content.readline()).startswith(b"args [")
        waking = await proxy.until(lambda target: target["output"] is not None)
        assert waking["phase"] == "waking"
        assert waking["output"][-1].startswith("args [")
        assert (await asking).status == 200
        assert (await proxy.status())["output"] is None
        count = len(asked)
        for _ in range(20):
            await proxy.status()
        assert len(asked) == count, "of what is ready nothing is read"
        async with session.get(f"{proxy.url}/proxy/logs?lines=1") as response:
            [header, line] = (await response.text()).splitlines()
            assert header.startswith("==> vllm-")
            assert line


async def test_what_a_crash_loop_wrote_is_told_after_its_pods_have_gone(cluster: Cluster, control_plane: Path) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_FAIL": "start"})
    async with giving_logs(cluster.api, control_plane), in_front_of(cluster) as proxy:
        assert (await ask(proxy.url)).status == 503
        await cluster.until_pods(lambda pods: not pods)
        async with aiohttp.ClientSession() as session, session.get(f"{proxy.url}/proxy/logs") as response:
            assert "before it crashed <==" in (text := await response.text())
            assert "CUDA out of memory (as asked)" in text


@pytest.mark.parametrize("granted", [True, False], ids=["with the right", "without it"])
async def test_the_optional_right_is_what_is_needed(
    granted: bool, cluster: Cluster, control_plane: Path, tmp_path: Path
) -> None:
    await cluster.create_deployment(replicas=1, load_seconds=0)
    await install(cluster, ROLE if granted else least())
    ref, seen = TargetRef(cluster.namespace, "vllm"), Seen()
    async with giving_logs(cluster.api, control_plane), in_a_pod(cluster, tmp_path) as api:
        backend = KubernetesBackend(api, Endpoint("vllm-svc", 80))
        watching = asyncio.create_task(backend.watch(ref, seen))
        await seen.until(lambda o: any(replica.endpoint is not None and replica.ready for replica in o.members))
        output = backend.output(ref)
        if granted:
            assert any(line.text.startswith("args [") for line in await output.read(100))
            async with followed(output) as told:
                await told.until(lambda: any(text.startswith("args [") for text in told.texts))
        else:
            with pytest.raises(BackendRefused, match=r'grant the verb "get" on "pods/log" \(deploy/rbac.yaml has it\)'):
                await output.read(100)
        watching.cancel()
        await asyncio.wait([watching])
