"""What is told of cold starts: while one is under way, when it is over, and after the proxy was started again."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.scenarios.stage import Stage, stage
from tests.serving import CHILL, Serving, clean_environment, command_of, followed, serving
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
        caller = asyncio.create_task(here.get("/v1/completions"))
        await here.until(lambda: here.phase_is(Waking) and here.backend.seen.replicas == 1)
        seen_at(here, Progress(StartStage.SCHEDULING, "3 Insufficient nvidia.com/gpu"))
        told = (await status(here))["start"]
        assert (told["stage"], told["detail"]) == ("scheduling", "3 Insufficient nvidia.com/gpu")
        assert told["eta_seconds"] is None, "nothing is known of it yet"
        assert 0 < told["elapsed_seconds"] < 5
        caller.cancel()


async def test_the_last_start_is_in_the_status_with_what_each_stage_took() -> None:
    async with stage(start=0.3) as here:
        caller = asyncio.create_task(here.get("/v1/completions"))
        await here.until(lambda: here.phase_is(Waking) and here.backend.seen.replicas == 1)
        await asyncio.sleep(0.05)
        seen_at(here, Progress(StartStage.LOADING))
        assert (await caller)[0] == 200
        here.starts.answered(here.controller.now())
        told = await status(here)
        assert told["start"] is None
        last = told["last_start"]
        assert last["outcome"] == "ready"
        assert set(last["stages"]) >= {"starting", "loading"}
        assert sum(last["stages"].values()) == pytest.approx(last["total_seconds"], abs=0.005)
        assert last["stages"]["starting"] > 0.04


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
        caller = asyncio.create_task(here.session.get(here.url + "/v1/completions"))
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
            assert (await here.get("/v1/completions"))[0] == 503
        assert here.phase_is(Failed)
        last = (await status(here))["last_start"]
        assert (last["outcome"], last["cause"], last["stopped_at"]) == ("failed", "CUDA out of memory", "starting")
        [line] = [line for line in logs if line["event"] == "cold start"]
        assert (line["stage"], line["cause"]) == ("starting", "CUDA out of memory")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def kept(folder: Path, seconds: float = 5) -> list[Path]:
    """The files in a folder, once there are any: what was learned is saved when nobody waits for that."""
    async with asyncio.timeout(seconds):
        while not (found := [path for path in files(folder) if path.suffix == ".json"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # a folder tells nobody
    return found


async def wake(proxy: Serving) -> None:
    async with aiohttp.ClientSession() as session, session.post(proxy.url + "/proxy/operations/start") as response:
        assert response.status == 200


async def begin(proxy: Serving) -> dict[str, Any]:
    """A start that has begun, once it is well under way."""
    url = proxy.url + "/proxy/operations/start?wait=false"
    async with aiohttp.ClientSession() as session, session.post(url) as response:
        assert response.status == 202
    start: dict[str, Any] = (await proxy.until(lambda s: s["start"]["elapsed_seconds"] > 0.2))["start"]
    return start


async def test_the_time_left_outlives_the_proxy(tmp_path: Path) -> None:
    flags = ("--state-dir", str(tmp_path), "--shutdown-delay", "0")
    async with serving(*flags, command=DEMO_ENGINE) as proxy:
        assert (await begin(proxy))["eta_seconds"] is None
        await wake(proxy)
        took = (await proxy.until_logged("cold start"))["seconds"]
        await kept(tmp_path)
        assert await proxy.stop() == 0
    async with serving(*flags, command=DEMO_ENGINE) as proxy:
        start = await begin(proxy)
        assert start["eta_seconds"] == pytest.approx(took - start["elapsed_seconds"], abs=0.3)
    async with serving(*flags, command=(*DEMO_ENGINE, "--model", "other")) as proxy:
        assert (await begin(proxy))["eta_seconds"] is None, "another command has another history"


async def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with serving("--state-dir", str(tmp_path / "file"), command=DEMO_ENGINE) as proxy:
        await wake(proxy)
        warnings = [line for line in proxy.log if line["level"] == "warning"]
        assert [line["logger"] for line in warnings] == ["vllm_chill.savings", "vllm_chill"], warnings
        assert "--state-dir" in warnings[1]["event"]
        async with aiohttp.ClientSession() as session, session.get(proxy.url + "/v1/models") as response:
            assert response.status == 200


async def test_what_is_in_the_folder_is_never_trouble(tmp_path: Path) -> None:
    flags = ("--state-dir", str(tmp_path), "--shutdown-delay", "0")
    async with serving(*flags, command=DEMO_ENGINE) as proxy:
        await wake(proxy)
        [file] = await kept(tmp_path)
        await proxy.stop()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("{ no history")
    async with serving(*flags, command=DEMO_ENGINE) as proxy:
        assert (await begin(proxy))["eta_seconds"] is None
        assert [line for line in proxy.log if line["level"] not in ("info", "raw")] == []


@asynccontextmanager
async def at_home(home: Path, *flags: str) -> AsyncIterator[Serving]:
    """A proxy whose user has this home."""
    process = await asyncio.create_subprocess_exec(
        *CHILL, "serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json", *flags, *command_of(DEMO_ENGINE),
        stderr=asyncio.subprocess.PIPE, env=clean_environment(HOME=str(home), XDG_STATE_HOME=""),
    )  # fmt: skip
    async with followed(process) as proxy:
        yield proxy


async def test_if_nobody_says_where_the_state_is_kept_in_the_users_home(tmp_path: Path) -> None:
    async with at_home(tmp_path) as proxy:
        await wake(proxy)
        [file] = await kept(tmp_path)
    assert file.parent == tmp_path / ".local/state/vllm-chill"


async def test_nothing_is_kept_if_nothing_shall_be(tmp_path: Path) -> None:
    async with at_home(tmp_path, "--state-dir", "", "--shutdown-delay", "0") as proxy:
        await wake(proxy)
        await proxy.until_logged("cold start")
        await asyncio.sleep(0.3)  # by then it would be there
    assert files(tmp_path) == []
