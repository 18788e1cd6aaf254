"""The starts that are over, as they are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.scenarios.stage import Stage, stage
from tests.web.several import several
from vllm_chill.core.target import Asleep, Failed, Ready
from vllm_chill.telemetry.start_record import MOST_KEPT

STARTS = "/proxy/starts"


async def wake(s: Stage) -> None:
    assert (await s.post("/v1/chat/completions", json={}))[0] == 200
    await s.until(lambda: not s.controller.target.in_flight)


async def test_before_the_first_start_there_is_none() -> None:
    async with stage() as s:
        assert await s.get(STARTS) == (200, {"targets": [{"target": "test/vllm", "model": None, "starts": []}]})


async def test_a_start_has_its_time_its_stages_and_how_it_ended() -> None:
    async with stage(start=0.05) as s:
        before = datetime.now(UTC)
        await wake(s)
        _, told = await s.get(STARTS)
        [start] = told["targets"][0]["starts"]
        assert (start["outcome"], start["cause"], start["stopped_at"]) == ("ready", None, None)
        assert abs(sum(start["stages"].values()) - start["total_seconds"]) < 0.01
        assert start["began"].endswith("Z")
        began = datetime.fromisoformat(start["began"])
        assert before - timedelta(seconds=1) <= began <= datetime.now(UTC)
        _, status = await s.get("/proxy/status")
        assert {**status["targets"][0]["last_start"], "began": start["began"]} == start


async def test_the_newest_is_first_and_says_why_it_failed() -> None:
    async with stage(start=0.01) as s:
        await wake(s)
        await s.controller.stop()
        s.backend.fail_start = "no such <b>model</b>"
        await s.post("/v1/chat/completions", json={})
        await s.until(lambda: s.phase_is(Failed))
        _, told = await s.get(STARTS)
        failed, ready = told["targets"][0]["starts"]
        assert (failed["outcome"], failed["cause"]) == ("failed", "no such <b>model</b>")
        assert failed["stopped_at"]
        assert ready["outcome"] == "ready"


async def test_so_many_are_kept() -> None:
    async with stage(start=0.0) as s:
        for _ in range(MOST_KEPT + 2):
            await wake(s)
            await s.controller.stop()
            await s.until(lambda: s.phase_is(Asleep))
        _, told = await s.get(STARTS)
        starts = told["targets"][0]["starts"]
        assert len(starts) == MOST_KEPT
        assert [start["began"] for start in starts] == sorted((start["began"] for start in starts), reverse=True)


async def test_each_model_has_its_own() -> None:
    async with several(start=0.01) as s:
        await s.post("/v1/chat/completions", json={"model": "org/b"})
        await s.until("b", Ready)
        _, told = await s.get(STARTS)
        assert [(one["model"], len(one["starts"])) for one in told["targets"]] == [("a", 0), ("b", 1)]
