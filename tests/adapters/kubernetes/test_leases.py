"""What a Lease on an API server is read from and written as, and what its refusals mean."""

from __future__ import annotations

import pytest

from tests.adapters.kubernetes.stub_api import StubApi, status
from tests.adapters.lease_contract import RECORD
from vllm_chill.adapters.kubernetes.client import ApiClient, Json
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.core.election import Record, StoredLease
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable

META = {"name": "leader", "namespace": "ns", "resourceVersion": "7", "labels": {"theirs": "yes"}}
SPEC = {
    "holderIdentity": "a_1",
    "leaseDurationSeconds": 15,
    "acquireTime": "2026-01-01T12:00:00.000000Z",
    "renewTime": "2026-01-01T12:00:00.000001Z",
    "leaseTransitions": 3,
}


def lease(**spec: object) -> Json:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": META, "spec": SPEC | spec}


@pytest.fixture
def store(api: ApiClient) -> KubernetesLease:
    return KubernetesLease(api, "ns", "leader")


async def test_it_is_read_where_it_is(server: StubApi, store: KubernetesLease) -> None:
    server.refusals = [(200, lease())]
    assert await store.get() == StoredLease(RECORD, lease())
    assert server.requests[0].path == "/apis/coordination.k8s.io/v1/namespaces/ns/leases/leader"


@pytest.mark.parametrize("item", [{"metadata": META}, {"metadata": META, "spec": dict.fromkeys(SPEC)}])
async def test_a_lease_that_says_nothing_is_held_by_nobody(server: StubApi, store: KubernetesLease, item: Json) -> None:
    server.refusals = [(200, item)]
    found = await store.get()
    assert found is not None
    assert found.record == Record()


async def test_what_is_written_is_the_lease_as_it_was_read_with_another_record(
    server: StubApi, store: KubernetesLease
) -> None:
    server.refusals = [(200, lease(preferredHolder="b")), (200, lease(holderIdentity=None))]
    found = await store.get()
    assert found is not None
    await store.update(found, Record("", 1, "", "2026-01-01T12:00:02.000000Z", 3))
    request = server.requests[1]
    assert (request.method, request.path) == ("PUT", "/apis/coordination.k8s.io/v1/namespaces/ns/leases/leader")
    assert (await request.json())["metadata"] == META
    assert (await request.json())["spec"] == {
        "preferredHolder": "b",
        "leaseDurationSeconds": 1,
        "renewTime": "2026-01-01T12:00:02.000000Z",
        "leaseTransitions": 3,
    }


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (409, BackendConflict, "the Lease ns/leader is another by now: said"),
        (404, BackendConflict, "the Lease ns/leader is gone"),
        (401, BackendUnavailable, "does not accept the credentials: said; log in again, or renew them"),
        (403, BackendRefused, 'the Lease ns/leader cannot be used: said; grant "get", "create" and "update" on leases'),
        (422, BackendRefused, r"the API server does not update the Lease ns/leader \(422\): said"),
        (429, BackendUnavailable, "the API server does not update the Lease ns/leader just now: said"),
        (500, BackendUnavailable, r"the API server does not update the Lease ns/leader \(500\): said"),
    ],
)
async def test_a_refused_write_says_what_to_do(
    server: StubApi, store: KubernetesLease, code: int, kind: type[BackendError], message: str
) -> None:
    server.refusals = [(code, status(code, "said."))] * 2
    with pytest.raises(kind, match=message) as raised:
        await store.update(StoredLease(RECORD, lease()), RECORD)
    assert type(raised.value) is kind


async def test_a_lease_in_a_namespace_that_is_not_there_cannot_be_made(server: StubApi, store: KubernetesLease) -> None:
    server.refusals = [(404, status(404, 'namespaces "ns" not found'))]
    with pytest.raises(BackendRefused, match=r"cannot be made: .*; create the namespace, or name another"):
        await store.create(RECORD)


async def test_a_lease_that_is_not_there_is_none(server: StubApi, store: KubernetesLease) -> None:
    server.refusals = [(404, status(404, "not found"))]
    assert await store.get() is None


async def test_a_server_that_is_away_is_unavailable(server: StubApi, store: KubernetesLease) -> None:
    await server.stop()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await store.get()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await store.create(RECORD)


NOT_IT: list[Json] = [
    {},
    {"metadata": {"resourceVersion": "1"}, "items": []},
    {"metadata": META | {"name": "another"}, "spec": SPEC},
    {"metadata": META | {"resourceVersion": None}, "spec": SPEC},
]


@pytest.mark.parametrize("answer", NOT_IT)
async def test_what_is_not_the_lease_is_not_taken_for_one_that_nobody_holds(
    server: StubApi, store: KubernetesLease, answer: Json
) -> None:
    server.refusals = [(200, answer)]
    with pytest.raises(BackendUnavailable, match="something that is not the Lease ns/leader"):
        await store.get()


@pytest.mark.parametrize("answer", [*NOT_IT, lease(holderIdentity="b_2"), lease(holderIdentity=None)])
async def test_a_write_is_done_only_if_the_answer_says_so(
    server: StubApi, store: KubernetesLease, answer: Json
) -> None:
    server.refusals = [(200, lease()), (200, answer), (201, answer)]
    found = await store.get()
    assert found is not None
    with pytest.raises(BackendUnavailable, match="something that is not the Lease ns/leader"):
        await store.update(found, RECORD)
    with pytest.raises(BackendUnavailable, match="something that is not the Lease ns/leader"):
        await store.create(RECORD)
