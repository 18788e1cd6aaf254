"""A target of a kind that is not known, followed by its scale, over an API server that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from tests.adapters.contract import Seen
from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.target import Endpoint, Observation, Progress, Resource, Stage, TargetRef
from vllm_chill.errors import BackendRefused

REF = TargetRef("ai-apps", "vllm", Resource("x.io", "v1", "engines", "Engine"))
SCALE = "/apis/x.io/v1/namespaces/ai-apps/engines/vllm/scale"
ASKED_FOR = Observation(1, 0, progress=Progress(Stage.REQUESTED))


def engine(replicas: int = 0, selector: str | None = "app=vllm") -> Json:
    return {
        "kind": "Engine",
        "metadata": {"name": "vllm"},
        "spec": {"replicas": replicas},
        "status": {"selector": selector},
    }


def pod(name: str, *, ready: bool) -> Json:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    status = {"podIP": "10.0.0.7", "conditions": conditions}
    metadata = {"name": name, "labels": {"app": "vllm"}, "ownerReferences": [{"kind": "Grid", "name": "g"}]}
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "node-0"}, "status": status}


@asynccontextmanager
async def following(api: ApiClient, look_seconds: float = 5) -> AsyncIterator[tuple[KubernetesBackend, Seen]]:
    pace = Pace(pause_first_seconds=0.02, pause_most_seconds=0.1, look_seconds=look_seconds)
    backend, seen = KubernetesBackend(api, Endpoint("vllm-svc", 80), pace=pace, seen_seconds=2), Seen()
    watching = asyncio.create_task(backend.watch(REF, seen))
    try:
        yield backend, seen
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()


def looks(server: StubApi) -> int:
    return sum(request.path == SCALE and request.method == "GET" for request in server.requests)


async def test_it_is_what_its_scale_and_the_pods_of_its_selector_say(server: StubApi, api: ApiClient) -> None:
    await server.put(engine())
    async with following(api) as (backend, seen):
        await seen.until(lambda o: o == Observation(0, 0))
        await backend.scale(REF, 1)
        assert seen.last == ASKED_FOR
        [write] = [request for request in server.requests if request.method == "PATCH"]
        assert (write.path, dict(write.query)) == (SCALE, {"fieldManager": "vllm-chill"})
        await server.put(pod("of-any-name", ready=True))
        ready = await seen.until(lambda o: bool(o.endpoints))
        assert [member.name for member in ready.members] == ["of-any-name"]
        listed = [request for request in server.requests if request.path.endswith("/pods")]
        assert {request.query["labelSelector"] for request in listed} == {"app=vllm"}


async def test_caught_up_it_has_told_what_its_scale_says(server: StubApi, api: ApiClient) -> None:
    server.forbidden = {"engines"}
    await server.put(engine())
    async with following(api, look_seconds=60) as (backend, seen):
        await seen.until(lambda o: o == Observation(0, 0))
        await server.put(engine(1))
        await backend.catch_up(REF)
        assert seen.last == ASKED_FOR


@pytest.mark.parametrize(
    "body", [b'{"status": 7, "metadata": {"resourceVersion": "1"}}', b'{"spec": {"replicas": []}}']
)
async def test_a_scale_of_nonsense_is_an_outage(body: bytes, server: StubApi, api: ApiClient) -> None:
    await server.put(engine())
    server.refusals = [(200, body)] * 2
    async with following(api) as (_, seen):
        await seen.until(lambda o: o == Observation(0, 0))
        assert seen.losses


async def test_while_it_is_watched_its_scale_is_looked_at_only_when_it_changes(server: StubApi, api: ApiClient) -> None:
    await server.put(engine())
    async with following(api, look_seconds=0.01) as (_, seen):
        await seen.until(lambda o: o == Observation(0, 0))
        await server.until_asked("watch", 2)
        await asyncio.sleep(0.05)
        before = looks(server)
        await asyncio.sleep(0.2)
        assert looks(server) == before
        await server.put(engine(1))
        await seen.until(lambda o: o == ASKED_FOR)


async def test_without_the_right_to_watch_it_is_looked_at_now_and_then_and_one_line_says_so(
    server: StubApi, api: ApiClient
) -> None:
    server.forbidden = {"engines"}
    await server.put(engine())
    with structlog.testing.capture_logs() as log:
        async with following(api) as (backend, seen):
            await seen.until(lambda o: o == Observation(0, 0))
            await asyncio.sleep(0.2)
            # A write of ours is looked for at once, and not only when it is time.
            await backend.scale(REF, 1)
            assert seen.last == ASKED_FOR
            assert seen.losses == []
    assert [line["event"] for line in log] == ["Engine ai-apps/vllm is looked at every 5 s, as it cannot be watched"]


async def test_what_others_do_is_seen_without_a_watch_too(server: StubApi, api: ApiClient) -> None:
    server.forbidden = {"engines"}
    await server.put(engine())
    async with following(api, look_seconds=0.05) as (_, seen):
        await seen.until(lambda o: o == Observation(0, 0))
        await server.put(engine(1))
        await seen.until(lambda o: o == ASKED_FOR)


async def test_a_scale_that_may_not_be_read_or_names_no_pods_is_lost_until_it_can(
    server: StubApi, api: ApiClient
) -> None:
    server.forbidden = {"scale"}
    await server.put(engine(selector=None))
    async with following(api) as (_, seen):
        assert "User cannot list scale; grant it that right" in await seen.until_lost()
        server.forbidden = set()
        assert "the scale of Engine ai-apps/vllm does not tell its pods" in await seen.until_lost(2)
        await server.put(engine())
        assert await seen.until(lambda _: True) == Observation(0, 0)


async def test_what_is_not_there_is_a_failure_until_it_is_created(server: StubApi, api: ApiClient) -> None:
    async with following(api) as (backend, seen):
        await seen.until(lambda o: o == Observation(0, 0, failure="Engine ai-apps/vllm does not exist: create it"))
        await server.put(engine())
        await seen.until(lambda o: o == Observation(0, 0))
        await server.delete("vllm")
        await seen.until(lambda o: o.failure is not None)
        server.refusals = [(403, status(403, "User cannot patch engines/scale."))]
        with pytest.raises(BackendRefused, match='grant the verb "patch" on "engines/scale"'):
            await backend.scale(REF, 1)


async def test_an_outage_is_lost_and_then_observed_again(server: StubApi, api: ApiClient) -> None:
    await server.put(engine())
    async with following(api) as (_, seen):
        await seen.until(lambda o: o == Observation(0, 0))
        await server.until_asked("watch", 2)
        server.refusals = [(503, status(503, "starting"))] * 8
        server.cut()
        await seen.until_lost()
        await seen.until(lambda _: len(seen.observations) > 1)
        assert set(seen.losses) == {"the API server answered 503: starting"}
