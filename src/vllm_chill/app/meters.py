"""What measures the replicas of all targets of one proxy: one session for the engines, one reading of the GPUs, and one
Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.adapters.gpu import DcgmStats, NvmlStats
from vllm_chill.adapters.prometheus import Prometheus
from vllm_chill.adapters.prometheus_access import PrometheusAccess
from vllm_chill.adapters.vllm import EngineScraper
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.gpu_meter import GpuMeter, Read
from vllm_chill.control.meter import Meter, Query
from vllm_chill.core.scaling.figures import measured_replicas
from vllm_chill.core.scaling.signals import Sample


class Meters:
    """Makes the meters of targets. `pods`: replicas are pods of a cluster, and else commands of this machine."""

    def __init__(self, scraper: EngineScraper, gpus: GpuMeter, query: Query | None, *, pods: bool) -> None:
        self._scraper = scraper
        self._gpus = gpus
        self._query = query
        self._pods = pods

    def of(self, controller: ScaleController) -> Meter:
        """That of one target, which measures while its `run` runs."""
        namespace = controller.target.ref.namespace

        def gpu(name: str) -> Sample | None:
            return self._gpus.of_pod(namespace, name) if self._pods else self._gpus.of_machine()

        return Meter(
            lambda: measured_replicas(controller.target),
            self._scraper.scrape,
            now=controller.now,
            gpu=gpu,
            query=self._query,
        )


@contextlib.asynccontextmanager
async def open_meters(
    *,
    pods: bool,
    gpu_stats_url: str | None = None,
    prometheus_url: str | None = None,
    token_file: Path | None = None,
    engines: EngineAccess = PLAIN,
) -> AsyncIterator[Meters]:
    """Meters with all that they need. `token_file` is for the Prometheus. Raises SettingError."""
    sources: list[Read] = [] if pods else [NvmlStats().use]
    if gpu_stats_url is not None:
        sources.append(DcgmStats(gpu_stats_url).use)
    gpus = GpuMeter(sources, now=asyncio.get_running_loop().time)
    async with contextlib.AsyncExitStack() as stack:
        scraper = await stack.enter_async_context(EngineScraper(access=engines))
        query = None
        if prometheus_url is not None:
            access = PrometheusAccess(prometheus_url, token_file=token_file)
            query = (await stack.enter_async_context(Prometheus(access))).value
        reading = asyncio.create_task(gpus.run())
        try:
            yield Meters(scraper, gpus, query, pods=pods)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
