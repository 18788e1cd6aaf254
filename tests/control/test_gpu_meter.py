from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from vllm_chill.control.gpu_meter import GpuMeter
from vllm_chill.core.gpu import GpuUse
from vllm_chill.core.scaling.signals import Sample
from vllm_chill.errors import BackendUnavailable

pytestmark = pytest.mark.looptime(start=100)


@dataclass
class Source:
    """Tells this, or that it cannot."""

    use: GpuUse | None
    read: list[float] = field(default_factory=list)

    async def __call__(self) -> GpuUse:
        self.read.append(asyncio.get_running_loop().time())
        if self.use is None:
            raise BackendUnavailable("it is broken")
        return self.use


@asynccontextmanager
async def metered(*sources: Source) -> AsyncIterator[GpuMeter]:
    meter = GpuMeter(sources, now=asyncio.get_running_loop().time)
    running = asyncio.create_task(meter.run())
    yield meter
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])


async def test_nothing_is_read_before_somebody_asks_nor_long_after() -> None:
    source = Source(GpuUse(50))
    async with metered(source) as meter:
        await asyncio.sleep(30)
        assert not source.read
        assert meter.of_machine() is None
        await asyncio.sleep(10)
        assert meter.of_machine() == Sample(50, source.read[-1])
        await asyncio.sleep(100)
        assert source.read[-1] <= 200.1
        assert len(source.read) <= 15


async def test_a_pod_has_its_own_gpus() -> None:
    async with metered(Source(GpuUse(50, {("ai-apps", "a"): 80.0}))) as meter:
        meter.of_pod("ai-apps", "a")
        await asyncio.sleep(6)
        found = meter.of_pod("ai-apps", "a")
        assert found is not None
        assert found.value == 80
        assert meter.of_pod("elsewhere", "a") is None


async def test_the_first_source_that_tells_counts() -> None:
    async with metered(Source(None), Source(GpuUse(30)), Source(GpuUse(60))) as meter:
        meter.of_machine()
        await asyncio.sleep(6)
        found = meter.of_machine()
        assert (None if found is None else found.value, meter.failure) == (30, None)


async def test_where_none_tells_the_last_reading_grows_old_and_the_next_is_later() -> None:
    source = Source(GpuUse(50))
    async with metered(source) as meter:
        meter.of_machine()
        await asyncio.sleep(6)
        before = meter.of_machine()
        assert before is not None
        source.use = None
        source.read.clear()
        for _ in range(10):
            await asyncio.sleep(10)
            assert meter.of_machine() == before
        assert meter.failure == "it is broken"
        assert len(source.read) <= 5
