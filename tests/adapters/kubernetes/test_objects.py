"""The object store on the wire: what it asks, and what it makes of errors. tests/cluster holds it to the contract."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from tests.adapters.objects_contract import SeenObjects
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.objects import KubernetesObjects
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.objects import Collection
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable

MODELS = Collection("vllm.sir-alfred.io/v1alpha1", "VLLMModel", "models", absent="install it")
DEPLOYMENTS = Collection("apps/v1", "Deployment", "deployments", "ai-apps")
ITEM: Json = {"kind": "Deployment", "metadata": {"name": "a"}}


@pytest.fixture
def store(api: ApiClient) -> KubernetesObjects:
    return KubernetesObjects(api, Pace(pause_first_seconds=0.01))


@pytest.mark.parametrize(("dry_run", "more"), [(False, {}), (True, {"dryRun": "All"})])
async def test_an_apply_is_forced_and_says_whose_it_is(
    dry_run: bool, more: dict[str, str], server: StubApi, store: KubernetesObjects
) -> None:
    server.refusals = [(200, ITEM | {"metadata": {"name": "a", "managedFields": [1]}})]
    assert await store.apply(DEPLOYMENTS, ITEM, dry_run=dry_run) == ITEM
    request = server.requests[-1]
    assert (request.method, request.content_type) == ("PATCH", "application/apply-patch+yaml")
    assert request.path == "/apis/apps/v1/namespaces/ai-apps/deployments/a"
    assert dict(request.query) == {"fieldManager": "vllm-chill", "force": "true", **more}


async def test_a_status_is_patched_apart(server: StubApi, store: KubernetesObjects) -> None:
    server.refusals = [(200, ITEM)]
    await store.patch_status(MODELS, "a", {"phase": "Ready"})
    assert server.requests[-1].path == "/apis/vllm.sir-alfred.io/v1alpha1/models/a/status"
    assert await server.requests[-1].json() == {"status": {"phase": "Ready"}}


async def test_a_deletion_names_the_one_that_is_meant(server: StubApi, store: KubernetesObjects) -> None:
    server.refusals = [(200, {}), (409, status(409, "uid differs")), (404, status(404, "not there"))]
    for _ in range(3):
        await store.delete(DEPLOYMENTS, "a", "uid-1")
    body = await server.requests[-1].json()
    assert body["preconditions"] == {"uid": "uid-1"}
    assert body["propagationPolicy"] == "Background"


@pytest.mark.parametrize(
    ("code", "message", "kind", "words"),
    [
        (401, "no", BackendUnavailable, "does not accept the credentials"),
        (
            403,
            'User "x" cannot patch resource "deployments"',
            BackendRefused,
            "deploy/models and deploy/policies",
        ),
        (403, "exceeded quota: pods", BackendRefused, r"\(403\): exceeded quota: pods"),
        (404, 'namespaces "ai-apps" not found', BackendRefused, 'namespaces "ai-apps" not found'),
        (409, "it has been modified", BackendConflict, "just now: it has been modified"),
        (422, "spec.replicas: bad", BackendRefused, r"\(422\): spec.replicas: bad"),
        (429, "slow down", BackendUnavailable, "try again"),
        (500, "etcd is away.", BackendUnavailable, r"\(500\): etcd is away; try again"),
    ],
)
async def test_an_error_says_what_could_not_be_done_and_why(
    code: int, message: str, kind: type[BackendError], words: str, server: StubApi, store: KubernetesObjects
) -> None:
    server.refusals = [(code, status(code, message))] * 2
    with pytest.raises(kind, match=words) as raised:
        await store.apply(DEPLOYMENTS, ITEM)
    assert code == 401 or "Deployment ai-apps/a" in raised.value.message


async def test_a_server_that_is_silent_is_unavailable(server: StubApi, store: KubernetesObjects) -> None:
    server.delay = 5
    with pytest.raises(BackendUnavailable, match="did not answer within 2 s"):
        await store.get(DEPLOYMENTS, "a")


async def test_an_event_of_a_cluster_wide_object_is_in_the_namespace_default(
    server: StubApi, store: KubernetesObjects
) -> None:
    about = {"apiVersion": "a/v1", "kind": "VLLMModel", "metadata": {"name": "a", "uid": "1"}}
    server.refusals = [(404, status(404, "no")), (201, {})]
    await store.record(about, "Drift", "x" * 5000, warning=True)
    request = server.requests[-1]
    event = await request.json()
    assert (request.method, request.path) == ("POST", "/api/v1/namespaces/default/events")
    assert "namespace" not in event["involvedObject"]
    assert (event["type"], event["count"], len(event["message"])) == ("Warning", 1, 1024)


async def test_a_watch_that_lacks_the_kind_says_what_to_do(server: StubApi, store: KubernetesObjects) -> None:
    server.refusals = [(404, status(404, "the server could not find the requested resource"))]
    seen = SeenObjects()
    watching = asyncio.create_task(store.watch(MODELS, seen))
    await seen.until(lambda objects: objects == {})
    assert seen.losses == ["the API server does not know models of vllm.sir-alfred.io/v1alpha1: install it"]
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_watch_without_the_right_says_which(server: StubApi, store: KubernetesObjects) -> None:
    server.refusals = [(403, status(403, 'User "x" cannot list resource "models"'))]
    seen = SeenObjects()
    watching = asyncio.create_task(store.watch(MODELS, seen))
    await seen.until(lambda objects: objects == {})
    assert seen.losses[0].startswith('User "x" cannot list resource "models"; grant it that right')
    watching.cancel()
    await asyncio.wait([watching])


@pytest.mark.parametrize("only", [True, False])
async def test_metadata_is_asked_for_where_that_is_all(only: bool, server: StubApi, store: KubernetesObjects) -> None:
    await server.put(ITEM)
    seen = SeenObjects()
    watching = asyncio.create_task(store.watch(replace(DEPLOYMENTS, metadata_only=only), seen))
    await seen.until(lambda objects: "a" in objects)
    await server.until_asked("watch")
    asked = [request.headers["Accept"] for request in server.requests]
    form = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"
    assert asked == ([form.format("List"), form.format("")] if only else ["application/json"] * 2)
    watching.cancel()
    await asyncio.wait([watching])
