"""The list-watch on a real API server, and on the way to it: what is lost, killed, hung or large."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.adapters.contract import is_ready
from tests.cluster.api_server import answers, away, kill
from tests.cluster.cluster import Cluster, Troubled
from tests.cluster.forwarder import Forwarder, address_of, through
from vllm_chill.adapters.kubernetes.client import ApiClient, Json, connect
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.errors import BackendUnavailable

QUICK = Pace(watch_seconds=2, grace_seconds=1, pause_first_seconds=0.1, pause_most_seconds=0.5)
ENDPOINT = Endpoint("vllm-svc", 80)


class Steps:
    """A list-watch in a task of its own, all of whose steps are kept (a snapshot as the set of its names)."""

    def __init__(self, watch: ListWatch[str]) -> None:
        self.watch = watch
        self.kept: list[frozenset[str] | Outage] = []
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async for step in self.watch.steps():
            self.kept.append(frozenset(step.objects) if isinstance(step, Snapshot) else step)
            self._changed.set()

    async def until(self, holds: Callable[[frozenset[str] | Outage], bool], seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not self.kept or not holds(self.kept[-1]):
                self._changed.clear()
                await self._changed.wait()


def config_map(name: str, size: int = 0) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"filling": "x" * size}}


def config_maps_of(api: ApiClient, cluster: Cluster, kind: type[ListWatch[str]] = ListWatch) -> ListWatch[str]:
    # A cluster may put a ConfigMap of its own into each namespace.
    path = f"/api/v1/namespaces/{cluster.namespace}/configmaps"
    return kind(api, path, {"fieldSelector": "metadata.name!=kube-root-ca.crt"}, lambda item: "kept", QUICK)


@asynccontextmanager
async def stepping(watch: ListWatch[str]) -> AsyncIterator[Steps]:
    steps = Steps(watch)
    running = asyncio.create_task(steps.run())
    try:
        await steps.until(lambda _: True)
        yield steps
    finally:
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


@asynccontextmanager
async def watching(backend: KubernetesBackend, ref: TargetRef) -> AsyncIterator[Troubled]:
    seen = Troubled()
    running = asyncio.create_task(backend.watch(ref, seen))
    try:
        await seen.until(lambda _: True)
        yield seen
    finally:
        running.cancel()
        await asyncio.wait([running])


async def lost(seen: Troubled, seconds: float = 30) -> str:
    async with asyncio.timeout(seconds):
        return await seen.trouble


@pytest.fixture
async def network(kubeconfig: Path) -> AsyncIterator[Forwarder]:
    async with Forwarder(*address_of(kubeconfig)) as forwarder:
        yield forwarder


@pytest.fixture
async def api(network: Forwarder, kubeconfig: Path, tmp_path: Path) -> AsyncIterator[ApiClient]:
    """A client whose way to the API server leads through `network`."""
    async with connect(str(through(kubeconfig, network.port, tmp_path / "kubeconfig")), call_seconds=3) as api:
        yield api


class Forgetful(ListWatch[str]):
    """One that goes on from a version long past, once, as if it had been away for long."""

    lists = 0

    async def _list(self) -> None:
        await super()._list()
        self.lists += 1
        if self.lists == 1:
            self._version = "1"


async def test_a_watch_that_the_server_ends_goes_on_without_a_list(cluster: Cluster) -> None:
    class Counting(ListWatch[str]):
        lists = 0

        async def _list(self) -> None:
            self.lists += 1
            await super()._list()

    watch = config_maps_of(cluster.api, cluster, Counting)
    async with stepping(watch) as steps:
        await asyncio.sleep(QUICK.watch_seconds + 1)
        await cluster.create(config_map("later"))
        await steps.until(lambda step: step == frozenset({"later"}))
        assert not [step for step in steps.kept if isinstance(step, Outage)]
    assert isinstance(watch, Counting)
    assert watch.lists == 1


async def test_a_connection_that_is_cut_is_no_outage(api: ApiClient, network: Forwarder, cluster: Cluster) -> None:
    async with stepping(config_maps_of(api, cluster)) as steps:
        await asyncio.sleep(0.3)
        network.cut()
        await cluster.create(config_map("after"))
        await steps.until(lambda step: step == frozenset({"after"}))
        assert not [step for step in steps.kept if isinstance(step, Outage)]


async def test_what_was_deleted_while_the_server_was_away_is_gone(
    api: ApiClient, network: Forwarder, cluster: Cluster
) -> None:
    await cluster.create(config_map("stays"))
    await cluster.create(config_map("goes"))
    async with stepping(config_maps_of(api, cluster)) as steps:
        assert steps.kept[-1] == frozenset({"stays", "goes"})
        await network.refuse()
        await steps.until(lambda step: isinstance(step, Outage))
        await cluster.delete(f"/api/v1/namespaces/{cluster.namespace}/configmaps/goes")
        await network.listen()
        await steps.until(lambda step: step == frozenset({"stays"}))


async def test_hundreds_of_objects_come_in_pages_and_one_of_a_megabyte_in_an_event(cluster: Cluster) -> None:
    names = frozenset(f"c{i}" for i in range(250))
    for name in names:
        await cluster.create(config_map(name, 10_000))
    async with stepping(config_maps_of(cluster.api, cluster)) as steps:
        assert steps.kept == [names]
        await cluster.create(config_map("large", 1_000_000))
        await steps.until(lambda step: step == names | {"large"})


async def test_a_deleted_pod_is_gone_after_a_relist(api: ApiClient, network: Forwarder, cluster: Cluster) -> None:
    await cluster.create_deployment(replicas=1)
    backend = KubernetesBackend(api, ENDPOINT, pace=QUICK)
    async with watching(backend, TargetRef(cluster.namespace, "vllm")) as seen:
        await seen.until(is_ready)
        await network.refuse()
        await lost(seen)
        await cluster.scale(0)
        await cluster.until_pods(lambda pods: not pods)
        await network.listen()
        gone = await seen.until(lambda o: o.replicas == 0)
        assert gone.live == 0


async def test_a_write_is_seen_though_the_watch_is_on_a_connection_that_is_dead_without_a_word(
    api: ApiClient, network: Forwarder, cluster: Cluster
) -> None:
    await cluster.create_deployment()
    slow = Pace(watch_seconds=600)
    ref = TargetRef(cluster.namespace, "vllm")
    backend = KubernetesBackend(api, ENDPOINT, pace=slow)
    async with watching(backend, ref) as seen:
        await asyncio.sleep(0.5)
        network.freeze()
        await backend.scale(ref, 1)
        assert seen.last is not None
        assert seen.last.replicas == 1
        await seen.until(is_ready)


async def test_a_write_that_does_not_reach_the_server_is_unavailable(
    api: ApiClient, network: Forwarder, cluster: Cluster
) -> None:
    await cluster.create_deployment()
    ref = TargetRef(cluster.namespace, "vllm")
    async with watching(KubernetesBackend(api, ENDPOINT, pace=QUICK), ref):
        await network.refuse()
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await KubernetesBackend(api, ENDPOINT).scale(ref, 1)


async def test_an_api_server_that_is_killed_is_followed_again(cluster: Cluster, control_plane: Path) -> None:
    await cluster.create_deployment()
    ref = TargetRef(cluster.namespace, "vllm")
    backend = KubernetesBackend(cluster.api, ENDPOINT, pace=QUICK)
    async with watching(backend, ref) as seen:
        async with away(control_plane):
            assert "cannot be reached" in await lost(seen)
            with pytest.raises(BackendUnavailable):
                await backend.scale(ref, 1)
        mark = len(seen.observations)
        await seen.until(lambda _: len(seen.observations) > mark, seconds=60)
        await answers(cluster.api)
        await backend.scale(ref, 1)
        await seen.until(is_ready, seconds=60)


async def test_an_api_server_that_hangs_is_noticed(cluster: Cluster, control_plane: Path) -> None:
    await cluster.create_deployment()
    ref = TargetRef(cluster.namespace, "vllm")
    server = int((control_plane / "apiserver.pid").read_text())
    async with connect(str(cluster.kubeconfig), call_seconds=2) as api:
        backend = KubernetesBackend(api, ENDPOINT, pace=QUICK)
        async with watching(backend, ref) as seen:
            await asyncio.sleep(0.5)
            os.kill(server, signal.SIGSTOP)
            try:
                assert "silent" in await lost(seen, QUICK.watch_seconds + QUICK.grace_seconds + 2)
                with pytest.raises(BackendUnavailable, match="did not answer within 2 s"):
                    await backend.scale(ref, 1)
            finally:
                os.kill(server, signal.SIGCONT)
            await backend.scale(ref, 1)
            await seen.until(is_ready)


async def test_a_version_that_is_no_longer_kept_is_listed_anew_without_an_outage(
    cluster: Cluster, control_plane: Path
) -> None:
    # One that has just started keeps nothing of what was before.
    kill(control_plane)
    await answers(cluster.api)
    watch = config_maps_of(cluster.api, cluster, Forgetful)
    async with stepping(watch) as steps:
        await cluster.create(config_map("new"))
        await steps.until(lambda step: step == frozenset({"new"}))
        assert not [step for step in steps.kept if isinstance(step, Outage)]
    assert isinstance(watch, Forgetful)
    assert watch.lists == 2
