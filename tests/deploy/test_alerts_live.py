"""A real Prometheus that scrapes real proxies: each panel's query has an answer, each alert comes in its state alone.

How long a state has to last is for tests/deploy/test_alerts.py, which plays hours; here the expressions are asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.deploy.alerting import ALERTS, Query, queries
from tests.real_prometheus import running
from tests.scenarios.stage import Stage, stage
from vllm_chill.app.meters import open_meters
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import BackendRefused
from vllm_chill.telemetry.replica_metrics import Scaled

pytestmark = pytest.mark.slow

TARGET = TargetRef("ai-apps", "vllm")
Answer = dict[frozenset[tuple[str, str]], float]
CHAT = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}


class Asked:
    """A Prometheus to ask."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query"
        self._session = session

    async def answer(self, expression: str) -> Answer:
        """The value of each series now, by its labels; nothing while Prometheus does not answer yet."""
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with self._session.post(self._url, data={"query": expression}) as response:
                if response.status == 503:
                    return {}
                said = await response.json()
                assert said["status"] == "success", (expression, said)
                return {frozenset(one["metric"].items()): float(one["value"][1]) for one in said["data"]["result"]}
        return {}

    async def until(
        self, expression: str, holds: Callable[[list[float]], object] = bool, seconds: float = 30
    ) -> list[float]:
        """The values of an expression, once they are such that `holds` is true."""
        found: list[float] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not holds(found):
                    await asyncio.sleep(0.2)
                    found = list((await self.answer(expression)).values())
        assert holds(found), f"{expression}: {found}"
        return found

    async def firing(self) -> set[str]:
        """The alerts whose states there are now."""
        return {name for name, rule in ALERTS.items() if await self.answer(rule["expr"])}


@contextlib.asynccontextmanager
async def prometheus(folder: Path, *proxies: str) -> AsyncIterator[Asked]:
    """Debian's Prometheus, which scrapes these as the ServiceMonitor has it done, only more often."""
    job = {
        "job_name": "vllm-chill-svc",
        "metrics_path": "/proxy/metrics",
        "scrape_interval": "500ms",
        "static_configs": [{"targets": [url.removeprefix("http://") for url in proxies],
                            "labels": {"namespace": "ai-apps"}}],
    }  # fmt: skip
    async with (
        running(folder, {"scrape_configs": [job]}) as port,
        aiohttp.ClientSession() as session,
    ):
        yield Asked(port, session)


# --- alerts ---


async def test_none_is_there_in_a_life_as_it_should_be(tmp_path: Path) -> None:
    async with stage(ref=TARGET, idle=1.0, start=0.3) as proxy, prometheus(tmp_path, proxy.url) as asked:
        await asked.until("vllm_chill_leader")
        for round_ in range(1, 4):
            assert (await proxy.post("/v1/chat/completions", json=CHAT))[0] == 200
            await asked.until("vllm_chill_wake_duration_seconds_count", lambda v, n=round_: v == [n])  # type: ignore[misc]
            await asked.until("vllm_chill_vllm_state", lambda values: values == [2])
            assert await asked.firing() == set()
            await asked.until("vllm_chill_vllm_state", lambda values: values == [0])
            assert await asked.firing() == set()


async def down(proxy: Stage, asked: Asked) -> None:
    await proxy.server.close()


async def unseen(proxy: Stage, asked: Asked) -> None:
    proxy.backend.lose("the API server is away")


async def leaderless(proxy: Stage, asked: Asked) -> None:
    proxy.metrics.follow_peers(lambda: False, lambda: 1)


async def failing(proxy: Stage, asked: Asked) -> None:
    proxy.backend.fail_start = "the engine crashes"
    assert (await proxy.post("/v1/chat/completions", json=CHAT))[0] == 503


async def starting(proxy: Stage, asked: Asked) -> None:
    proxy.backend.start_seconds = 3600
    await proxy.post("/proxy/operations/start?wait=false")


async def refusing(proxy: Stage, asked: Asked) -> None:
    for _ in range(5):
        await proxy.post("/v1/chat/completions", json=CHAT)
    proxy.backend.start_seconds = 3600
    proxy.backend.set_replicas(0)
    await asked.until("vllm_chill_vllm_state", lambda values: values == [0])
    for _ in range(20):
        assert (await proxy.post("/v1/chat/completions", json=CHAT))[0] == 503
        await asyncio.sleep(0.1)


