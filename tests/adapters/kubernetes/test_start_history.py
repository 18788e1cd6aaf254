from __future__ import annotations

import pytest
import structlog

from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.start_history import ANNOTATION, DeploymentHistory
from vllm_chill.core.target import TargetRef
from vllm_chill.ports import StartHistory

REF = TargetRef("ai-apps", "vllm")
DEPLOYMENT: Json = {"kind": "Deployment", "metadata": {"name": "vllm", "annotations": {"other": "1"}}, "spec": {}}


@pytest.fixture
def history(api: ApiClient) -> StartHistory:
    return DeploymentHistory(api)


async def test_what_was_saved_is_loaded(server: StubApi, history: StartHistory) -> None:
    await server.put(DEPLOYMENT)
    assert await history.load(REF) is None
    await history.save(REF, "1 2 3")
    assert await history.load(REF) == "1 2 3"
    assert server.objects["vllm"]["metadata"]["annotations"] == {"other": "1", ANNOTATION: "1 2 3"}


async def test_nothing_but_the_annotation_is_written(server: StubApi, history: StartHistory) -> None:
    await server.put(DEPLOYMENT)
    await history.save(REF, "1")
    request = server.requests[-1]
    assert (request.method, request.content_type) == ("PATCH", "application/merge-patch+json")
    assert request.path == "/apis/apps/v1/namespaces/ai-apps/deployments/vllm"
    assert await request.json() == {"metadata": {"annotations": {ANNOTATION: "1"}}}


async def test_a_deployment_that_is_not_there_has_no_history(server: StubApi, history: StartHistory) -> None:
    assert await history.load(REF) is None


async def test_what_fails_is_said_once_until_it_succeeds(server: StubApi, history: StartHistory) -> None:
    await server.put(DEPLOYMENT)
    refused = (403, status(403, "no right"))
    with structlog.testing.capture_logs() as log:
        server.refusals = [refused] * 4
        for _ in range(2):
            await history.save(REF, "1")
            assert await history.load(REF) is None
        await history.save(REF, "1")
        server.refusals = [refused]
        await history.save(REF, "2")
    assert [(line["event"], line["cause"]) for line in log] == [
        ("the history of starts is not kept", "no right"),
        ("the history of starts could not be read", "no right"),
        ("the history of starts is not kept", "no right"),
    ]
    assert await history.load(REF) == "1"


async def test_a_server_that_is_away_is_no_error(server: StubApi, history: StartHistory) -> None:
    await server.stop()
    await history.save(REF, "1")
    assert await history.load(REF) is None
