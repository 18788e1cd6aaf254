"""The meters of a proxy, on its controllers and over real sockets."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.scenarios.stage import stage
from vllm_chill.app.meters import open_meters
from vllm_chill.core.scaling.signals import Metric, Signal
from vllm_chill.errors import SettingError

QUEUE = Signal(Metric.QUEUE_LENGTH)


async def engine(request: web.BaseRequest) -> web.StreamResponse:
    assert request.path == "/metrics"
    return web.Response(text="vllm:num_requests_running 3\nvllm:num_requests_waiting 7\n")


async def test_the_replicas_of_a_controller_are_measured_from_when_they_are_ready() -> None:
    async with stage(engine) as proxy, open_meters(pods=True) as meters:
        meter = meters.of(proxy.controller)
        running = asyncio.create_task(meter.run())
        assert meter.members([QUEUE]) == ()
        proxy.backend.set_replicas(1)
        await proxy.until(lambda: meter.busy)
        [reading] = meter.members([QUEUE])
        assert reading.samples[QUEUE].value == 7
        assert proxy.hits == ["GET /metrics"]
        assert not proxy.controller.target.in_flight
        proxy.backend.set_replicas(0)
        assert (meter.members([QUEUE]), meter.busy) == ((), False)
        running.cancel()
        await asyncio.wait([running])


async def test_an_address_that_is_none_is_a_setting_to_mend() -> None:
    with pytest.raises(SettingError, match="no address of a Prometheus"):
        async with open_meters(pods=True, prometheus_url="prometheus:9090"):
            pass
