"""What was saved, counted by a real proxy and kept over its restarts."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.serving import Serving, serving

ENGINE = (
    *(sys.executable, "-m", "vllm_chill.demo_engine", "--model", "demo"),
    *("--port", "{port}", "--load-seconds", "0.5"),
)
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
FLAGS = ("--idle-timeout", "300ms", "--gpu-count", "4", "--gpu-hour-price", "3600", "--currency", "eur")


async def savings(proxy: Serving) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(proxy.url + "/proxy/savings") as response:
        assert response.status == 200
        return dict(await response.json())


async def metrics(proxy: Serving) -> str:
    async with aiohttp.ClientSession() as session, session.get(proxy.url + "/proxy/metrics") as response:
        return await response.text()


async def ask(proxy: Serving, times: int) -> None:
    async with aiohttp.ClientSession() as session:

        async def once() -> None:
            async with session.post(proxy.url + "/v1/chat/completions", json=CHAT) as response:
                assert response.status == 200
                await response.read()

        await asyncio.gather(*(once() for _ in range(times)))


def gpu_seconds(answer: dict[str, Any]) -> float:
    total = answer["total"]
    return float(total["asleep_gpu_hours"] + total["awake_gpu_hours"]) * 3600


async def test_it_is_counted_and_outlasts_an_orderly_end_and_a_kill(tmp_path: Path) -> None:
    begun = time.monotonic()
    async with serving(*FLAGS, "--state-dir", str(tmp_path), command=ENGINE) as proxy:
        await ask(proxy, 3)
        await proxy.until(lambda target: target["phase"] == "asleep")
        first = await savings(proxy)
        assert (first["currency"], first["gpu_hour_price"]) == ("EUR", 3600)
        [model] = first["models"]
        assert (model["target"], model["model"], model["gpus"]) == (f"process/{Path(sys.executable).name}", None, 4)
        total = first["total"]
        assert (total["callers_waited"], total["wakes"]) == (3, 1)
        assert 3 * 0.5 <= total["waited_seconds"] <= 3 * (time.monotonic() - begun)
        assert total["awake_gpu_hours"] >= 0.8 * 4 / 3600
        assert 0 < gpu_seconds(first) <= 4 * (time.monotonic() - begun)
        assert total["saved"] == sum(day["saved"] for day in model["days"])
        assert total["saved"] == pytest.approx(total["asleep_gpu_hours"] * 3600, abs=0.004)
        text = await metrics(proxy)
        assert f'vllm_chill_gpu_seconds_total{{state="awake",target="{model["target"]}"}}' in text
        assert await proxy.stop() == 0
    # Nothing of what was told is gone, nor of what came after it.
    async with serving(*FLAGS, "--state-dir", str(tmp_path), command=ENGINE) as proxy:
        await ask(proxy, 1)
        second = await savings(proxy)
        assert second["since"] == first["since"]
        assert (second["total"]["callers_waited"], second["total"]["wakes"]) == (4, 2)
        assert gpu_seconds(first) < gpu_seconds(second) <= 4 * (time.monotonic() - begun)
        proxy.process.send_signal(signal.SIGKILL)
        await proxy.process.wait()
    # What this one had not written is lost, and no more.
    async with serving(*FLAGS, "--state-dir", str(tmp_path), command=ENGINE) as proxy:
        third = await savings(proxy)
        assert third["since"] == first["since"]
        assert (third["total"]["callers_waited"], third["total"]["wakes"]) == (3, 1)
        assert gpu_seconds(third) >= gpu_seconds(first) - 0.01
    [file] = tmp_path.glob("savings-*")  # noqa: ASYNC240 - nothing else runs
    assert file.stat().st_mode & 0o077 == 0
