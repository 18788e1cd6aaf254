"""Replicas that are out and come back, on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.control.test_controller import HERE, Stage, running
from vllm_chill.control.lease import Bounds, Lease, Ticket
from vllm_chill.core.balancing import Ring
from vllm_chill.core.outliers import Ejection
from vllm_chill.core.target import Endpoint, Observation

pytestmark = pytest.mark.looptime(start=100)

THERE, YONDER = Endpoint("127.0.0.2", 8000), Endpoint("127.0.0.3", 8000)
ALL = (HERE, THERE, YONDER)


@dataclass
class Record:
    """What was told, and what is found by who looks at a replica."""

    told: list[tuple[str, Endpoint, float]] = field(default_factory=list)
    looks: list[Endpoint] = field(default_factory=list)
    ill: set[Endpoint] = field(default_factory=set)

    def ejected(self, ejection: Ejection) -> None:
        self.told.append(("out", ejection.endpoint, ejection.seconds))

    def restored(self, ejection: Ejection, seconds: float) -> None:
        self.told.append(("back", ejection.endpoint, round(seconds, 3)))

    async def look(self, endpoint: Endpoint) -> bool:
        self.looks.append(endpoint)
        await asyncio.sleep(0.1)
        return endpoint not in self.ill


@asynccontextmanager
async def replicas(bounds: Bounds | None = None) -> AsyncIterator[tuple[Stage, Record]]:
    async with running(replicas=1, bounds=bounds) as stage:
        record = Record()
        stage.controller.ejector.recorder, stage.controller.ejector.look = record, record.look
        see(stage, *ALL)
        yield stage, record


def see(stage: Stage, *endpoints: Endpoint) -> None:
    stage.controller.observed(Observation(len(endpoints), len(endpoints), endpoints))


def leased(stage: Stage, count: int = 30) -> set[Endpoint]:
    """Where so many requests go, one after the other."""
    found = set()
    for _ in range(count):
        lease = stage.controller.lease_now()
        assert lease is not None
        found.add(lease.endpoint)
        lease.release()
    return found


async def test_a_replica_that_refused_is_out_until_it_says_that_it_is_healthy() -> None:
    async with replicas() as (stage, record):
        record.ill.add(THERE)
        stage.controller.eject(THERE, "it took no connection")
        assert leased(stage) == {HERE, YONDER}
        await asyncio.sleep(4.9)
        assert not record.looks
        await asyncio.sleep(3)
        assert record.looks == [THERE] * 3
        assert leased(stage) == {HERE, YONDER}
        record.ill.clear()
        await asyncio.sleep(1.2)
        assert leased(stage) == set(ALL)
        assert record.told == [("out", THERE, 5), ("back", THERE, 8.4)]
        await asyncio.sleep(60)
        assert record.looks == [THERE] * 4


async def test_the_next_time_it_is_out_for_longer() -> None:
    async with replicas() as (stage, record):
        for seconds in (5, 10, 15):
            stage.controller.eject(THERE, "it took no connection")
            stage.controller.eject(THERE, "it took no connection")
            await asyncio.sleep(seconds + 1)
        assert record.told == [(what, THERE, now) for s in (5, 10, 15) for what, now in (("out", s), ("back", s + 0.1))]


async def test_if_all_are_out_all_are_in() -> None:
    async with replicas() as (stage, _):
        for endpoint in ALL:
            stage.controller.eject(endpoint, "it took no connection")
        assert leased(stage) == set(ALL)


async def test_one_that_is_out_gets_no_held_request_either() -> None:
    async with replicas(Bounds(in_flight=1)) as (stage, _):
        stage.controller.eject(THERE, "it took no connection")
        first, second = stage.controller.lease_now(), stage.controller.lease_now()
        assert first is not None
        assert second is not None
        held = asyncio.create_task(stage.lease())
        await asyncio.sleep(1)
        assert not held.done()
        first.release()
        assert (await held).endpoint == first.endpoint != THERE


async def test_a_replica_that_is_back_lets_in_those_who_wait_for_a_place() -> None:
    async with replicas(Bounds(in_flight=1)) as (stage, _):
        stage.controller.eject(THERE, "it took no connection")
        assert all(stage.controller.lease_now() for _ in range(2))
        held = asyncio.create_task(stage.lease())
        await asyncio.sleep(5.2)
        assert held.done()
        assert held.result().endpoint == THERE


async def test_who_departs_is_no_longer_out_and_not_asked_any_more() -> None:
    async with replicas() as (stage, record):
        stage.controller.eject(THERE, "it took no connection")
        see(stage, HERE, YONDER)
        see(stage, *ALL)
        assert leased(stage) == set(ALL)
        await asyncio.sleep(60)
        assert record.told == [("out", THERE, 5)]
        assert not record.looks


async def test_five_gateway_errors_in_a_row_take_it_out() -> None:
    async with replicas() as (stage, record):
        ejector = stage.controller.ejector
        for status in (503, 503, 503, 503, 200, 502, 503, 504, 503):
            ejector.answered(THERE, status)
        assert bool(ejector.suspects)
        assert not record.told
        ejector.answered(THERE, 503)
        assert record.told == [("out", THERE, 5)]
        assert not ejector.suspects


async def test_held_requests_go_to_where_their_keys_lead() -> None:
    async with running(bounds=Bounds(load_factor=1.25)) as stage:
        keys = [number << 58 for number in range(0, 64, 5)]
        waiting = [asyncio.create_task(stage.controller.lease(120, Ticket(key_of_replica=key))) for key in keys]
        await asyncio.sleep(1)
        see(stage, *ALL)
        leases: list[Lease] = await asyncio.gather(*waiting)
        ring = Ring(ALL)
        at_home = sum(lease.endpoint == next(ring.owners(key)) for key, lease in zip(keys, leases, strict=True))
        assert at_home >= len(keys) / 2
        for lease in leases:
            lease.release()
        for key in keys:
            lease_now = stage.controller.lease_now(None, key)
            assert lease_now is not None
            assert lease_now.endpoint == next(ring.owners(key))
            lease_now.release()
