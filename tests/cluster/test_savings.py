"""What was saved, in a ConfigMap on a real API server: the contract, and two proxies that add to one sum."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.adapters.savings_contract import SavingsContract
from tests.cluster.cluster import Cluster
from tests.cluster.peers import LEASE, until_they_know
from tests.cluster.serving import ask, get, in_front_of
from tests.serving import Serving
from vllm_chill.adapters.kubernetes.savings_map import KEY, SavingsMap, map_name
from vllm_chill.core.savings import Tally
from vllm_chill.core.savings_ledger import Ledger
from vllm_chill.errors import BackendConflict

NAME = map_name("vllm-chill")


@pytest.fixture
def store(cluster: Cluster) -> SavingsMap:
    return SavingsMap(cluster.api, cluster.namespace, NAME)


class TestSavingsMap(SavingsContract):
    pass


async def test_what_others_have_in_it_stays(cluster: Cluster, store: SavingsMap) -> None:
    await store.write("1", None)
    path = f"/api/v1/namespaces/{cluster.namespace}/configmaps/{NAME}"
    before = await store.read()
    await cluster.patch(path, {"metadata": {"labels": {"theirs": "yes"}}, "data": {"theirs": "2"}})
    with pytest.raises(BackendConflict):
        await store.write("2", before)
    await store.write("2", await store.read())
    item = await cluster.api.call("GET", path)
    assert item["metadata"]["labels"] == {"theirs": "yes"}
    assert item["data"] == {KEY: "2", "theirs": "2"}


async def test_one_that_was_deleted_is_made_anew(cluster: Cluster, store: SavingsMap) -> None:
    await store.write("1", None)
    before = await store.read()
    await cluster.delete(f"/api/v1/namespaces/{cluster.namespace}/configmaps/{NAME}")
    assert await store.read() is None
    with pytest.raises(BackendConflict, match="is gone"):
        await store.write("2", before)
    await store.write("2", None)


async def told(proxy: Serving) -> dict[str, Any]:
    _, text = await get(proxy.url + "/proxy/savings")
    return dict(json.loads(text))


async def gpu_seconds(proxy: Serving) -> dict[str, float]:
    """What this proxy has counted itself."""
    _, text = await get(proxy.url + "/proxy/metrics")
    lines = [line for line in text.splitlines() if line.startswith("vllm_chill_gpu_seconds_total")]
    return {line.split('state="')[1].split('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_two_proxies_add_to_one_sum_and_count_nothing_twice(cluster: Cluster, store: SavingsMap) -> None:
    """Four callers at one proxy and six at the other wait for one start; both end, and a third tells the sum."""
    await cluster.create_deployment(load_seconds=2)
    flags = ("--state-dir", "any", "--idle-timeout", "2s", "--gpu-count", "2", *LEASE)
    address, begun = await cluster.create_service(), time.monotonic()
    async with (
        in_front_of(cluster, *flags, address=address) as one,
        in_front_of(cluster, *flags, address=address) as two,
    ):
        leader, other = await until_they_know(one, two)
        await asyncio.gather(*(ask(leader.url) for _ in range(4)), *(ask(other.url) for _ in range(6)))
        await asyncio.gather(leader.until_logged("asleep"), other.until_logged("asleep"))
        counted, beside = await gpu_seconds(leader), await gpu_seconds(other)
        assert beside == {"asleep": 0, "awake": 0}
        assert counted["awake"] >= 2 * (2 + 2)
        assert (await told(leader))["total"]["callers_waited"] == 4
        assert (await told(other))["total"]["callers_waited"] == 6
        # The one that leads first, so that the other has something to take over.
        assert await leader.stop() == 0
        assert await other.stop() == 0
    took = time.monotonic() - begun
    kept = await store.read()
    assert kept is not None
    account = Ledger.parse(kept.text).of(f"{cluster.namespace}/vllm")
    total: Tally = account.total
    assert (account.gpus, total.callers, total.wakes) == (2, 10, 1)
    assert 10 * 2 <= total.waited <= 10 * took
    assert counted["awake"] - 0.1 <= total.awake <= 2 * took
    assert counted["asleep"] + counted["awake"] - 0.1 <= total.asleep + total.awake <= 2 * took
    async with in_front_of(cluster, *flags, address=address) as third:
        answer = await told(third)
        assert (answer["total"]["callers_waited"], answer["total"]["wakes"]) == (10, 1)
        assert answer["models"][0]["target"] == f"{cluster.namespace}/vllm"


async def test_what_is_something_else_is_said_once_and_left_and_everything_else_works(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0)
    path = f"/api/v1/namespaces/{cluster.namespace}/configmaps"
    broken = {"metadata": {"name": NAME}, "data": {KEY: "something else"}}
    await cluster.api.call("POST", path, body={"apiVersion": "v1", "kind": "ConfigMap", **broken})
    address = await cluster.create_service()
    async with in_front_of(cluster, "--state-dir", "any", *LEASE, address=address) as proxy:
        [proxy] = await until_they_know(proxy)
        assert (await ask(proxy.url)).status == 200
        said = await proxy.until_logged("what was saved is not kept")
        assert "it is not what a proxy writes; move it away, and it begins anew" in said["cause"]
        assert (await told(proxy))["total"]["wakes"] == 1
        assert await proxy.stop() == 0
    assert (await cluster.api.call("GET", f"{path}/{NAME}"))["data"] == {KEY: "something else"}
    assert len([line for line in proxy.log if line["event"] == "what was saved is not kept"]) == 1
