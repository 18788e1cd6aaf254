"""What is scaled and not served keeps its last replica, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.control.nobody import Nobody
from tests.control.scaling_stage import HERE, REF, Clock, Load, policy
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.autoscaler import Autoscaler
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.unserved import UnservedBackend, unserved
from vllm_chill.core.target import Limits, Ready, TargetRef, Waking
from vllm_chill.errors import BackendRefused

pytestmark = pytest.mark.looptime(start=100)

_LIMITS = Limits(300, 1800, drain_seconds=0, always_on=True)


async def test_it_is_scaled_up_and_down_and_never_to_0() -> None:
    inner = MemoryBackend(HERE, replicas=2)
    controller = ScaleController(REF, unserved(_LIMITS), UnservedBackend(inner), Nobody())
    load = Load(controller)
    scaler = Autoscaler("vllm", controller, load, wall=Clock(), fronted=False)
    scaler.policy = policy(min_replicas=0, idle_seconds=60.0)
    tasks = [asyncio.create_task(controller.run()), asyncio.create_task(scaler.run())]
    load.queue = 45
    await asyncio.sleep(20)
    assert inner.seen.replicas == 5
    load.queue = 0
    await asyncio.sleep(3600)
    assert inner.seen.replicas == 1
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("refused", [True, False])
async def test_what_fails_to_start_or_may_not_be_scaled_is_left_as_it_is(refused: bool) -> None:
    inner = MemoryBackend(HERE, replicas=2)
    controller = ScaleController(REF, unserved(_LIMITS), UnservedBackend(inner), Nobody())
    running = asyncio.create_task(controller.run())
    await asyncio.sleep(1)
    assert isinstance(controller.target.phase, Ready)
    inner.unready()
    if refused:
        inner.fail_next = [BackendRefused("no more than 2, says a webhook")] * 2000
        controller.recommend("policy", 4)
    else:
        inner._tell(replace(inner.seen, failure="it is in a crash loop"))
    await asyncio.sleep(7200)
    assert isinstance(controller.target.phase, Waking)
    assert (inner.writes, inner.seen.replicas) == ([], 2)
    running.cancel()
    await asyncio.wait([running])


async def test_it_is_not_put_to_sleep_by_any_way() -> None:
    inner = MemoryBackend(HERE, replicas=2)
    with pytest.raises(BackendRefused, match="not served here"):
        await UnservedBackend(inner).scale(REF, 0)
    assert inner.writes == []


async def test_of_none_it_is_known_what_it_is_at_so_none_is_chosen_to_go() -> None:
    inner = _Told(HERE, replicas=3)
    controller = ScaleController(REF, unserved(_LIMITS), UnservedBackend(inner), Nobody())
    running = asyncio.create_task(controller.run())
    await asyncio.sleep(1)
    controller.recommend("policy", 1)
    await asyncio.sleep(60)
    assert (inner.seen.replicas, inner.chosen) == (1, [()])
    running.cancel()
    await asyncio.wait([running])


class _Told(MemoryBackend):
    """`chosen` has who was to go at each write."""

    chosen: list[tuple[str, ...]]

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        self.chosen = [*getattr(self, "chosen", []), tuple(doomed)]
        await super().scale(ref, replicas, doomed=doomed)
