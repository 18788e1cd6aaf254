"""KubernetesPeers, held to the contract of every store of reports, and to what is a server's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.adapters.peers_contract import BUSY, A, B, PeersContract, demands, watched
from tests.cluster.api_server import answers, away
from tests.cluster.cluster import Cluster
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.adapters.kubernetes.peer_leases import ANNOTATION, LABEL, KubernetesPeers
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.election import Record
from vllm_chill.core.peers import Demand
from vllm_chill.errors import BackendConflict, BackendRefused, BackendUnavailable

QUICK = Pace(watch_seconds=2, grace_seconds=1, pause_first_seconds=0.1, pause_most_seconds=0.5)
GROUP = "vllm-chill"


@pytest.fixture
def store(cluster: Cluster) -> KubernetesPeers:
    return KubernetesPeers(cluster.api, cluster.namespace, GROUP, pace=QUICK)


@pytest.fixture
def another(cluster: Cluster) -> KubernetesPeers:
    return KubernetesPeers(cluster.api, cluster.namespace, GROUP, pace=QUICK)


class TestKubernetesPeers(PeersContract):
    pass


async def leases(cluster: Cluster) -> list[Json]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases"
    return list((await cluster.api.call("GET", path))["items"])


def path_of(lease: Json) -> str:
    metadata = lease["metadata"]
    return f"/apis/coordination.k8s.io/v1/namespaces/{metadata['namespace']}/leases/{metadata['name']}"


async def test_a_report_is_a_lease_that_says_whose_it_is_and_for_how_long(
    cluster: Cluster, store: KubernetesPeers
) -> None:
    await store.write(A, BUSY)
    [first] = await leases(cluster)
    await store.write(A, {})
    [second] = await leases(cluster)
    assert second["metadata"]["name"] == first["metadata"]["name"]
    assert second["metadata"]["name"].startswith(f"{GROUP}-")
    assert second["metadata"]["labels"] == {LABEL: GROUP}
    assert second["metadata"]["annotations"] == {ANNOTATION: "{}"}
    assert "ownerReferences" not in second["metadata"]
    assert (second["spec"]["holderIdentity"], second["spec"]["leaseDurationSeconds"]) == (A, 30)
    assert second["spec"]["acquireTime"] == first["spec"]["acquireTime"]
    assert second["spec"]["renewTime"] > first["spec"]["renewTime"]


async def test_the_leases_of_others_are_no_reports(cluster: Cluster, store: KubernetesPeers) -> None:
    other = KubernetesPeers(cluster.api, cluster.namespace, "another", pace=QUICK)
    leader = KubernetesLease(cluster.api, cluster.namespace, GROUP)
    await leader.create(Record(A, 15, "2026-01-01T12:00:00.000000Z", "2026-01-01T12:00:00.000000Z", 0))
    await other.write(B, BUSY)
    async with watched(store) as seen:
        await seen.until(lambda reports: not reports)
        await store.write(A, {})
        await seen.until(lambda reports: set(reports) == {A})
    assert set(await store.read()) == {A}
    assert set(await other.read()) == {B}


async def test_what_others_write_into_it_stays(cluster: Cluster, store: KubernetesPeers) -> None:
    await store.write(A, {})
    [lease] = await leases(cluster)
    await cluster.patch(path_of(lease), {"metadata": {"labels": {"theirs": "yes"}}})
    await store.write(A, BUSY)
    [after] = await leases(cluster)
    assert after["metadata"]["labels"] == {LABEL: GROUP, "theirs": "yes"}
    assert demands(await store.read()) == {A: BUSY}


async def test_what_a_later_version_says_besides_is_passed_over(
    cluster: Cluster, store: KubernetesPeers, another: KubernetesPeers
) -> None:
    await store.write(A, {})
    [lease] = await leases(cluster)
    text = json.dumps({"ai-apps/vllm": {"waiting": 2, "mood": {"good": True}}})
    spec = {"preferredHolder": "who"}
    await cluster.patch(path_of(lease), {"metadata": {"annotations": {ANNOTATION: text}}, "spec": spec})
    assert demands(await another.read()) == {A: {"ai-apps/vllm": Demand(waiting=2)}}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ai-apps/vllm": {"waiting": "many"}}', None])
async def test_a_report_that_cannot_be_read_may_be_of_anything(
    text: str | None, cluster: Cluster, store: KubernetesPeers, another: KubernetesPeers
) -> None:
    await store.write(A, {})
    [lease] = await leases(cluster)
    async with watched(another) as seen:
        await seen.until(lambda reports: demands(reports) == {A: {}})
        await cluster.patch(path_of(lease), {"metadata": {"annotations": {ANNOTATION: text}}})
        found = await seen.until(lambda reports: demands(reports) == {A: None})
    assert found[A].of("ai-apps/vllm").in_use
    assert demands(await another.read()) == {A: None}
    await store.write(A, {})
    assert demands(await another.read()) == {A: {}}


async def test_a_lease_that_nobody_holds_is_a_report_all_the_same_and_can_be_removed(
    cluster: Cluster, store: KubernetesPeers, another: KubernetesPeers
) -> None:
    await store.write(A, BUSY)
    [lease] = await leases(cluster)
    await cluster.patch(path_of(lease), {"spec": {"holderIdentity": None}})
    [found] = (await another.read()).values()
    assert found.demands == BUSY
    await another.remove(found)
    assert await another.read() == {}


async def test_a_write_that_comes_late_does_not_take_back_a_newer_one(cluster: Cluster, store: KubernetesPeers) -> None:
    await store.write(A, BUSY)
    [late] = await leases(cluster)
    await store.write(A, {})
    with pytest.raises(BackendConflict):
        await store._leases.update(late["metadata"]["name"], late)
    assert demands(await store.read()) == {A: {}}


async def test_a_write_that_comes_late_does_not_bring_back_what_was_removed(
    cluster: Cluster, store: KubernetesPeers
) -> None:
    await store.write(A, BUSY)
    [late] = await leases(cluster)
    await store.remove((await store.read())[A])
    with pytest.raises(BackendConflict):
        await store._leases.update(late["metadata"]["name"], late)
    assert await store.read() == {}


async def test_a_long_name_of_a_group_is_no_trouble(cluster: Cluster) -> None:
    store = KubernetesPeers(cluster.api, cluster.namespace, "long." * 40 + "name")
    await store.write(A, BUSY)
    assert demands(await store.read()) == {A: BUSY}


async def test_more_proxies_than_fit_on_a_page_are_all_read(cluster: Cluster, store: KubernetesPeers) -> None:
    everybody = {f"proxy_{number}": BUSY for number in range(105)}
    for identity, said in everybody.items():
        await store.write(identity, said)
    assert demands(await store.read()) == everybody


async def test_a_namespace_that_is_not_there_is_told(cluster: Cluster) -> None:
    store = KubernetesPeers(cluster.api, "nowhere", GROUP)
    assert await store.read() == {}
    with pytest.raises(BackendRefused, match=r"the Lease nowhere/vllm-chill-\w+ cannot be made: .*; create the namesp"):
        await store.write(A, BUSY)


async def test_while_the_api_server_is_away_they_are_lost_and_then_seen_again(
    cluster: Cluster, store: KubernetesPeers, another: KubernetesPeers, control_plane: Path
) -> None:
    await store.write(A, BUSY)
    async with watched(another) as seen:
        await seen.until(lambda reports: A in reports)
        async with away(control_plane):
            assert "cannot be reached" in await seen.until_lost()
            for call in (store.read(), store.write(A, {})):
                with pytest.raises(BackendUnavailable, match="cannot be reached"):
                    await call
        await answers(cluster.api)
        await store.write(A, {})
        await seen.until(lambda reports: demands(reports) == {A: {}}, seconds=60)
        assert len(seen.losses) == len(set(seen.losses))
