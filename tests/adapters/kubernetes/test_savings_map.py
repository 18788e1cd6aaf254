"""What a ConfigMap on an API server is read from and written as, and what its refusals mean."""

from __future__ import annotations

import pytest

from tests.adapters.kubernetes.stub_api import StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient, Json
from vllm_chill.adapters.kubernetes.savings_map import SavingsMap, map_name
from vllm_chill.core.savings_ledger import KeptText
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable

PATH = "/api/v1/namespaces/ns/configmaps"
KEPT = KeptText("1", "7")


def config_map(**data: str) -> Json:
    return {"metadata": {"name": "vllm-chill-savings", "resourceVersion": "7"}, "data": data}


@pytest.fixture
def store(api: ApiClient) -> SavingsMap:
    return SavingsMap(api, "ns", map_name("vllm-chill"))


async def test_it_is_read_where_it_is(server: StubApi, store: SavingsMap) -> None:
    server.refusals = [(200, config_map(**{"savings.json": "1", "theirs": "2"}))]
    assert await store.read() == KEPT
    assert server.requests[0].path == f"{PATH}/vllm-chill-savings"


@pytest.mark.parametrize("item", [config_map(theirs="2"), {"metadata": config_map()["metadata"]}])
async def test_one_with_nothing_in_it_says_nothing(server: StubApi, store: SavingsMap, item: Json) -> None:
    server.refusals = [(200, item)]
    assert await store.read() == KeptText("", "7")


async def test_it_is_made_and_then_changed_over_what_was_read(server: StubApi, store: SavingsMap) -> None:
    server.refusals = [(201, config_map(**{"savings.json": "1"})), (200, config_map(**{"savings.json": "2"}))]
    await store.write("1", None)
    await store.write("2", KEPT)
    made, changed = server.requests
    assert (made.method, made.path) == ("POST", PATH)
    assert await made.json() == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "vllm-chill-savings", "namespace": "ns"},
        "data": {"savings.json": "1"},
    }
    assert (changed.method, changed.path) == ("PATCH", f"{PATH}/vllm-chill-savings")
    assert changed.content_type == "application/merge-patch+json"
    assert await changed.json() == {"metadata": {"resourceVersion": "7"}, "data": {"savings.json": "2"}}


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (409, BackendConflict, "the ConfigMap ns/vllm-chill-savings is another by now: said"),
        (404, BackendConflict, "the ConfigMap ns/vllm-chill-savings is gone"),
        (401, BackendUnavailable, "does not accept the credentials: said; log in again, or renew them"),
        (403, BackendRefused, 'cannot be used: said; grant "get", "create" and "patch" on configmaps in the namespace'),
        (422, BackendRefused, r"the API server does not update the ConfigMap ns/vllm-chill-savings \(422\): said"),
        (429, BackendUnavailable, r"the API server does not update the ConfigMap ns/vllm-chill-savings \(429\): said"),
        (500, BackendUnavailable, r"the API server does not update the ConfigMap ns/vllm-chill-savings \(500\): said"),
    ],
)
async def test_a_refused_write_says_what_to_do(
    server: StubApi, store: SavingsMap, code: int, kind: type[BackendError], message: str
) -> None:
    server.refusals = [(code, status(code, "said."))] * 2
    with pytest.raises(kind, match=message) as raised:
        await store.write("2", KEPT)
    assert type(raised.value) is kind


async def test_one_that_is_not_there_is_none(server: StubApi, store: SavingsMap) -> None:
    server.refusals = [(404, status(404, "not found"))]
    assert await store.read() is None


async def test_one_in_a_namespace_that_is_not_there_cannot_be_made(server: StubApi, store: SavingsMap) -> None:
    server.refusals = [(404, status(404, 'namespaces "ns" not found'))]
    with pytest.raises(BackendRefused, match=r'does not create .* \(404\): namespaces "ns" not found'):
        await store.write("1", None)


@pytest.mark.parametrize("answer", [{}, {"metadata": {"resourceVersion": "8"}}, config_map(**{"savings.json": "1"})])
async def test_it_is_kept_only_if_the_answer_says_so(server: StubApi, store: SavingsMap, answer: Json) -> None:
    server.refusals = [(200, answer), (201, answer)]
    for before in (KEPT, None):
        with pytest.raises(BackendUnavailable, match="something that is not the ConfigMap ns/vllm-chill-savings"):
            await store.write("2", before)


async def test_a_server_that_is_away_or_is_none_is_unavailable(server: StubApi, store: SavingsMap) -> None:
    server.refusals = [(200, {"hello": "world"})]
    with pytest.raises(BackendUnavailable, match="is it a Kubernetes API server"):
        await store.read()
    await server.stop()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await store.read()