async def stuck(proxy: Stage, asked: Asked) -> None:
    assert (await proxy.post("/v1/chat/completions", json=CHAT))[0] == 200
    proxy.backend.fail_next = [BackendRefused("no right to it")] * 1000
    asked_to_stop = asyncio.create_task(proxy.post("/proxy/operations/stop"))
    await asyncio.wait([asked_to_stop], timeout=1)
    asked_to_stop.cancel()


async def fought_over(proxy: Stage, asked: Asked) -> None:
    assert (await proxy.post("/v1/chat/completions", json=CHAT))[0] == 200
    for replicas in (3, 1) * 4:
        proxy.backend.set_replicas(replicas)
        await asked.until("vllm_chill_current_replicas", lambda values, n=replicas: values == [n])  # type: ignore[misc]


PLANTED: dict[str, tuple[Callable[[Stage, Asked], Any], set[str]]] = {
    # The state, and what else comes with it.
    "VllmChillDown": (down, {"VllmChillNotScraped"}),
    "VllmChillBackendUnavailable": (unseen, set()),
    "VllmChillNoLeader": (leaderless, set()),
    "VllmChillWakeFailing": (failing, {"VllmChillRequestsRejected"}),
    "VllmChillStartLong": (starting, set()),
    "VllmChillRequestsRejected": (refusing, {"VllmChillStartLong", "VllmChillWaitingTooLong"}),
    "VllmChillSleepFailing": (stuck, set()),
    "VllmChillScaleConflict": (fought_over, set()),
}


@pytest.mark.parametrize("alert", PLANTED)
async def test_it_is_there_in_its_state_and_no_other_is(alert: str, tmp_path: Path) -> None:
    plant, besides = PLANTED[alert]
    hold = 0.2 if plant is refusing else 10.0
    async with stage(ref=TARGET, hold=hold) as proxy, prometheus(tmp_path, proxy.url) as asked:
        await asked.until("vllm_chill_leader")
        assert await asked.firing() == set()
        await plant(proxy, asked)
        await asked.until(ALERTS[alert]["expr"])
        assert await asked.firing() <= {alert, *besides}


async def test_who_waits_is_there_while_somebody_does(tmp_path: Path) -> None:
    async with stage(ref=TARGET, start=3600) as proxy, prometheus(tmp_path, proxy.url) as asked:
        caller = asyncio.create_task(proxy.post("/v1/chat/completions", json=CHAT))
        assert await asked.until(ALERTS["VllmChillWaitingTooLong"]["expr"]) == [1]
        assert await asked.firing() == {"VllmChillWaitingTooLong", "VllmChillStartLong"}
        caller.cancel()
        await asyncio.wait([caller])
        await asked.until(ALERTS["VllmChillWaitingTooLong"]["expr"], lambda values: not values)


async def test_that_nothing_is_scraped_is_there_from_the_beginning(tmp_path: Path) -> None:
    async with prometheus(tmp_path) as asked:
        await asked.until(ALERTS["VllmChillNotScraped"]["expr"])
        assert await asked.firing() == {"VllmChillNotScraped"}


# --- the dashboard ---


class Engine:
    """A stub of vLLM that says of itself what a vLLM does, and of its GPU what a DCGM exporter does."""

    def __init__(self) -> None:
        self.answered = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.path:
            case "/metrics":
                return web.Response(text=self.page)
            case "/dcgm":
                gauge = 'DCGM_FI_DEV_GPU_UTIL{{UUID="G{0}",pod="memory-{0}",namespace="ai-apps"}} 64'
                return web.Response(text="".join(f"{gauge.format(number)}\n" for number in range(1, 5)))
            case _:
                await request.read()
                self.answered += 1
                return web.json_response({}, status=500 if self.answered % 4 == 0 else 200)

    @property
    def page(self) -> str:
        """Half of the first tokens came within 0.5 s, the others within 2.5 s."""
        n = 2 * self.answered
        return (
            'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_waiting{engine="0"} 7\n'
            f'vllm:kv_cache_usage_perc{{engine="0"}} 0.5\nvllm:generation_tokens_total{{engine="0"}} {65 * n}\n'
            f'vllm:prompt_tokens_total{{engine="0"}} {10 * n}\n'
            f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.5"}} {n / 2}\n'
            f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="2.5"}} {n}\n'
            f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf"}} {n}\n'
            f'vllm:time_to_first_token_seconds_count{{engine="0"}} {n}\nvllm:time_to_first_token_seconds_sum {n}\n'
        )


