"""What docs/autoscalers.md has an HPA and KEDA ask is answered by a real Prometheus that scrapes a real proxy."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml
from aiohttp import web

from tests.real_prometheus import running
from tests.scenarios.stage import Stage, stage
from vllm_chill.adapters.prometheus import Prometheus
from vllm_chill.app.meters import open_meters
from vllm_chill.control.meter import Meter
from vllm_chill.core.scaling.signals import Aggregation, Metric, Signal
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import BackendUnavailable
from vllm_chill.telemetry.replica_metrics import Scaled

PAGE = (Path(__file__).parent.parent.parent / "docs" / "autoscalers.md").read_text()
SAMPLES: list[dict[str, Any]] = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
TARGET = TargetRef("ai-apps", "vllm")

TTFT = Signal(Metric.LATENCY, Aggregation.TTFT, percentile=95, window_seconds=120)


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [sample for sample in SAMPLES if sample.get("kind") == kind]


def rules() -> list[dict[str, Any]]:
    [config] = [sample for sample in SAMPLES if "externalRules" in sample]
    found: list[dict[str, Any]] = config["externalRules"]
    return found


def queries() -> Iterator[str]:
    """Every expression in the samples."""
    for rule in rules():
        yield rule["metricsQuery"]
    for scaled in of_kind("ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            yield trigger["metadata"]["query"]


def test_each_metric_of_a_sample_hpa_is_made_by_a_rule() -> None:
    made = {rule["name"]["as"] for rule in rules()}
    used = {
        metric["external"]["metric"]["name"]
        for autoscaler in of_kind("HorizontalPodAutoscaler")
        for metric in autoscaler["spec"]["metrics"]
    }
    assert used == made
    # The adapter takes these for templates, and they are whole expressions.
    assert not any("<<" in rule["metricsQuery"] for rule in rules())


class Engine:
    """A stub of vLLM: it has what it says of itself, and what a DCGM exporter would say of its GPU."""

    def __init__(self) -> None:
        self.first_tokens = (0, 0, 0)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(text=self.page)
        if request.path == "/dcgm":
            return web.Response(text='DCGM_FI_DEV_GPU_UTIL{UUID="G",pod="memory-1",namespace="ai-apps"} 64\n')
        return web.json_response({})

    @property
    def page(self) -> str:
        fast, slow, count = self.first_tokens
        return (
            'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_waiting{engine="0"} 7\n'
            'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:generation_tokens_total{engine="0"} 65\n'
            f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.5"}} {fast}\n'
            f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="2.5"}} {slow}\n'
            f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf"}} {count}\n'
            f'vllm:time_to_first_token_seconds_count{{engine="0"}} {count}\n'
            'vllm:time_to_first_token_seconds_sum{engine="0"} 1\n'
        )


@contextlib.asynccontextmanager
async def measured(engine: Engine) -> AsyncIterator[tuple[Stage, Meter]]:
    """A proxy that listens, in front of one ready replica that it measures."""
    async with stage(engine, ref=TARGET, awake=True) as proxy:
        where = proxy.backend.endpoint
        async with open_meters(pods=True, gpu_stats_url=f"http://{where}/dcgm") as meters:
            meter = meters.of(proxy.controller)
            proxy.metrics.replicas.follow(TARGET, Scaled(meter.figures, proxy.controller.now, lambda: 2, lambda: 4))
            running = asyncio.create_task(meter.run())
            yield proxy, meter
            running.cancel()
            await asyncio.wait([running])


@contextlib.asynccontextmanager
async def prometheus(proxy: Stage, folder: Path) -> AsyncIterator[Prometheus]:
    """Debian's Prometheus with the sample's configuration, but for where the proxy is, and a faster interval."""
    [config] = [sample for sample in SAMPLES if "scrape_configs" in sample]
    [job] = config["scrape_configs"]
    job |= {"scrape_interval": "1s", "static_configs": [{"targets": [urlsplit(proxy.url).netloc]}]}
    async with running(folder, config) as port, Prometheus(f"http://127.0.0.1:{port}") as asked:
        yield asked


async def eventually(asked: Prometheus, expression: str, value: float | None = None) -> float:
    """The value of an expression once it has one, or this one."""
    found: float | None = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while found is None or (value is not None and found != pytest.approx(value)):
                await asyncio.sleep(0.2)
                with contextlib.suppress(BackendUnavailable):
                    found = await asked.value(expression)
    assert found is not None, f"{expression} has no value"
    assert value is None or found == pytest.approx(value)
    return found


@pytest.mark.slow
async def test_every_query_of_the_samples_answers_one_number(tmp_path: Path) -> None:
    engine = Engine()
    async with measured(engine) as (proxy, _), prometheus(proxy, tmp_path) as asked:
        await eventually(asked, 'vllm_chill_replica_queue_length{target="ai-apps/vllm"}', 7)
        await eventually(asked, 'vllm_chill_replica_gpu_utilization_ratio{target="ai-apps/vllm"}', 0.64)
        found = {query: await eventually(asked, query) for query in queries()}
        for rule in rules():
            assert await eventually(asked, f"count({rule['seriesQuery']})") == 1
    told = {rule["name"]["as"]: found[rule["metricsQuery"]] for rule in rules()}
    assert told == {"vllm_recommended_replicas": 4, "vllm_queue_length": 7, "vllm_kv_cache_usage": 0.5}
    assert [*found.values()][len(told) :] == [0, 7, 0, 0.64]


@pytest.mark.slow
async def test_who_is_held_is_seen_while_nothing_runs(tmp_path: Path) -> None:
    async with stage(ref=TARGET, start=3600) as proxy, prometheus(proxy, tmp_path) as asked:
        [scaled] = of_kind("ScaledObject")
        from_zero = scaled["spec"]["triggers"][0]["metadata"]["query"]
        assert await eventually(asked, from_zero) == 0
        caller = asyncio.create_task(proxy.post("/v1/chat/completions", json={"model": "m"}))
        await eventually(asked, from_zero, 1)
        caller.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
            await caller


@pytest.mark.slow
async def test_a_latency_is_the_same_here_and_in_prometheus(tmp_path: Path) -> None:
    engine = Engine()
    async with measured(engine) as (proxy, meter), prometheus(proxy, tmp_path) as asked:
        meter.of_target([TTFT])
        await eventually(asked, 'vllm_chill_replica_inference_latency_seconds_count{kind="ttft"}', 0)
        engine.first_tokens = (60, 98, 100)
        latency = next(query for query in queries() if "histogram_quantile" in query)
        expected = 0.5 + 2.0 * (95 - 60) / 38
        await eventually(asked, latency, expected)
        assert meter.of_target([TTFT])[TTFT].value == pytest.approx(1000 * expected)
