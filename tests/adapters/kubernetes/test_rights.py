from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from tests.adapters.kubernetes.conftest import Fixed
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.peer_leases import RIGHTS as RIGHTS_OF_REPORTS
from vllm_chill.adapters.kubernetes.rights import (
    Right,
    missing_rights,
    rights_of_models,
    rights_of_peers,
    rights_of_policies,
)

RIGHTS = rights_of_models("ai-apps")
OF_POLICIES = rights_of_policies("ai-apps")
OF_PEERS = rights_of_peers("ai-apps")
DEPLOY = Path(__file__).parents[3] / "deploy"
Json = dict[str, Any]


class Reviewer:
    """An API server that reviews access: `lacking` says what is not granted."""

    def __init__(self) -> None:
        self.lacking: Callable[[Json], bool] = lambda attributes: False
        self.asked: list[Json] = []
        self.answer: web.Response | None = None
        self.connections: set[object] = set()

    async def review(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        if self.answer is not None:
            return self.answer
        attributes = (await request.json())["spec"]["resourceAttributes"]
        self.asked.append(attributes)
        return web.json_response({"status": {"allowed": not self.lacking(attributes)}}, status=201)


@pytest.fixture
def reviewer() -> Reviewer:
    return Reviewer()


@pytest.fixture
async def reviewed(reviewer: Reviewer, session: aiohttp.ClientSession) -> AsyncIterator[ApiClient]:
    app = web.Application()
    app.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", reviewer.review)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    credentials = Fixed(f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield ApiClient(session, credentials, await credentials.load(), call_seconds=2)
    await runner.cleanup()


async def test_with_all_rights_there_is_nothing_to_say(reviewer: Reviewer, reviewed: ApiClient) -> None:
    assert await missing_rights(reviewed, RIGHTS) == ()
    assert len(reviewer.asked) == len(RIGHTS)


async def test_a_proxy_opens_no_connection_for_each_right(reviewer: Reviewer, reviewed: ApiClient) -> None:
    await missing_rights(reviewed, RIGHTS)
    assert 1 <= len(reviewer.connections) <= 4 < len(RIGHTS)


async def test_each_missing_right_is_named_with_what_does_not_work(reviewer: Reviewer, reviewed: ApiClient) -> None:
    reviewer.lacking = lambda asked: (asked["verb"], asked["subresource"]) in {("patch", "scale"), ("patch", "status")}
    assert await missing_rights(reviewed, RIGHTS) == (
        'the right to "patch" "models/status" of vllm.sir-alfred.io cluster-wide is missing: '
        "a model's status is not told; deploy/models/rbac.yaml has it",
        'the right to "patch" "deployments/scale" of apps in the namespace ai-apps is missing: '
        "no model is woken or put to sleep; deploy/models/rbac.yaml has it",
    )
    assert {"namespace" in asked for asked in reviewer.asked} == {True, False}


async def test_what_cannot_be_told_is_said_once(reviewer: Reviewer, reviewed: ApiClient) -> None:
    reviewer.answer = web.json_response({"message": "etcd is away."}, status=500)
    assert await missing_rights(reviewed, RIGHTS[:1]) == ("whether all rights are granted is not known: etcd is away",)


async def test_a_server_that_does_not_answer_is_not_waited_for(session: aiohttp.ClientSession) -> None:
    credentials = Fixed("http://127.0.0.1:1")
    api = ApiClient(session, credentials, await credentials.load(), call_seconds=2)
    [said] = await missing_rights(api, RIGHTS)
    assert "cannot be reached" in said


def granted(component: str) -> Iterator[tuple[str, str, str, bool]]:
    """The verb, group and resource of each right that a component grants, and whether it is cluster-wide."""
    for item in yaml.safe_load_all((DEPLOY / component / "rbac.yaml").read_text()):
        for rule in item.get("rules", ()):
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield verb, rule["apiGroups"][0], resource, item["kind"] == "ClusterRole"


@pytest.mark.parametrize(("component", "rights"), [("models", RIGHTS), ("policies", OF_POLICIES)])
def test_the_manifest_grants_exactly_what_is_asked_for(component: str, rights: tuple[Right, ...]) -> None:
    asked = sorted((r.verb, r.group, r.resource, r.namespace is None) for r in rights)
    assert sorted(granted(component)) == asked
    assert {right.manifest for right in rights} == {f"deploy/{component}/rbac.yaml"}


def test_the_proxys_own_manifest_grants_exactly_the_leases_that_are_asked_for() -> None:
    found = [(verb, group, where) for verb, group, resource, where in granted("") if resource == "leases"]
    assert sorted(found) == sorted((r.verb, r.group, r.namespace is None) for r in OF_PEERS)
    assert {right.verb for right in OF_PEERS} == set(RIGHTS_OF_REPORTS)
    assert {right.manifest for right in OF_PEERS} == {"deploy/rbac.yaml"}


def test_without_the_right_to_leases_nothing_is_put_to_sleep() -> None:
    assert OF_PEERS[1].complaint == (
        'the right to "create" "leases" of coordination.k8s.io in the namespace ai-apps is missing: it puts nothing to '
        "sleep, as it cannot tell other proxies who is served here; deploy/rbac.yaml has it"
    )


@pytest.mark.parametrize("rights", [RIGHTS, OF_POLICIES, OF_PEERS])
def test_no_right_is_asked_for_twice(rights: tuple[Right, ...]) -> None:
    assert len({(right.verb, right.group, right.resource, right.namespace) for right in rights}) == len(rights)


def test_a_right_to_the_core_group_names_no_group() -> None:
    assert Right("list", "", "pods", "a", "b").complaint.startswith('the right to "list" "pods" in the namespace a is')
