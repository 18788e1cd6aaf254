"""How a start is told, step by step, by an API server and a kubelet that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import structlog

from tests.adapters.contract import Seen
from tests.adapters.kubernetes.stub_api import Json, StubApi
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage, TargetRef

REF = TargetRef("ai-apps", "vllm")
POD = "vllm-abc-1"
THERE = Endpoint("10.0.0.7", 8000)
QUICK = Pace(pause_first_seconds=0.02, pause_most_seconds=0.1)
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
PULL = 'Pulling image "vllm/vllm-openai"'


def deployment(replicas: int) -> Json:
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "vllm"}}}
    return {"kind": "Deployment", "metadata": {"name": "vllm"}, "spec": spec}


def pod(*, node: str | None = "node-0", conditions: list[Json] | None = None, **container: object) -> Json:
    """A pod of the Deployment; `container` is the status of its only container, if it has one."""
    owner = {"kind": "ReplicaSet", "name": "vllm-abc", "controller": True}
    labels = {"app": "vllm", "pod-template-hash": "abc"}
    spec: Json = {"containers": [{"name": "vllm", "ports": [{"name": "http", "containerPort": 8000}]}]}
    status: Json = {"conditions": conditions or []}
    if node is not None:
        spec["nodeName"] = node
    if container:
        status |= {"podIP": THERE.host, "containerStatuses": [{"name": "vllm", **container}]}
    metadata = {"name": POD, "labels": labels, "ownerReferences": [owner]}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def waiting(reason: str, message: str = "", restarts: int = 0) -> Json:
    state = {"waiting": {"reason": reason, "message": message}}
    last = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": f"00:0{restarts}"}} if restarts else {}
    return pod(state=state, lastState=last, restartCount=restarts)


RUNNING = pod(state={"running": {}})
READY = pod(state={"running": {}}, conditions=[{"type": "Ready", "status": "True"}])
UNSCHEDULED = pod(
    node=None,
    conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_GPU}],
)
CREATING = waiting("ContainerCreating")


def event(reason: str, message: str, name: str = "first", pod_name: str = POD) -> Json:
    about = {"kind": "Pod", "name": pod_name, "fieldPath": "spec.containers{vllm}"}
    return {
        "kind": "Event",
        "metadata": {"name": name},
        "involvedObject": about,
        "reason": reason,
        "message": message,
    }


def at(stage: Stage, detail: str = "") -> Callable[[Observation], bool]:
    return lambda seen: seen.progress == Progress(stage, detail)


def has_failed(seen: Observation) -> bool:
    return seen.failure is not None


def said(log: list[structlog.typing.EventDict]) -> list[object]:
    return [line["event"] for line in log]


@pytest.fixture
async def seen(server: StubApi, api: ApiClient) -> AsyncIterator[Seen]:
    """An observer of a Deployment that asks for one pod and has none."""
    await server.put(deployment(1))
    backend = KubernetesBackend(api, Endpoint("vllm-svc", 80), unschedulable_seconds=0.3, pace=QUICK)
    seen = Seen()
    watching = asyncio.create_task(backend.watch(REF, seen))
    await seen.until(at(Stage.REQUESTED), seconds=5)
    yield seen
    watching.cancel()
    await asyncio.wait([watching])
    assert watching.cancelled()


def paths(server: StubApi, collection: str) -> list[str]:
    return [request.path for request in server.requests if request.path.endswith(f"/{collection}")]


async def test_a_start_is_told_stage_by_stage_and_each_stage_once(server: StubApi, seen: Seen) -> None:
    steps: list[tuple[Json, Callable[[Observation], bool]]] = [
        (UNSCHEDULED, at(Stage.SCHEDULING, NO_GPU[:-1])),
        (pod(), at(Stage.CREATING)),
        (event("Pulling", PULL), at(Stage.PULLING, PULL)),
        (event("Pulled", "Successfully pulled", "second"), at(Stage.CREATING)),
        (CREATING, lambda seen: seen.members[0].endpoint == THERE),
        (RUNNING, at(Stage.STARTING)),
        (READY, lambda seen: bool(seen.endpoints)),
    ]
    for item, holds in steps:
        await server.put(item)
        await seen.until(holds, seconds=5)
    stages = [told.progress.stage for told in seen.observations if told.progress is not None]
    assert [stage.name for stage in stages] == [
        "REQUESTED", "SCHEDULING", "CREATING", "PULLING", "CREATING", "CREATING", "STARTING", "ANSWERING",
    ]  # fmt: skip
    assert seen.last is not None
    assert seen.last.members == (Replica(POD, THERE, True, Progress(Stage.ANSWERING)),)
    assert seen.losses == []


async def test_events_are_watched_only_while_a_pod_is_made(server: StubApi, seen: Seen) -> None:
    await server.put(UNSCHEDULED)
    await seen.until(at(Stage.SCHEDULING, NO_GPU[:-1]))
    assert paths(server, "events") == []
    await server.put(CREATING)
    await server.put(event("Pulling", PULL))
    await seen.until(at(Stage.PULLING, PULL))
    await server.until_asked("watch", 3)
    [listed, watched] = [request for request in server.requests if request.path.endswith("/events")]
    assert listed.path == watched.path == "/api/v1/namespaces/ai-apps/events"
    assert listed.query["fieldSelector"] == "involvedObject.kind=Pod"
    await server.put(RUNNING)
    async with asyncio.timeout(5):
        await server.left.wait()
    await server.put(event("Pulling", PULL, "second"))
    await server.put(READY)
    await seen.until(at(Stage.ANSWERING))
    assert len(paths(server, "events")) == 2


async def test_who_does_not_explain_starts_looks_for_no_events_and_no_logs(server: StubApi, api: ApiClient) -> None:
    seen = Seen()
    backend = KubernetesBackend(api, Endpoint("vllm-svc", 80), pace=QUICK, explains=False)
    await server.put(deployment(1))
    watching = asyncio.create_task(backend.watch(REF, seen))
    await server.put(CREATING)
    await seen.until(at(Stage.CREATING))
    await server.put(waiting("CrashLoopBackOff", restarts=3))
    await seen.until(lambda told: told.failure is not None)
    assert paths(server, "events") == paths(server, "log") == []
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_pull_that_began_before_the_watch_is_seen(server: StubApi, seen: Seen) -> None:
    await server.put(event("Pulling", PULL))
    await server.put(event("Pulling", PULL, "another", "vllm-abc-2"))
    await server.put(CREATING)
    await seen.until(at(Stage.PULLING, PULL))


async def test_without_the_right_to_events_a_pull_is_creating_and_one_line_says_so(server: StubApi, seen: Seen) -> None:
    server.forbidden = {"events"}
    with structlog.testing.capture_logs() as log:
        await server.put(event("Pulling", PULL))
        for _ in range(2):
            await server.put(CREATING)
            await seen.until(at(Stage.CREATING))
            await asyncio.sleep(0.1)
            await server.put(RUNNING)
            await seen.until(at(Stage.STARTING))
    assert said(log) == ["pulls of images are not told apart from the making of a container"]
    assert len(paths(server, "events")) == 2
    assert seen.losses == []


async def test_no_room_is_given_up_when_its_time_is_over_though_nothing_happens(server: StubApi, seen: Seen) -> None:
    await server.put(UNSCHEDULED)
    await seen.until(at(Stage.SCHEDULING, NO_GPU[:-1]))
    begun = asyncio.get_running_loop().time()
    failed = await seen.until(has_failed, seconds=5)
    assert 0.2 < asyncio.get_running_loop().time() - begun < 2
    assert failed.failure is not None
    assert "no node has had room for it for 0.3 s: 0/1 nodes are available" in failed.failure


async def test_a_node_that_comes_in_time_is_no_failure(server: StubApi, seen: Seen) -> None:
    await server.put(UNSCHEDULED)
    await seen.until(at(Stage.SCHEDULING, NO_GPU[:-1]))
    await server.put(RUNNING)
    await asyncio.sleep(0.5)
    assert not [told for told in seen.observations if told.failure is not None]


async def test_a_crash_loop_is_told_once_with_the_end_of_its_log(server: StubApi, seen: Seen) -> None:
    server.logs[POD] = b"".join(b"line %d\n" % i for i in range(100)) + b"\x1b[31mCUDA out of memory\x1b[0m\n"
    await server.put(waiting("CrashLoopBackOff", restarts=1))
    await seen.until(at(Stage.STARTING, "container vllm ended with exit code 1"))
    assert server.count["log"] == 0
    await server.put(waiting("CrashLoopBackOff", restarts=2))
    failed = await seen.until(has_failed, seconds=5)
    assert failed.failure is not None
    assert failed.failure.endswith("was restarted 2 times; its last output was: " + "\n".join(
        [*(f"line {i}" for i in range(81, 100)), "CUDA out of memory"]
    ))  # fmt: skip
    [request] = [request for request in server.requests if request.path.endswith("/log")]
    assert request.path == f"/api/v1/namespaces/ai-apps/pods/{POD}/log"
    assert dict(request.query) == {
        "container": "vllm", "previous": "true", "tailLines": "20", "limitBytes": "65536",
    }  # fmt: skip
    await server.put({**waiting("CrashLoopBackOff", restarts=2), "again": True})
    await server.put(waiting("CrashLoopBackOff", restarts=3))
    await seen.until(lambda told: "restarted 3 times" in (told.failure or ""))
    assert server.count["log"] == 2
    assert [told.failure is None for told in seen.observations if told.failure or told.live].count(False) == 2


async def test_a_long_log_is_cut_at_its_beginning(server: StubApi, seen: Seen) -> None:
    server.logs[POD] = b"x" * 10000 + b" CUDA out of memory"
    await server.put(waiting("CrashLoopBackOff", restarts=2))
    failed = await seen.until(has_failed, seconds=5)
    assert failed.failure is not None
    assert failed.failure.endswith("xxx CUDA out of memory")
    assert len(failed.failure) < 2500


async def test_without_the_right_to_logs_a_crash_loop_says_how_to_look(server: StubApi, seen: Seen) -> None:
    server.forbidden = {"log"}
    with structlog.testing.capture_logs() as log:
        for restarts in (2, 3):
            await server.put(waiting("CrashLoopBackOff", restarts=restarts))
            failed = await seen.until(lambda told, n=restarts: f"{n} times" in (told.failure or ""), seconds=5)  # type: ignore[misc]
            assert failed.failure is not None
            assert f"see `kubectl logs -n ai-apps {POD} -c vllm --previous`" in failed.failure
    assert said(log) == ["a crash is told without the last lines of its log"]
    assert seen.losses == []


async def test_a_log_that_does_not_come_delays_the_cause_for_two_seconds(server: StubApi, seen: Seen) -> None:
    await server.put(waiting("CrashLoopBackOff", restarts=1))
    await seen.until(at(Stage.STARTING, "container vllm ended with exit code 1"))
    server.delay = 30
    begun = asyncio.get_running_loop().time()
    await server.put(waiting("CrashLoopBackOff", restarts=2))
    failed = await seen.until(has_failed, seconds=5)
    assert failed.failure is not None
    assert "kubectl logs" in failed.failure
    assert asyncio.get_running_loop().time() - begun < 3


async def test_a_crash_beside_a_pod_that_serves_is_not_looked_into(server: StubApi, seen: Seen) -> None:
    crashing = waiting("CrashLoopBackOff", restarts=5)
    await server.put({**READY, "metadata": {**READY["metadata"], "name": "vllm-abc-2"}})
    await server.put(crashing)
    await seen.until(lambda told: told.live == 2)
    assert server.count["log"] == 0


async def test_what_is_looked_for_ends_with_the_watch(server: StubApi, seen: Seen) -> None:
    await server.put(CREATING)
    await server.until_asked("watch", 3)
    await server.put(deployment(0))
    await seen.until(lambda told: told.replicas == 0)
    async with asyncio.timeout(5):
        await server.left.wait()
