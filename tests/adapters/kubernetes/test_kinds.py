from __future__ import annotations

import pytest

from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.kinds import KubernetesKinds
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Resource
from vllm_chill.errors import BackendRefused, BackendUnavailable


def resource(name: str, kind: str, *, namespaced: bool = True) -> Json:
    return {"name": name, "kind": kind, "namespaced": namespaced}


LISTED: Json = {
    "kind": "APIResourceList",
    "resources": [
        resource("engines/status", "Engine"),
        resource("engines", "Engine"),
        resource("engines/scale", "Scale"),
        resource("plans", "Plan"),
        resource("grids", "Grid", namespaced=False),
        resource("grids/scale", "Scale", namespaced=False),
    ],
}


@pytest.mark.parametrize(("api_version", "path"), [("x.io/v1", "/apis/x.io/v1"), ("v1", "/api/v1")])
async def test_a_kind_is_found_where_its_version_is_listed_and_asked_for_once(
    api_version: str, path: str, server: StubApi, api: ApiClient
) -> None:
    server.refusals = [(200, LISTED)]
    kinds = KubernetesKinds(api)
    found = [await kinds.find(api_version, "Engine") for _ in range(2)]
    assert found == [Resource(api_version.rpartition("/")[0], "v1", "engines", "Engine")] * 2
    assert [request.path for request in server.requests] == [path]


async def test_what_every_server_has_is_not_asked_for(server: StubApi, api: ApiClient) -> None:
    kinds = KubernetesKinds(api)
    assert await kinds.find("apps/v1", "Deployment") == DEPLOYMENTS
    assert await kinds.find("apps/v1", "StatefulSet") == STATEFUL_SETS
    assert server.requests == []


@pytest.mark.parametrize(
    ("code", "answer", "kind", "error", "words"),
    [
        (
            200,
            LISTED,
            "Rollout",
            BackendRefused,
            "does not know the kind Rollout of x.io/v1: correct",
        ),
        (200, LISTED, "Plan", BackendRefused, "Plan of x.io/v1 cannot be scaled: it has no scale subresource"),
        (200, LISTED, "Grid", BackendRefused, "Grid of x.io/v1 is cluster-wide"),
        (404, status(404, "not found"), "Engine", BackendRefused, "does not know the kind Engine of x.io/v1"),
        (503, status(503, "starting."), "Engine", BackendUnavailable, r"the kinds of x.io/v1 \(503\): starting$"),
    ],
)
async def test_what_is_not_found_says_why_and_is_asked_for_again(
    code: int, answer: Json, kind: str, error: type[Exception], words: str, server: StubApi, api: ApiClient
) -> None:
    kinds = KubernetesKinds(api)
    for asked in (1, 2):
        server.refusals = [(code, answer)]
        with pytest.raises(error, match=words):
            await kinds.find("x.io/v1", kind)
        assert len(server.requests) == asked


async def test_a_server_that_is_silent_is_unavailable(server: StubApi, api: ApiClient) -> None:
    server.delay = 5
    with pytest.raises(BackendUnavailable, match="did not answer within 2 s"):
        await KubernetesKinds(api).find("x.io/v1", "Engine")
