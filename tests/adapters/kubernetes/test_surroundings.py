"""How a cluster is looked at: what is asked for, and what comes of a no."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.adapters.kubernetes.conftest import Fixed
from tests.adapters.kubernetes.scripted_api import REVIEWS, Scripted, of
from tests.core.doctor.world import ASKED, manifest, merged
from vllm_chill.adapters.engine_access import PLAIN
from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Unreachable
from vllm_chill.adapters.kubernetes.surroundings import Surroundings, server_of
from vllm_chill.core.doctor.finding import Unseen
from vllm_chill.core.doctor.picture import Picture, Rights

TARGET = merged(
    manifest("example/deployment.yaml"),
    {"spec": {"template": {"spec": {"imagePullSecrets": [{"name": "login"}], "serviceAccountName": "engine"}}}},
)


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    async with scripted.listening():
        yield scripted


@pytest.fixture
async def api(scripted: Scripted, session: aiohttp.ClientSession) -> ApiClient:
    credentials = Fixed(scripted.url)
    return ApiClient(session, credentials, await credentials.load(), call_seconds=2)


async def look(api: ApiClient, account: str | None = None, asked: Any = ASKED) -> Picture:
    around = Surroundings(api, "ai-apps")
    return await around.picture(asked, await server_of(api), await around.deployments(), account, PLAIN)


async def test_a_server_is_told_with_its_version_and_clock(scripted: Scripted, api: ApiClient) -> None:
    server = await server_of(api)
    assert (server.url, server.version) == (api.server, "v1.33.1")
    assert server.ahead_seconds is not None
    assert abs(server.ahead_seconds) < 5
    scripted.statuses["/version"] = 401
    with pytest.raises(ApiError):
        await server_of(api)


async def test_something_else_than_a_cluster_is_not_understood(scripted: Scripted, api: ApiClient) -> None:
    scripted.objects["/version"] = []
    assert (await server_of(api)).version == ""
    scripted.objects["/version"] = "<html>"
    with pytest.raises(Unreachable, match="no version"):
        await server_of(api)


async def test_kinds_that_the_server_does_not_know_have_no_objects(api: ApiClient) -> None:
    picture = await look(api)
    assert (picture.target, picture.scaled_objects, picture.variants, picture.budgets) == (None, (), (), ())


async def test_what_is_forbidden_is_told_with_the_right_that_it_needs(scripted: Scripted, api: ApiClient) -> None:
    scripted.objects[of("deployments")] = {"items": [TARGET]}
    scripted.statuses |= {of("services", "v1"): 403, "/api/v1/nodes": 403, of("ingresses", "networking.k8s.io/v1"): 500}
    picture = await look(api)
    assert picture.target == TARGET
    assert picture.services == Unseen("needs the right to list services")
    assert picture.nodes == Unseen("needs the right to list nodes cluster-wide")
    assert picture.ingresses == Unseen("the API server answers 500: it is 500")


async def test_a_kind_that_is_not_there_is_not_asked_for(scripted: Scripted, api: ApiClient) -> None:
    scripted.statuses |= {
        of("scaledobjects", "keda.sh/v1alpha1"): 403,
        of("networkpolicies", "networking.k8s.io/v1"): 403,
    }
    assert isinstance((await look(api)).scaled_objects, Unseen)
    scripted.objects["/apis"] = {"groups": [{"name": "networking.k8s.io"}]}
    picture = await look(api)
    assert picture.scaled_objects == ()
    assert isinstance(picture.network_policies, Unseen)


async def test_of_secrets_nothing_is_read_but_that_they_are_there(scripted: Scripted, api: ApiClient) -> None:
    scripted.objects[of("deployments")] = {"items": [TARGET]}
    scripted.objects[of("secrets/login", "v1")] = {"metadata": {"name": "login"}}
    picture = await look(api)
    assert picture.secrets == {"login": {"metadata": {"name": "login"}}}
    assert picture.accounts == {"engine": None}
    accepted = [accept for path, accept in scripted.accepted.items() if "/secrets" in path]
    assert accepted
    assert all("PartialObjectMetadata" in accept for accept in accepted)


async def test_before_policy_v1_its_beta_is_asked(scripted: Scripted, api: ApiClient) -> None:
    scripted.objects[of("poddisruptionbudgets", "policy/v1beta1")] = {"items": [{"metadata": {"name": "b"}}]}
    assert (await look(api)).budgets == ({"metadata": {"name": "b"}},)
    scripted.objects[of("poddisruptionbudgets", "policy/v1")] = {"items": []}
    assert (await look(api)).budgets == ()


async def test_rights_are_asked_for_oneself_or_for_an_account(scripted: Scripted, api: ApiClient) -> None:
    scripted.denied = {"pods"}
    rights = (await look(api)).rights
    assert isinstance(rights, Rights)
    assert {need.resource for need in rights.missing} == {"pods", "pods/log"}
    assert rights.subject == "whoever asks"
    assert {review["kind"] for review in scripted.reviews} == {"SelfSubjectAccessReview"}
    scripted.reviews.clear()
    rights = (await look(api, "ai-apps/chill")).rights
    assert isinstance(rights, Rights)
    assert rights.subject == "ServiceAccount ai-apps/chill"
    assert {review["spec"]["user"] for review in scripted.reviews} == {"system:serviceaccount:ai-apps:chill"}


async def test_who_may_not_ask_for_others_asks_for_itself(scripted: Scripted, api: ApiClient) -> None:
    scripted.statuses[f"{REVIEWS}/subjectaccessreviews"] = 403
    rights = (await look(api, "ai-apps/chill")).rights
    assert isinstance(rights, Rights)
    assert rights.subject == "whoever asks"
    scripted.statuses[f"{REVIEWS}/selfsubjectaccessreviews"] = 403
    assert (await look(api)).rights == Unseen("the API server does not say which rights are granted: it is 403")


async def test_rights_of_policies_count_for_who_may_see_policies(scripted: Scripted, api: ApiClient) -> None:
    scripted.denied = {"statefulsets"}
    rights = (await look(api)).rights
    assert isinstance(rights, Rights)
    assert {need.resource for need in rights.missing} == {"statefulsets", "statefulsets/scale"}
    assert all(need.optional for need in rights.missing)
    scripted.denied = {"vllmscalingpolicies", "statefulsets"}
    rights = (await look(api)).rights
    assert isinstance(rights, Rights)
    assert rights.missing == frozenset()
