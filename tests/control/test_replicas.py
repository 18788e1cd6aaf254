"""A controller of a target with several replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.control.test_controller import Recording
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.lease import Bounds
from vllm_chill.core.target import Asleep, Endpoint, Limits, TargetRef, Waking

pytestmark = pytest.mark.looptime(start=100)

FIRST = Endpoint("127.0.0.1", 8000)
REF = TargetRef("ai-apps", "vllm")


def port(number: int) -> Endpoint:
    return Endpoint("127.0.0.1", 8000 + number)


@asynccontextmanager
async def running(
    replicas: int = 0, *, idle: float = 300, drain: float = 600, bounds: Bounds | None = None
) -> AsyncIterator[tuple[ScaleController, MemoryBackend]]:
    backend = MemoryBackend(FIRST, start_seconds=60, replicas=replicas, apart=True)
    limits = Limits(idle, 1800, drain_seconds=drain)
    controller = ScaleController(REF, limits, backend, Recording(), bounds)
    task = asyncio.create_task(controller.run())
    await asyncio.sleep(0.001)
    yield controller, backend
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def held(controller: ScaleController, count: int, every: float = 0.0) -> list[asyncio.Task[object]]:
    tasks: list[asyncio.Task[object]] = []
    for _ in range(count):
        tasks.append(asyncio.create_task(controller.lease(120)))
        await asyncio.sleep(every)
    return tasks


async def test_a_recommendation_is_one_write_and_the_new_ones_serve_once_they_are_ready() -> None:
    async with running(1) as (controller, backend):
        controller.recommend("policy", 3)
        await asyncio.sleep(1)
        assert backend.writes == [3]
        assert set(controller.endpoints) == {port(0)}
        await asyncio.sleep(60)
        assert set(controller.endpoints) == {port(0), port(1), port(2)}


async def test_without_a_recommendation_what_somebody_else_scaled_is_kept() -> None:
    async with running(1) as (controller, backend):
        controller.recommend("policy", 2)
        await asyncio.sleep(61)
        controller.recommend("policy", None)
        backend.set_replicas(5)
        await asyncio.sleep(61)
        assert backend.writes == [2]
        assert len(controller.endpoints) == 5


async def test_with_a_recommendation_what_somebody_else_scaled_is_put_back() -> None:
    async with running(1) as (controller, backend):
        controller.recommend("policy", 2)
        await asyncio.sleep(61)
        backend.set_replicas(4)
        await asyncio.sleep(1)
        assert backend.writes == [2, 2]


async def test_a_burst_at_zero_is_one_write_of_as_many_as_it_needs() -> None:
    async with running() as (controller, backend):
        controller.demand = lambda waiting: min(8, -(-waiting // 10))
        callers = await held(controller, 40, 0.001)
        await asyncio.sleep(1)
        assert backend.writes == [4]
        await asyncio.gather(*callers)


async def test_more_callers_while_it_wakes_ask_for_more_and_fewer_take_nothing_back() -> None:
    async with running() as (controller, backend):
        controller.demand = lambda waiting: min(8, -(-waiting // 10))
        first = await held(controller, 20)
        await asyncio.sleep(1)
        later = await held(controller, 30)
        await asyncio.sleep(1)
        for task in later:
            task.cancel()
        await asyncio.sleep(1)
        assert backend.writes == [2, 5]
        await asyncio.gather(*first)


async def test_asleep_nothing_is_recommended_and_the_next_wake_begins_anew() -> None:
    async with running(1, idle=10) as (controller, backend):
        controller.recommend("policy", 3)
        await asyncio.sleep(80)
        assert isinstance(controller.target.phase, Asleep)
        assert backend.writes == [3, 0]
        controller.recommend("policy", 5)
        await asyncio.sleep(1)
        assert isinstance(controller.target.phase, Asleep)
        (caller,) = await held(controller, 1)
        await asyncio.sleep(1)
        assert backend.writes == [3, 0, 1]
        await caller


async def test_one_source_at_a_time_has_a_say() -> None:
    async with running(1) as (controller, backend):
        controller.recommend("policy", 2)
        controller.recommend("another", 7)
        controller.recommend("another", None)
        await asyncio.sleep(1)
        controller.recommend("policy", None)
        controller.recommend("another", 3)
        await asyncio.sleep(1)
        assert backend.writes == [2, 3]


class TestFewer:
    async def test_who_has_leases_ends_them_first_and_gets_no_new_ones(self) -> None:
        async with running(2) as (controller, backend):
            leases = [controller.lease_now() for _ in range(4)]
            assert all(leases)
            controller.recommend("policy", 1)
            await asyncio.sleep(30)
            assert backend.writes == []
            (going,) = controller.leaving
            (staying,) = controller.endpoints
            assert {lease.endpoint for _ in range(5) if (lease := controller.lease_now())} == {staying}
            for lease in leases:
                assert lease is not None
                if lease.endpoint != staying:
                    lease.release()
            await asyncio.sleep(0.01)
            assert backend.writes == [1]
            assert [replica.name for replica in backend.seen.members] != [going]
            assert controller.leaving == ()

    async def test_a_replica_without_leases_goes_at_once_though_it_is_the_older(self) -> None:
        async with running(2) as (controller, backend):
            lease = controller.lease_now(besides=port(0))
            assert lease is not None
            assert lease.endpoint == port(1)
            controller.recommend("policy", 1)
            await asyncio.sleep(0.01)
            assert [replica.endpoint for replica in backend.seen.members] == [port(1)]

    async def test_what_does_not_end_is_waited_for_no_longer_than_may_be(self) -> None:
        async with running(2, drain=100) as (controller, backend):
            leases = [controller.lease_now() for _ in range(2)]
            controller.recommend("policy", 1)
            await asyncio.sleep(99)
            assert backend.writes == []
            await asyncio.sleep(2)
            assert backend.writes == [1]
            assert all(leases)

    async def test_who_is_wanted_again_serves_again(self) -> None:
        async with running(2) as (controller, backend):
            leases = [controller.lease_now() for _ in range(2)]
            for count in (1, 2):
                controller.recommend("policy", count)
                assert len(controller.endpoints) == count
            await asyncio.sleep(1000)
            assert backend.writes == []
            assert all(leases)

    async def test_who_waits_for_room_does_not_get_it_on_one_that_is_to_go(self) -> None:
        async with running(2, bounds=Bounds(in_flight=1)) as (controller, backend):
            leases = [controller.lease_now() for _ in range(2)]
            (caller,) = await held(controller, 1)
            controller.recommend("policy", 1)
            (staying,) = controller.endpoints
            for lease in leases:
                assert lease is not None
                if lease.endpoint != staying:
                    lease.release()
            await asyncio.sleep(1)
            assert not caller.done()
            assert backend.writes == [1]
            caller.cancel()


async def test_more_room_on_a_replica_is_given_at_once() -> None:
    async with running(1, bounds=Bounds(in_flight=1)) as (controller, _):
        first = controller.lease_now()
        (caller,) = await held(controller, 1)
        await asyncio.sleep(1)
        assert not caller.done()
        controller.bounds = Bounds(in_flight=2)
        assert await caller
        assert first is not None


async def test_use_past_the_proxy_keeps_it_awake() -> None:
    async with running(1, idle=10) as (controller, _):
        for _ in range(5):
            await asyncio.sleep(8)
            controller.used()
        assert controller.endpoints
        await asyncio.sleep(11)
        assert isinstance(controller.target.phase, Asleep)


async def test_where_it_only_looks_on_nothing_is_written() -> None:
    async with running() as (controller, backend):
        controller.observe_only = True
        (caller,) = await held(controller, 1)
        await asyncio.sleep(10)
        assert isinstance(controller.target.phase, Waking)
        assert backend.writes == []
        backend.set_replicas(2)
        await caller
        controller.recommend("policy", 1)
        await asyncio.sleep(10)
        assert backend.writes == []
