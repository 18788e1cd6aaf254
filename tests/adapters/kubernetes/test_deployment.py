from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.adapters.contract import Seen
from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.target import STATEFUL_SETS, Endpoint, Observation, Progress, Stage, TargetRef
from vllm_chill.errors import BackendRefused, BackendUnavailable

REF = TargetRef("ai-apps", "vllm")
ASKED_FOR = Observation(1, 0, progress=Progress(Stage.REQUESTED))
QUICK = Pace(pause_first_seconds=0.02, pause_most_seconds=0.1)


def deployment(replicas: int = 0) -> Json:
    return {
        "metadata": {"name": "vllm"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "vllm"}}},
    }


@pytest.fixture
def backend(api: ApiClient) -> KubernetesBackend:
    return KubernetesBackend(api, Endpoint("vllm-svc", 80), pace=QUICK, seen_seconds=0.4)


@pytest.fixture
async def seen(server: StubApi, backend: KubernetesBackend) -> AsyncIterator[Seen]:
    """An observer of a Deployment that exists and is asleep.

    The stub has one collection at every path; the Deployment itself is no pod of its own and is left out of them.
    """
    await server.put(deployment())
    seen = Seen()
    watching = asyncio.create_task(backend.watch(REF, seen))
    await seen.until(lambda _: True)
    await server.until_asked("watch", 2)
    yield seen
    watching.cancel()
    await asyncio.wait([watching])
    assert watching.cancelled()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (401, BackendUnavailable, "does not accept the credentials"),
        (403, BackendRefused, 'grant the verb "patch" on "deployments/scale"'),
        (404, BackendRefused, "Deployment ai-apps/vllm does not exist: create it, or set --deployment and --namespace"),
        (408, BackendUnavailable, "try again"),
        (409, BackendUnavailable, "try again"),
        (422, BackendRefused, "refuses to scale Deployment ai-apps/vllm (422): because"),
        (429, BackendUnavailable, "try again"),
        (500, BackendUnavailable, "could not scale Deployment ai-apps/vllm (500): because; try again"),
        (504, BackendUnavailable, "try again"),
    ],
)
async def test_a_write_that_fails_says_what_to_do(
    code: int, kind: type[Exception], words: str, server: StubApi, backend: KubernetesBackend
) -> None:
    server.refusals = [(code, status(code, "because."))] * 2
    with pytest.raises(kind) as error:
        await backend.scale(REF, 1)
    assert words in str(error.value)


async def test_a_write_without_a_watch_is_done_when_it_is_taken(server: StubApi, backend: KubernetesBackend) -> None:
    await server.put(deployment())
    await backend.scale(REF, 1)
    assert server.objects["vllm"]["spec"]["replicas"] == 1


async def test_a_write_is_one_request_and_is_seen(server: StubApi, backend: KubernetesBackend, seen: Seen) -> None:
    before = len(server.requests)
    await backend.scale(REF, 1)
    assert seen.last == ASKED_FOR
    [request] = server.requests[before:]
    assert request.method == "PATCH"
    assert request.path == "/apis/apps/v1/namespaces/ai-apps/deployments/vllm/scale"
    assert request.content_type == "application/merge-patch+json"


