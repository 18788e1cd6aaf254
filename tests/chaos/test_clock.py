"""A clock that jumps, as one does that NTP sets right: nothing is sooner or later for it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

import pytest

from tests.chaos.load import Load
from tests.chaos.stage import Proxy, Stage, answered, now
from tests.chaos.table import Row, load_cells
from tests.chaos.test_api_server import NOTICED_P50, NOTICED_P99

_FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
_IDLE_SECONDS = 15
_LOAD_SECONDS = 5


def clock_of(proxy: Proxy) -> float:
    """What its clock said, in seconds, when it last logged something."""
    return datetime.fromisoformat(proxy.serving.log[-1]["timestamp"]).timestamp()


@pytest.mark.skipif(not _FAKETIME, reason="needs libfaketime (apt-get install libfaketime)")
@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_jumps_changes_nothing(hours: int, stage: Stage, rows: list[Row], tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0")
    clock = {
        "LD_PRELOAD": str(_FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
    }
    targets = await stage.targets("warm", "idle", "cold", awake=("warm", "idle"), load_seconds=_LOAD_SECONDS)
    async with asyncio.TaskGroup() as starting:
        flags = {"idle": ("--idle-timeout", f"{_IDLE_SECONDS}s")}
        started = [starting.create_task(stage.two(one, *flags.get(name, ()), **clock)) for name, one in targets.items()]
    warm, idle, cold = (task.result() for task in started)
    for proxy in (*warm, *idle):
        assert (await answered(proxy.url))[0] == 200

    async with Load(*(proxy.url for proxy in warm)) as load:
        await asyncio.sleep(4)
        assert (await answered(idle[1].url))[0] == 200
        load.interval = "during"
        used = now()
        held = asyncio.create_task(answered(cold[0].url, hold="30s"))
        await asyncio.sleep(2)
        before = clock_of(cold[0])
        offset.write_text(f"{3600 * hours:+d}")
        status, _, seconds = await held
        assert (status, abs(clock_of(cold[0]) - before - 3600 * hours) < 60) == (200, True)
        assert _LOAD_SECONDS < seconds < _LOAD_SECONDS + 10
        assert not any(proxy.said("asleep") for proxy in idle)
        await stage.replicas_become(idle[0].target, 0)
        slept = now() - used
        assert _IDLE_SECONDS <= slept < _IDLE_SECONDS + 3
        load.interval = "after"
        assert (await answered(idle[0].url))[0] == 200
        await asyncio.sleep(3)

    name = f"{'forward' if hours > 0 else 'back'} by 1 h"
    held_for, idle_for = f"{seconds:.1f} s for a load of {_LOAD_SECONDS} s", f"{slept:.1f} s of {_IDLE_SECONDS} s"
    rows.append(Row("clock", name, {**load_cells(load), "held": held_for, "idle": idle_for}))
    assert load.failures() == {}
    assert load.latency("during").p50 < load.latency("before").p50 + NOTICED_P50
    assert load.latency("during").p99 < load.latency("before").p99 + NOTICED_P99
