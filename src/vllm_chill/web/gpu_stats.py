"""GPU statistics for whoever asks: the best source that has any, read once a second at the most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from aiohttp import web
from msgspec import to_builtins

from vllm_chill.api.gpu import GpuStatsAnswer, gpu_stats
from vllm_chill.errors import BackendUnavailable, NoGpuStats
from vllm_chill.ports import GpuStats

_FRESH_SECONDS = 1.0


def _now() -> datetime:
    return datetime.now(UTC)


def _seen(reading: asyncio.Task[GpuStatsAnswer]) -> None:
    """Whoever asked may have left, and then nobody is there to take the error."""
    if not reading.cancelled():
        reading.exception()


class GpuStatsPage:
    """The answer to GET /proxy/stats. `sources` are asked in their order, until one has something to tell."""

    def __init__(self, sources: Sequence[GpuStats] = (), now: Callable[[], datetime] = _now) -> None:
        self._sources = tuple(sources)
        self._now = now
        self._clock = asyncio.get_running_loop().time
        self._reading: asyncio.Task[GpuStatsAnswer] | None = None
        self._read_at = 0.0

    async def tell(self, _: web.BaseRequest) -> web.Response:
        """The statistics, up to a second old. Raises NoGpuStats."""
        reading, cached = self._reading, "HIT"
        if reading is None or (reading.done() and self._clock() - self._read_at >= _FRESH_SECONDS):
            reading, cached = asyncio.create_task(self._read()), "MISS"
            self._reading = reading
            reading.add_done_callback(_seen)
        return web.json_response(to_builtins(await asyncio.shield(reading)), headers={"X-Cache": cached})

    async def _read(self) -> GpuStatsAnswer:
        missing = []
        for source in self._sources:
            try:
                reading = await source.read()
            except BackendUnavailable as error:
                missing.append(error.message)
                continue
            self._read_at = self._clock()
            return gpu_stats(reading, self._now().isoformat(timespec="milliseconds"), missing)
        self._read_at = self._clock()
        why = "".join(f" {cause[0].upper()}{cause[1:]}." for cause in missing)
        raise NoGpuStats(
            f"Nothing here tells how the GPUs are.{why} Set --gpu-stats-url to a DCGM exporter's metrics, or install "
            "vllm-chill[gpu] where the proxy sees the GPUs."
        )
