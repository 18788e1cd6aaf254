"""GPU statistics: the best source that has any, a second old at the most, and nobody woken for them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from tests.scenarios.stage import envelope
from tests.web.several import Several, several
from vllm_chill.core.gpu import EngineLoad, Gpu, GpuReading
from vllm_chill.errors import BackendUnavailable, NoGpuStats
from vllm_chill.web.gpu_stats import GpuStatsPage

STATS = "/proxy/stats"


class Source:
    """ports.GpuStats of what it is told to be."""

    def __init__(self, outcome: GpuReading | str, seconds: float = 0.0) -> None:
        self.outcome, self.seconds, self.reads = outcome, seconds, 0

    async def read(self) -> GpuReading:
        self.reads += 1
        await asyncio.sleep(self.seconds)
        if isinstance(self.outcome, str):
            raise BackendUnavailable(self.outcome)
        return self.outcome


GPU = GpuReading("nvml", (Gpu(index=0, name="H200", memory_used_mb=1, memory_total_mb=4),))
LOAD = GpuReading("vllm", engines=(EngineLoad("a", "127.0.0.1:1", kv_cache_percent=12.5, running=1, waiting=0),))


async def ask(s: Several) -> tuple[str, Any]:
    async with s.session.get(s.url + STATS) as response:
        assert response.status == 200
        return response.headers["X-Cache"], await response.json()


async def test_a_gpu_has_all_its_fields_and_null_for_what_it_does_not_tell() -> None:
    async with several(sources=[Source(GPU)]) as s:
        _, body = await ask(s)
        assert datetime.fromisoformat(body.pop("timestamp")).tzinfo is not None
        [gpu] = body.pop("gpus")
        assert body == {"source": "nvml", "engines": [], "missing": []}
        assert gpu == {
            "index": 0,
            "name": "H200",
            "uuid": None,
            "node": None,
            "utilization_percent": None,
            "memory_used_mb": 1,
            "memory_total_mb": 4,
            "memory_util_percent": 25.0,
            "temperature_c": None,
            "power_draw_w": None,
            "power_limit_w": None,
            "fan_speed_percent": None,
            "encoder_util_percent": None,
            "decoder_util_percent": None,
        }


async def test_the_first_source_that_has_any_is_told_and_why_better_ones_had_none() -> None:
    sources = [Source("NVML sees no GPU here"), Source("http://x cannot be asked"), Source(LOAD), Source(GPU)]
    async with several(sources=sources) as s:
        _, body = await ask(s)
        assert (body["source"], body["gpus"]) == ("vllm", [])
        assert body["engines"] == [
            {"target": "a", "endpoint": "127.0.0.1:1", "kv_cache_percent": 12.5, "running": 1, "waiting": 0}
        ]
        assert body["missing"] == ["NVML sees no GPU here", "http://x cannot be asked"]
        assert sources[3].reads == 0


async def test_it_is_read_once_for_all_who_ask_within_a_second() -> None:
    source = Source(GPU, seconds=0.05)
    async with several(sources=[source]) as s:
        first, *others = await asyncio.gather(*(ask(s) for _ in range(5)))
        assert source.reads == 1
        assert sorted(cache for cache, _ in (first, *others)) == ["HIT"] * 4 + ["MISS"]
        assert (await ask(s))[0] == "HIT"
        assert source.reads == 1


@pytest.mark.looptime
async def test_what_is_older_is_read_anew() -> None:
    times = iter((datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)))
    page, nobody = GpuStatsPage([source := Source(GPU)], lambda: next(times)), web.BaseRequest.__new__(web.BaseRequest)
    first = await page.tell(nobody)
    await asyncio.sleep(0.9)
    assert (await page.tell(nobody)).text == first.text
    await asyncio.sleep(0.2)
    again = await page.tell(nobody)
    assert (again.headers["X-Cache"], source.reads) == ("MISS", 2)
    assert '"2026-01-02T00:00:00.000+00:00"' in (again.text or "")


async def test_who_leaves_ends_the_reading_for_nobody_else() -> None:
    page, nobody = GpuStatsPage([source := Source(GPU, seconds=0.05)]), web.BaseRequest.__new__(web.BaseRequest)
    leaving = asyncio.create_task(page.tell(nobody))
    await asyncio.sleep(0.01)
    staying = asyncio.create_task(page.tell(nobody))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).status == 200
    assert source.reads == 1


async def test_with_no_source_it_is_503_and_says_what_to_configure() -> None:
    async with several(sources=[Source("NVML sees no GPU here"), Source("no engine is awake")]) as s:
        async with s.session.get(s.url + STATS) as response:
            assert response.status == 503
            error = envelope(await response.text())
        assert error["code"] == NoGpuStats.code
        assert error["message"] == (
            "Nothing here tells how the GPUs are. NVML sees no GPU here. No engine is awake. Set --gpu-stats-url to a "
            "DCGM exporter's metrics, or install vllm-chill[gpu] where the proxy sees the GPUs."
        )
        assert all(not backend.writes for backend in s.backends.values())
