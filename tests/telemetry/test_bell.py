"""The bell rings for what is to be told at once, and for nobody while nobody looks."""

from __future__ import annotations

import asyncio

from tests.scenarios.stage import stage
from vllm_chill.core.target import Ready, Target, TargetRef
from vllm_chill.telemetry.bell import Bell


def test_it_rings_for_phases_and_progress_and_not_for_what_each_request_does() -> None:
    bell, rung = Bell(), []
    target = Target(TargetRef("ns", "vllm"))
    bell.changed(target, target, 1.0)
    bell.rings = lambda: rung.append(1)
    bell.answered(1.0)
    bell.held(1.0)
    bell.scaled(target, 1, None)
    assert not rung
    bell.changed(target, target, 1.0)
    bell.progressed(target, 1.0)
    assert len(rung) == 2


async def test_whoever_hears_it_finds_what_has_changed() -> None:
    async with stage(start=0.01) as s:
        bell, seen = Bell(), []
        record = s.controller._recorder
        record._recorders = (*record._recorders, bell)  # type: ignore[attr-defined]

        def look() -> None:
            seen.append(type(s.controller.target.phase).__name__)

        bell.rings = look
        await s.controller.wake(wait=True)
        await s.until(lambda: s.phase_is(Ready))
        await asyncio.sleep(0)
        assert list(dict.fromkeys(seen)) == ["Waking", "Ready"]
