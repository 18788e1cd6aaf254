"""The replicas that should go, marked before the write that has them go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog

from tests.adapters.contract import Seen
from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.deletion_costs import ANNOTATION, COST
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.target import STATEFUL_SETS, Endpoint, TargetRef

REF = TargetRef("ai-apps", "vllm")
QUICK = Pace(pause_first_seconds=0.02, pause_most_seconds=0.1)


def pod(name: str, cost: str | None = None) -> Json:
    metadata: Json = {
        "name": f"vllm-abc-{name}",
        "labels": {"app": "vllm", "pod-template-hash": "abc"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "vllm-abc", "controller": True}],
    }
    if cost is not None:
        metadata["annotations"] = {ANNOTATION: cost}
    return {"kind": "Pod", "metadata": metadata}


@pytest.fixture
async def backend(server: StubApi, api: ApiClient) -> AsyncIterator[KubernetesBackend]:
    """One that sees a Deployment with three pods: a has no cost, b has one of its own, c was marked before."""
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "vllm"}}}
    await server.put({"kind": "Deployment", "metadata": {"name": "vllm"}, "spec": spec})
    for item in (pod("a"), pod("b", "7"), pod("c", COST)):
        await server.put(item)
    backend, seen = KubernetesBackend(api, Endpoint("vllm-svc", 80), pace=QUICK), Seen()
    watching = asyncio.create_task(backend.watch(REF, seen))
    await seen.until(lambda o: o.live == 3)
    yield backend
    watching.cancel()
    await asyncio.wait([watching])


def costs(server: StubApi) -> dict[str, str | None]:
    pods = {name[-1]: item for name, item in server.objects.items() if item["kind"] == "Pod"}
    return {name: item["metadata"].get("annotations", {}).get(ANNOTATION) for name, item in pods.items()}


def writes(server: StubApi) -> list[str]:
    return [request.path.split("/")[-1] for request in server.requests if request.method == "PATCH"]


async def test_the_doomed_are_marked_and_others_are_not_before_the_number_is_written(
    server: StubApi, backend: KubernetesBackend
) -> None:
    await backend.scale(REF, 2, doomed=["vllm-abc-a"])
    assert costs(server) == {"a": COST, "b": "7", "c": None}
    assert writes(server)[-1] == "scale"
    assert sorted(writes(server)[:-1]) == ["vllm-abc-a", "vllm-abc-c"]
    assert int(server.objects["vllm-abc-a"]["metadata"]["resourceVersion"]) < int(
        server.objects["vllm"]["metadata"]["resourceVersion"]
    )


async def test_what_is_marked_already_is_not_written_again(server: StubApi, backend: KubernetesBackend) -> None:
    await backend.scale(REF, 2, doomed=["vllm-abc-c"])
    assert writes(server) == ["scale"]
    assert costs(server)["c"] == COST


async def test_whoever_scales_up_or_to_what_is_marks_none_and_takes_marks_back(
    server: StubApi, backend: KubernetesBackend
) -> None:
    await backend.scale(REF, 3, doomed=["vllm-abc-a"])
    assert costs(server) == {"a": None, "b": "7", "c": None}
    await backend.scale(REF, 5)
    assert writes(server) == ["vllm-abc-c", "scale", "scale"]


async def test_where_all_go_none_is_first(server: StubApi, backend: KubernetesBackend) -> None:
    await backend.scale(REF, 0, doomed=["vllm-abc-a", "vllm-abc-b", "vllm-abc-c"])
    assert writes(server) == ["scale"]


async def test_a_stateful_set_cannot_choose(server: StubApi, backend: KubernetesBackend) -> None:
    await backend.scale(TargetRef("ai-apps", "vllm", STATEFUL_SETS), 2, doomed=["vllm-abc-a"])
    assert writes(server) == ["scale"]


async def test_without_a_watch_the_doomed_are_marked_all_the_same(server: StubApi, api: ApiClient) -> None:
    for item in ({"kind": "Deployment", "metadata": {"name": "vllm"}, "spec": {"replicas": 3}}, pod("a")):
        await server.put(item)
    await KubernetesBackend(api, Endpoint("vllm-svc", 80)).scale(REF, 2, doomed=["vllm-abc-a"])
    assert costs(server) == {"a": COST}


async def test_without_the_right_it_scales_all_the_same_and_says_so_once(
    server: StubApi, backend: KubernetesBackend
) -> None:
    server.forbidden = {"patch pods"}
    with structlog.testing.capture_logs() as log:
        await backend.scale(REF, 2, doomed=["vllm-abc-a"])
        await backend.scale(REF, 1, doomed=["vllm-abc-b"])
    assert server.objects["vllm"]["spec"]["replicas"] == 1
    assert costs(server) == {"a": None, "b": "7", "c": COST}
    [said] = log
    assert said["log_level"] == "warning"
    assert said["event"].startswith("Kubernetes chooses which replicas go")
    assert 'grant the verb "patch" on "pods" (deploy/rbac.yaml has it)' in said["cause"]


async def test_a_pod_that_is_gone_is_no_trouble_and_other_trouble_is_said(
    server: StubApi, backend: KubernetesBackend
) -> None:
    with structlog.testing.capture_logs() as log:
        server.refusals = [(404, status(404, "gone"))] * 2
        await backend.scale(REF, 2, doomed=["vllm-abc-z"])
        assert log == []
        server.refusals = [(500, status(500, "etcd is away."))] * 2
        await backend.scale(REF, 1, doomed=["vllm-abc-a"])
        assert [line["cause"] for line in log] == ["etcd is away"]
    assert server.objects["vllm"]["spec"]["replicas"] == 1