async def test_of_two_who_write_over_the_same_number_one_does(
    server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    await server.put(deployment(3))
    with pytest.raises(BackendUnavailable, match="has been modified; try again"):
        await backend.scale(REF, 1)
    assert server.objects["vllm"]["spec"]["replicas"] == 3
    await seen.until(lambda o: o.replicas == 3)
    await backend.scale(REF, 1)
    assert server.objects["vllm"]["spec"]["replicas"] == 1


async def test_a_change_of_something_else_than_the_number_is_no_conflict(
    server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    await server.put({**deployment(), "status": {"replicas": 0}})
    await backend.scale(REF, 1)
    assert seen.last == ASKED_FOR


async def test_a_write_that_the_watch_does_not_tell_of_is_looked_for(
    server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    server.last_script = silent
    server.cut()
    await server.until_asked("watch", 4)
    await backend.scale(REF, 1)
    assert seen.last == ASKED_FOR
    assert seen.losses == []


async def test_a_write_that_is_never_seen_is_unavailable(
    server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    server.last_script = silent
    server.cut()
    await server.until_asked("watch", 4)
    scaling = asyncio.create_task(backend.scale(REF, 1))
    await server.until_asked("write")
    server.delay = 5
    with pytest.raises(BackendUnavailable, match=r"was not seen in the watch within 0\.4 s"):
        await scaling


@pytest.mark.parametrize("code", [403, 404])
async def test_what_a_server_that_has_just_begun_does_not_allow_it_may_allow_in_a_moment(
    code: int, server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    server.refusals = [(503, status(503, "starting"))] * 3
    server.cut()
    await seen.until_lost()
    while server.refusals:
        await server.until_asked("list", server.count["list"] + 1)
    if code == 403:
        server.forbidden = {"scale"}
    else:
        await server.delete("vllm")
    with pytest.raises(BackendUnavailable, match="cannot write scale" if code == 403 else "does not exist"):
        await backend.scale(REF, 1)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"<html>", b'{"metadata": {"resourceVersion": "x"}}'])
async def test_a_write_whose_answer_is_nonsense_is_unavailable(
    body: bytes, server: StubApi, backend: KubernetesBackend
) -> None:
    server.refusals = [(200, body)]
    with pytest.raises(BackendUnavailable):
        await backend.scale(REF, 1)


async def test_a_write_is_not_tried_again_before_the_server_says_so(
    server: StubApi, backend: KubernetesBackend
) -> None:
    server.refusals, server.retry_after = [(429, status(429, "too many"))], "7"
    with pytest.raises(BackendUnavailable) as refused:
        await backend.scale(REF, 1)
    assert refused.value.retry_after_seconds == 7


async def test_caught_up_it_has_told_what_a_silent_watch_does_not(
    server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    server.last_script = silent
    server.cut()
    await server.until_asked("watch", 4)
    await server.put(deployment(1))
    await backend.catch_up(REF)
    assert seen.last == ASKED_FOR
    assert seen.losses == []


async def test_caught_up_with_a_watch_that_lives_it_costs_one_call(
    server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    before = len(server.requests)
    await backend.catch_up(REF)
    assert [(request.method, request.path.split("/")[-1]) for request in server.requests[before:]] == [
        ("GET", "deployments")
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (503, "no replica of Deployment ai-apps/vllm is taken away while .*: the API server answered 503"),
        (401, "no replica of Deployment ai-apps/vllm is taken away while .*: the API server does not accept"),
    ],
)
async def test_a_server_that_cannot_be_asked_cannot_be_caught_up_with(
    code: int, words: str, server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    server.refusals = [(code, status(code, "because."))] * 2
    with pytest.raises(BackendUnavailable, match=words):
        await backend.catch_up(REF)


async def test_an_outage_is_lost_once_and_then_observed_again(server: StubApi, seen: Seen) -> None:
    told = len(seen.observations)
    server.refusals = [(503, status(503, "starting"))] * 6
    server.cut()
    await seen.until(lambda _: len(seen.observations) > told)
    assert seen.losses == ["the API server answered 503: starting"]
    assert seen.last == Observation(0, 0)


async def test_the_observer_is_not_told_twice_of_the_same(server: StubApi, seen: Seen) -> None:
    await server.put(deployment())
    await server.put(deployment(1))
    await seen.until(lambda o: o.replicas == 1)
    assert seen.observations == [Observation(0, 0), ASKED_FOR]


async def silent(request: object, response: object) -> None:
    await asyncio.Event().wait()


async def test_who_else_set_the_number_is_told_with_it(server: StubApi, backend: KubernetesBackend, seen: Seen) -> None:
    theirs = {"manager": "kube-controller-manager", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    for replicas, manager in [(2, "kube-controller-manager"), (3, "vllm-chill"), (0, "keda")]:
        item = deployment(replicas)
        item["metadata"]["managedFields"] = [theirs | {"manager": manager}]
        await server.put(item)
        told = await seen.until(lambda o, n=replicas: o.replicas == n)  # type: ignore[misc]
        assert told.replicas_by == (None if manager == "vllm-chill" else manager)


async def test_a_write_says_whose_it_is(server: StubApi, backend: KubernetesBackend) -> None:
    await server.put(deployment())
    await backend.scale(REF, 1)
    assert dict(server.requests[-1].query) == {"fieldManager": "vllm-chill"}


async def test_a_stateful_set_is_watched_and_scaled_by_its_own_paths(
    server: StubApi, backend: KubernetesBackend
) -> None:
    ref, seen = TargetRef("ai-apps", "vllm", STATEFUL_SETS), Seen()
    watching = asyncio.create_task(backend.watch(ref, seen))
    await seen.until(lambda o: o.failure == "StatefulSet ai-apps/vllm does not exist: create it")
    await server.put({**deployment(), "kind": "StatefulSet"})
    await seen.until(lambda o: o == Observation(0, 0))
    await backend.scale(ref, 1)
    assert seen.last == ASKED_FOR
    owner = {"kind": "StatefulSet", "name": "vllm", "controller": True}
    metadata = {"name": "vllm-0", "labels": {"app": "vllm"}, "ownerReferences": [owner]}
    await server.put({"kind": "Pod", "metadata": metadata})
    assert (await seen.until(lambda o: o.live == 1)).members[0].name == "vllm-0"
    collection = "/apis/apps/v1/namespaces/ai-apps/statefulsets"
    paths = {request.path for request in server.requests}
    assert paths == {collection, f"{collection}/vllm/scale", "/api/v1/namespaces/ai-apps/pods"}
    server.refusals = [(403, status(403, "no."))]
    with pytest.raises(BackendRefused, match=r'"patch" on "statefulsets/scale" \(deploy/policies/rbac.yaml'):
        await backend.scale(ref, 2)
    watching.cancel()
    await asyncio.wait([watching])


async def test_the_gpus_of_the_next_pod_are_known_while_it_is_seen(
    server: StubApi, backend: KubernetesBackend, seen: Seen
) -> None:
    assert backend.gpus(REF) is None
    container = {"name": "vllm", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
    changed = deployment(1)
    changed["spec"]["template"] = {"spec": {"containers": [container]}}
    await server.put(changed)
    await seen.until(lambda observation: observation.replicas == 1)
    assert backend.gpus(REF) == 8
    assert backend.gpus(TargetRef("ai-apps", "other")) is None
