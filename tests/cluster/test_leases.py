"""KubernetesLease, held to the contract of every store of a Lease, and to what is a server's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.adapters.lease_contract import RECORD, LeaseContract
from tests.cluster.cluster import Cluster
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.errors import BackendConflict, BackendRefused


@pytest.fixture
def store(cluster: Cluster) -> KubernetesLease:
    return KubernetesLease(cluster.api, cluster.namespace, "leader")


class TestKubernetesLease(LeaseContract):
    pass


async def test_what_others_write_into_it_stays_and_is_noticed(cluster: Cluster, store: KubernetesLease) -> None:
    made = await store.create(RECORD)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases/leader"
    await cluster.patch(path, {"metadata": {"labels": {"theirs": "yes"}}})
    with pytest.raises(BackendConflict):
        await store.update(made, replace(RECORD, transitions=4))
    found = await store.get()
    assert found is not None
    await store.update(found, replace(RECORD, transitions=4))
    assert (await cluster.api.call("GET", path))["metadata"]["labels"] == {"theirs": "yes"}


async def test_what_is_gone_is_not_written_over(cluster: Cluster, store: KubernetesLease) -> None:
    made = await store.create(RECORD)
    await cluster.delete(f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases/leader")
    with pytest.raises(BackendConflict):
        await store.update(made, RECORD)
    assert await store.get() is None


async def test_a_namespace_that_is_not_there_is_told(cluster: Cluster) -> None:
    store = KubernetesLease(cluster.api, "nowhere", "leader")
    assert await store.get() is None
    with pytest.raises(BackendRefused, match=r"the Lease nowhere/leader cannot be made: .*; create the namespace"):
        await store.create(RECORD)
