"""What reports are written and read as, what refusals mean, and what a watch that is behind is worth.

tests/cluster/test_peer_leases.py has the contract, on a real API server.
"""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.adapters.kubernetes.stub_api import StubApi, line, status
from tests.adapters.peers_contract import BUSY, A, B, demands, watched
from vllm_chill.adapters.kubernetes.client import ApiClient, Json
from vllm_chill.adapters.kubernetes.peer_leases import ANNOTATION, LABEL, KubernetesPeers
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.objects import digest
from vllm_chill.core.peers import Report, to_text
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable

LEASES = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"
ONE = r"the Lease ns/vllm-chill-\w+"
PACE = Pace(pause_first_seconds=0.01, pause_most_seconds=0.05)


def lease(identity: str, version: int = 0, text: str = to_text(BUSY)) -> Json:
    metadata = {
        "name": f"vllm-chill-{digest(identity)}",
        "labels": {LABEL: "vllm-chill"},
        "annotations": {ANNOTATION: text},
        "resourceVersion": str(version),
        "uid": "u",
    }
    return {"kind": "Lease", "metadata": metadata, "spec": {"holderIdentity": identity, "acquireTime": "then"}}


@pytest.fixture
def store(api: ApiClient) -> KubernetesPeers:
    return KubernetesPeers(api, "ns", "vllm-chill", gone_seconds=22.5, pace=PACE)


async def test_the_first_write_makes_it_and_the_next_are_one_call_each(server: StubApi, store: KubernetesPeers) -> None:
    server.refusals = [(404, status(404, "not found")), (201, lease(A, 7)), (200, lease(A, 8)), (200, lease(A, 9))]
    for said in (BUSY, {}, BUSY):
        await store.write(A, said)
    looked, made, *replaced = server.requests
    assert (looked.method, made.method, made.path) == ("GET", "POST", LEASES)
    body = await made.json()
    assert looked.path == f"{LEASES}/{body['metadata']['name']}"
    assert body["metadata"]["labels"] == {LABEL: "vllm-chill"}
    assert (body["spec"]["holderIdentity"], body["spec"]["leaseDurationSeconds"]) == (A, 23)
    assert [(request.method, request.path) for request in replaced] == [("PUT", looked.path)] * 2
    rests_on = [(await request.json())["metadata"] for request in replaced]
    assert [(one["resourceVersion"], one["uid"]) for one in rests_on] == [("7", "u"), ("8", "u")]
    assert [one["annotations"][ANNOTATION] for one in rests_on] == ["{}", to_text(BUSY)]


async def test_a_write_whose_answer_never_came_is_looked_at_before_the_next(
    server: StubApi, store: KubernetesPeers
) -> None:
    server.refusals = [(200, lease(A, 7)), (200, lease(A, 8)), (500, status(500, "etcd is away"))]
    await store.write(A, BUSY)
    with pytest.raises(BackendUnavailable):
        await store.write(A, BUSY)
    server.refusals = [(200, lease(A, 9)), (200, lease(A, 10))]
    await store.write(A, {})
    assert [request.method for request in server.requests] == ["GET", "PUT", "PUT", "GET", "PUT"]
    assert (await server.requests[-1].json())["metadata"]["resourceVersion"] == "9"


async def test_a_write_over_another_version_is_tried_with_that(server: StubApi, store: KubernetesPeers) -> None:
    conflict = (409, status(409, "the object has been modified"))
    server.refusals = [(200, lease(A, 7)), conflict, (200, lease(A, 9)), (200, lease(A, 10))]
    await store.write(A, BUSY)
    assert (await server.requests[-1].json())["metadata"]["resourceVersion"] == "9"
    server.refusals = [conflict, (200, lease(A, 11)), conflict, (200, lease(A, 12)), conflict]
    with pytest.raises(BackendConflict, match=f"{ONE} is another by now"):
        await store.write(A, BUSY)
    assert server.refusals == []


async def test_what_was_taken_for_gone_and_removed_is_made_anew(server: StubApi, store: KubernetesPeers) -> None:
    missing = (404, status(404, "not found"))
    server.refusals = [missing, (201, lease(A, 7)), missing, missing, (201, lease(A, 20))]
    await store.write(A, BUSY)
    await store.write(A, BUSY)
    assert [request.method for request in server.requests] == ["GET", "POST", "PUT", "GET", "POST"]


async def test_they_are_read_as_they_are_at_this_moment_and_page_by_page(
    server: StubApi, store: KubernetesPeers
) -> None:
    first_page: Json = {"metadata": {"resourceVersion": "9", "continue": "more"}, "items": [lease(A, 7)]}
    last_page: Json = {"metadata": {"resourceVersion": "9"}, "items": [lease(B, 8, "?")]}
    server.refusals = [(200, first_page), (200, last_page)]
    assert await store.read() == {A: Report(A, "7", BUSY), B: Report(B, "8")}
    first, second = server.requests
    assert first.path == LEASES
    assert dict(first.query) == {"labelSelector": f"{LABEL}=vllm-chill", "limit": "100"}
    assert dict(second.query) == dict(first.query) | {"continue": "more"}


