"""What is told of cold starts: while one is under way, and when it is over."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.scenarios.stage import Stage, stage
from vllm_chill.core.target import Failed, Progress, Ready, Waking
from vllm_chill.core.target import Stage as StartStage

DEMO_ENGINE = (sys.executable, "-m", "vllm_chill.demo_engine", "--port", "{port}", "--load-seconds", "0.5")


async def status(here: Stage) -> dict[str, Any]:
    [target] = (await here.get("/proxy/status"))[1]["targets"]
    return dict(target)


def seen_at(here: Stage, progress: Progress) -> None:
    here.controller.observed(replace(here.backend.seen, progress=progress))


async def test_the_start_under_way_is_in_the_status() -> None:
    async with stage(start=30) as here:
        caller = asyncio.create_task(here.get("/v1/x"))
        await here.until(lambda: here.phase_is(Waking) and here.backend.seen.replicas == 1)
        seen_at(here, Progress(StartStage.SCHEDULING, "3 Insufficient nvidia.com/gpu"))
        told = (await status(here))["start"]
        assert (told["stage"], told["detail"]) == ("scheduling", "3 Insufficient nvidia.com/gpu")
        assert told["eta_seconds"] is None, "nothing is known of it yet"
        assert 0 < told["elapsed_seconds"] < 5
        caller.cancel()


async def test_the_last_start_is_in_the_status_with_what_each_stage_took() -> None:
    async with stage(start=0.3) as here:
        caller = asyncio.create_task(here.get("/v1/x"))
        await here.until(lambda: here.phase_is(Waking) and here.backend.seen.replicas == 1)
        await asyncio.sleep(0.05)
        seen_at(here, Progress(StartStage.LOADING))
        assert (await caller)[0] == 200
        here.starts.answered(here.controller.now())
        told = await status(here)
        assert told["start"] is None
        last = told["last_start"]
        assert last["outcome"] == "ready"
        assert set(last["stages"]) >= {"requested", "loading"}
        assert sum(last["stages"].values()) == pytest.approx(last["total_seconds"], abs=0.005)
        assert last["stages"]["requested"] > 0.04


async def test_an_operator_is_told_of_the_start_that_it_has_waited_for() -> None:
    async with stage() as here:
        _, body = await here.post("/proxy/operations/start")
        assert body["target"]["start"] is None
        assert body["target"]["last_start"]["outcome"] == "ready"


async def test_while_a_first_answer_is_awaited_its_start_is_not_over() -> None:
    gate = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.Response(text="done")

    async with stage(slow) as here:
        caller = asyncio.create_task(here.session.get(here.url + "/v1/x"))
        await here.until(lambda: here.phase_is(Ready) and here.controller.target.in_flight == 1)
        told = (await status(here))["start"]
        assert (told["stage"], told["eta_seconds"]) == ("first_token", 0)
        gate.set()
        (await caller).release()
        await here.until(lambda: not here.controller.target.in_flight)
        assert (await status(here))["start"] is None


async def test_a_start_that_failed_is_told_with_its_stage_and_its_cause() -> None:
    async with stage(start=0.1) as here:
        here.backend.fail_start = "CUDA out of memory"
        with capture_logs() as logs:
            assert (await here.get("/v1/x"))[0] == 503
        assert here.phase_is(Failed)
        last = (await status(here))["last_start"]
        assert (last["outcome"], last["cause"], last["stopped_at"]) == ("failed", "CUDA out of memory", "requested")
        [line] = [line for line in logs if line["event"] == "cold start"]
        assert (line["stage"], line["cause"]) == ("requested", "CUDA out of memory")
