"""When full collections take place, on loop time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from vllm_chill.control.collector import collect_at_leisure

pytestmark = pytest.mark.looptime(start=0)


@asynccontextmanager
async def collecting(requests: Callable[[], int]) -> AsyncIterator[list[float]]:
    """The times, in minutes, of the collections so far."""
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    task = asyncio.create_task(collect_at_leisure(requests, lambda: times.append(clock() / 60)))
    await asyncio.sleep(0)
    try:
        yield times
    finally:
        task.cancel()
        await asyncio.wait([task])


async def minutes(count: float) -> None:
    await asyncio.sleep(60 * count)


async def test_there_is_one_each_minute() -> None:
    async with collecting(lambda: 1000) as times:
        await minutes(3.5)
        assert times == [1, 2, 3]


async def test_it_is_put_off_while_there_are_many_requests() -> None:
    held = 10_000
    async with collecting(lambda: held) as times:
        await minutes(5.5)
        assert times == []
        held = 0
        await minutes(1)
        assert times == [6]


async def test_it_is_not_put_off_for_longer_than_a_quarter_of_an_hour() -> None:
    async with collecting(lambda: 10_000) as times:
        await minutes(45.5)
        assert times == [15, 30, 45]


async def test_meanwhile_there_is_none_by_itself_and_the_young_are_looked_at_as_ever() -> None:
    before = gc.get_threshold()
    async with collecting(lambda: 0):
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] > 1_000_000
    assert gc.get_threshold() == before