async def test_a_report_is_removed_where_it_was_found_and_in_the_version_that_it_had(
    server: StubApi, store: KubernetesPeers
) -> None:
    found = lease(A, 7)
    found["metadata"]["name"] = "vllm-chill-1"
    server.refusals = [(200, {"metadata": {"resourceVersion": "9"}, "items": [found]})]
    report = (await store.read())[A]
    for code in (200, 404, 409):
        server.refusals = [(code, status(code, "said"))]
        await store.remove(report)
    for request in server.requests[1:]:
        assert (request.method, request.path) == ("DELETE", f"{LEASES}/vllm-chill-1")
        assert (await request.json())["preconditions"] == {"resourceVersion": "7"}


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (401, BackendUnavailable, "does not accept the credentials: said; log in again, or renew them"),
        (
            403,
            BackendRefused,
            'the Lease.* cannot be used: said; grant "get", "list", "watch", "create", "update" and "delete" on leases '
            "of coordination.k8s.io in the namespace ns",
        ),
        (422, BackendRefused, r"the API server does not \w+ the Lease.* \(422\): said"),
        (429, BackendUnavailable, r"the API server does not \w+ the Lease.* just now: said"),
        (500, BackendUnavailable, r"the API server does not \w+ the Lease.* \(500\): said"),
    ],
)
@pytest.mark.parametrize("call", ["read", "write", "remove"])
async def test_a_refused_call_says_what_to_do(
    server: StubApi, store: KubernetesPeers, call: str, code: int, kind: type[BackendError], message: str
) -> None:
    server.refusals = [(code, status(code, "said."))] * 2
    calls = {"read": store.read(), "write": store.write(A, BUSY), "remove": store.remove(Report(A, "7"))}
    asked = calls.pop(call)
    for other in calls.values():
        other.close()
    with pytest.raises(kind, match=message) as raised:
        await asked
    assert type(raised.value) is kind


async def test_a_list_that_was_too_slow_is_to_be_tried_again(server: StubApi, store: KubernetesPeers) -> None:
    server.refusals = [(410, status(410, "the provided continue parameter is too old", "Expired"))]
    with pytest.raises(BackendUnavailable, match="does not list the Leases in ns just now"):
        await store.read()


async def test_what_is_no_api_server_is_told(server: StubApi, store: KubernetesPeers) -> None:
    server.refusals = [(200, {"items": []})]
    with pytest.raises(BackendUnavailable, match="is it a Kubernetes API server"):
        await store.read()


@pytest.mark.parametrize("item", [7, None, {"metadata": {}}, {"metadata": {"name": "a"}, "spec": ["a"]}, {}])
async def test_a_list_of_something_else_is_told(server: StubApi, store: KubernetesPeers, item: object) -> None:
    server.refusals = [(200, {"metadata": {"resourceVersion": "9"}, "items": [lease(A, 7), item]})]
    with pytest.raises(BackendUnavailable, match="a list of something that is no Lease"):
        await store.read()


async def test_a_server_that_is_away_is_unavailable(server: StubApi, store: KubernetesPeers) -> None:
    await server.stop()
    for call in (store.read(), store.write(A, BUSY), store.remove(Report(A, "7"))):
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await call


async def test_a_watch_that_is_behind_tells_what_was_read_and_then_what_is_newer(
    server: StubApi, store: KubernetesPeers
) -> None:
    held, begun = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request, response: web.StreamResponse) -> None:
        begun.set()
        await held.wait()
        for version in (12, 13):
            await response.write(line("MODIFIED", lease(A, version, f'{{"t":{{"waiting":{version}}}}}')))
        await asyncio.Event().wait()

    server.scripts = [slow]
    await server.put(lease(A, text="{}"))
    async with watched(store) as seen:
        await seen.until(lambda reports: demands(reports) == {A: {}})
        await begun.wait()
        # The watch is told of 12 and 13 only later, which are older than this.
        server.version = 40
        await server.put(lease(B, text="{}"))
        read = await store.read()
        assert set(read) == {A, B}
        held.set()
        assert await seen.until(lambda reports: B in reports) == read
        assert len(seen.history) == 2


async def test_after_an_outage_what_is_seen_counts_whatever_its_version(
    server: StubApi, store: KubernetesPeers
) -> None:
    server.version = 1000
    await server.put(lease(A, text="{}"))
    async with watched(store) as seen:
        await seen.until(lambda reports: A in reports)
        await store.read()
        await server.until_asked("watch")
        # As after a restore of the API server's data.
        server.objects.clear()
        server.version = 5
        await server.put(lease(B, text="{}"))
        server.refusals = [(500, status(500, "etcd is away"))]
        server.cut()
        assert "etcd is away" in await seen.until_lost()
        await seen.until(lambda reports: set(reports) == {B})


async def test_an_outage_is_told_once_for_each_cause(server: StubApi, store: KubernetesPeers) -> None:
    server.refusals = [(500, status(500, cause)) for cause in ("a", "a", "a", "b", "a")]
    async with watched(store) as seen:
        await seen.until(lambda reports: not reports)
        assert [loss.split(": ")[-1] for loss in seen.losses] == ["a", "b", "a"]


async def test_without_the_right_to_see_them_they_are_lost_with_what_to_do(
    server: StubApi, store: KubernetesPeers
) -> None:
    server.forbidden = {"leases"}
    async with watched(store) as seen:
        cause = await seen.until_lost()
    assert "cannot list leases; grant it that right (deploy/rbac.yaml has the Role)" in cause