@contextlib.asynccontextmanager
async def lived(folder: Path) -> AsyncIterator[Asked]:
    """A proxy that has woken, answered, failed, slept and waked again, in front of a replica that is measured."""
    engine = Engine()
    async with stage(engine, ref=TARGET, start=0.4) as proxy, prometheus(folder, proxy.url) as asked:
        where = proxy.backend.endpoint
        async with open_meters(pods=True, gpu_stats_url=f"http://{where}/dcgm") as meters:
            meter = meters.of(proxy.controller)
            proxy.metrics.replicas.follow(TARGET, Scaled(meter.figures, proxy.controller.now, lambda: 1, lambda: 2))
            measuring = asyncio.create_task(meter.run())
            await asked.until("vllm_chill_leader")
            proxy.backend.fail_start = "the engine crashes"
            assert (await proxy.post("/v1/chat/completions", json=CHAT))[0] == 503
            proxy.backend.fail_start = None
            await proxy.post("/proxy/operations/start")
            proxy.metrics.switched("qwen", "llama", 3, ok=True)
            for _ in range(25):
                await proxy.raw(b"no request at all\r\n\r\n")
                await proxy.post("/v1/chat/completions", json=CHAT)
                await asyncio.sleep(0.2)
            proxy.metrics.switched("qwen", "llama", 3, ok=True)
            await asyncio.sleep(6)
            for _ in range(10):
                await proxy.post("/v1/chat/completions", json=CHAT)
            await asked.until(
                'vllm_chill_replica_tokens_total{kind="prompt"}', lambda values: max(values, default=0) > 500
            )
            await asyncio.sleep(1)
            yield asked
            measuring.cancel()
            await asyncio.wait([measuring])


# What a panel has to show of such a life: the least that its highest value may be, and the most.
PLAUSIBLE: dict[str, tuple[float, float]] = {
    "Phase": (2, 2),
    "Waiting": (0, 0),
    "In flight": (0, 0),
    "Awake": (1, 1),
    "Asleep": (0, 0),
    "Where the time of a start goes": (0.01, 2),
    "A whole start": (0.01, 2.5),
    "Wakes": (0.5, 3),
    "How long callers are held": (0.01, 2.5),
    "Unused for": (0, 60),
    "Rate": (0.001, 50),
    "Errors": (0.01, 0.9),
    "Duration": (0.0001, 2.5),
    "Time to the first token": (0.1, 2.5),
    "Tokens": (1, 5000),
    "What went wrong": (0, 50),
    "Replicas": (1, 2),
    "Writes of replicas": (0, 5),
    "Load of the replicas": (3, 7),
    "KV cache": (0.5, 0.5),
    "GPU use": (0.64, 0.64),
    "Models that took another's place": (0.5, 3),
    "Who leads": (1, 1),
    "Peers": (0, 0),
    "Sees its targets": (1, 1),
    "GPU-hours asleep": (0, 0.01),
    "GPU-hours awake": (0.0001, 0.1),
    "GPUs asleep and awake": (0.1, 3),
    "Memory": (1e7, 2e9),
    "CPU": (0.0001, 16),
    "Open files": (3, 1e9),
}


def expected(query: Query) -> str:
    """What is not in a query's labels and has to be: the legend's names."""
    return " ".join(re.findall(r"\{\{(\w+)\}\}", query.legend))


async def test_each_panels_query_shows_what_its_title_says(tmp_path: Path) -> None:
    asked_for = queries("15s")
    assert {query.panel for query in asked_for} == PLAUSIBLE.keys()
    async with lived(tmp_path) as asked:
        for query in asked_for:
            answer = await asked.answer(query.expression)
            least, most = PLAUSIBLE[query.panel]
            assert answer, f"{query.panel}: {query.expression}"
            assert least <= max(answer.values()) <= most, (query, answer)
            assert min(answer.values()) >= 0, (query, answer)
            for labels in answer:
                assert {name for name, _ in labels} >= set(expected(query).split()), (query, dict(labels))
        assert await asked.firing() <= {"VllmChillRequestsRejected"}


async def test_the_phases_of_a_start_add_up_to_it(tmp_path: Path) -> None:
    by_title = {query.panel: query for query in queries("15s")}
    async with lived(tmp_path) as asked:
        phases = await asked.answer(by_title["Where the time of a start goes"].expression)
        sums = "vllm_chill_wake_duration_seconds_sum / vllm_chill_wake_duration_seconds_count"
        [whole] = (await asked.answer(sums)).values()
        # From the engine's readiness to its first token nobody waits for a replica any more.
        waited = sum(value for labels, value in phases.items() if ("phase", "first_token") not in labels)
        assert waited == pytest.approx(whole, rel=0.2)
