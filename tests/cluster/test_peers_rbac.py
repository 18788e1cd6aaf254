"""The rights to Leases in deploy/rbac.yaml suffice to lead and to report, and each is needed: it is named where it is
asked for, and by what does not work without it.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests.adapters.peers_contract import BUSY, A, SeenReports, demands
from tests.cluster.account import ROLE, install, mount
from tests.cluster.cluster import Cluster
from vllm_chill.adapters.kubernetes.client import ApiClient, Json, connect
from vllm_chill.adapters.kubernetes.credentials import Places
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.adapters.kubernetes.peer_leases import KubernetesPeers
from vllm_chill.adapters.kubernetes.rights import Right, missing_rights, rights_of_peers
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.core.election import Record
from vllm_chill.errors import BackendError

T = TypeVar("T")
RECORD = Record(A, 15, "2026-01-01T12:00:00.000000Z", "2026-01-01T12:00:00.000000Z", 0)
RIGHTS = [pytest.param(right, id=right.verb) for right in rights_of_peers("any")]


def without(right: Right) -> Json:
    """The Role less one right."""
    role: Json = copy.deepcopy(ROLE)
    for rule in role["rules"]:
        if right.resource in rule["resources"]:
            rule["verbs"].remove(right.verb)
    return role


@asynccontextmanager
async def in_a_pod(cluster: Cluster, role: Json, folder: Path) -> AsyncIterator[ApiClient]:
    """A client with the credentials of a pod of the proxy's ServiceAccount, which has this Role."""
    await install(cluster, role)
    environ = await mount(cluster, folder)
    async with connect(places=Places(environ, folder, folder / "no-kubeconfig")) as api:
        yield api


async def troubles(api: ApiClient, namespace: str) -> list[str]:
    """What comes in the way of a proxy that leads, reports, sees what is reported, and takes it back."""
    found: list[str] = []
    lease = KubernetesLease(api, namespace, "vllm-chill")
    peers = KubernetesPeers(api, namespace, "vllm-chill", pace=Pace(watch_seconds=2, pause_first_seconds=0.1))

    async def trying(work: Awaitable[T]) -> T | None:
        try:
            return await work
        except BackendError as error:
            found.append(error.message)
            return None

    seen = SeenReports()
    watching = asyncio.create_task(peers.watch(seen))
    await trying(lease.get())
    made = await trying(lease.create(RECORD))
    if made is not None:
        await trying(lease.update(made, RECORD))
    await trying(peers.write(A, {}))
    await trying(peers.write(A, BUSY))
    for report in (await trying(peers.read()) or {}).values():
        assert found or report.demands == BUSY
        await trying(peers.remove(report))
    # Long enough for the watch to end and be begun anew.
    await asyncio.sleep(2.5)
    watching.cancel()
    await asyncio.wait([watching])
    found += seen.losses
    assert found or demands(seen.history[-1]) == {}
    return found


async def test_the_role_suffices(cluster: Cluster, tmp_path: Path) -> None:
    async with in_a_pod(cluster, ROLE, tmp_path) as api:
        assert await missing_rights(api, rights_of_peers(cluster.namespace)) == ()
        assert await troubles(api, cluster.namespace) == []


@pytest.mark.parametrize("right", RIGHTS)
async def test_without_one_right_it_is_named_and_missed(right: Right, cluster: Cluster, tmp_path: Path) -> None:
    async with in_a_pod(cluster, without(right), tmp_path) as api:
        [complaint] = await missing_rights(api, rights_of_peers(cluster.namespace))
        found = await troubles(api, cluster.namespace)
    assert f'the right to "{right.verb}" "leases" of coordination.k8s.io' in complaint
    assert found
    for trouble in found:
        assert f'cannot {right.verb} resource "leases"' in trouble
        assert f'"{right.verb}"' in trouble or "deploy/rbac.yaml" in trouble
