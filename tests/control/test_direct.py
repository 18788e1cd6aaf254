"""What is decided elsewhere is what a target has, from 0 on; others' numbers stay until the next decision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.control.nobody import Nobody
from tests.control.scaling_stage import HERE, REF, SharedBackend
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.direct import DirectTargets, MadeTarget
from vllm_chill.control.unserved import UnservedBackend, unserved
from vllm_chill.core.target import Limits, TargetRef

pytestmark = pytest.mark.looptime(start=100)

_LIMITS = unserved(Limits(300, 1800, drain_seconds=0))


class Stage:
    """Targets in memory, by their names."""

    def __init__(self) -> None:
        self.backends: dict[TargetRef, SharedBackend] = {}
        self.targets = DirectTargets(self.make)

    def make(self, ref: TargetRef) -> MadeTarget:
        backend = self.backends.setdefault(ref, SharedBackend(HERE, start_seconds=5))
        controller = ScaleController(ref, _LIMITS, UnservedBackend(backend, to_zero=True), Nobody())
        return MadeTarget(controller, controller.run)

    def backend(self, replicas: int = 0, *, start_seconds: float = 5.0) -> SharedBackend:
        backend = self.backends[REF] = SharedBackend(HERE, replicas=replicas, start_seconds=start_seconds)
        return backend


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    running = asyncio.create_task(stage.targets.run())
    await asyncio.sleep(0)
    yield stage
    running.cancel()
    await asyncio.wait([running])


async def test_it_goes_from_0_to_n_in_one_write_and_back(stage: Stage) -> None:
    backend = stage.backend()
    assert stage.targets.have(REF, 3) is None
    await asyncio.sleep(10)
    assert (backend.writes, backend.seen.replicas) == ([3], 3)
    stage.targets.have(REF, 5)
    await asyncio.sleep(10)
    stage.targets.have(REF, 2)
    await asyncio.sleep(10)
    assert backend.writes == [3, 5, 2]
    stage.targets.have(REF, 0)
    await asyncio.sleep(10)
    assert backend.writes[-1] == backend.seen.replicas == 0


async def test_what_is_said_while_it_drains_is_done_after(stage: Stage) -> None:
    backend = stage.backend(2)
    backend.stop_seconds = 30.0
    stage.targets.have(REF, 0)
    await asyncio.sleep(5)
    stage.targets.have(REF, 2)
    await asyncio.sleep(60)
    assert (backend.writes, backend.seen.replicas) == ([0, 2], 2)


async def test_the_same_again_writes_nothing(stage: Stage) -> None:
    backend = stage.backend(2)
    for _ in range(20):
        stage.targets.have(REF, 2)
        await asyncio.sleep(60)
    assert backend.writes == []


async def test_somebody_elses_number_stays_until_the_next_decision(stage: Stage) -> None:
    backend = stage.backend(2)
    stage.targets.have(REF, 2)
    await asyncio.sleep(10)
    backend.by = "kubectl"
    backend.set_replicas(6)
    await asyncio.sleep(60)
    assert (backend.writes, backend.seen.replicas) == ([], 6)
    stage.targets.have(REF, 3)
    await asyncio.sleep(10)
    assert backend.seen.replicas == 3


async def test_there_is_no_endless_fight(stage: Stage) -> None:
    backend = stage.backend(2)

    def fight() -> None:
        asyncio.get_running_loop().call_later(1, again)

    def again() -> None:
        backend.by = "horizontal"
        backend.set_replicas(7)

    backend.rival = fight
    told: list[str | None] = []
    for _ in range(60):
        told.append(stage.targets.have(REF, 2))
        await asyncio.sleep(30)
        stage.targets.have(REF, 3)
        await asyncio.sleep(30)
    assert len(backend.writes) < 15
    assert any(cause is not None and "horizontal scales it too" in cause for cause in told)


async def test_what_is_left_stays_as_it_is(stage: Stage) -> None:
    backend = stage.backend()
    stage.targets.have(REF, 3)
    await asyncio.sleep(10)
    stage.targets.leave(REF)
    await asyncio.sleep(10)
    backend.set_replicas(1)
    await asyncio.sleep(10)
    assert (backend.writes, backend.seen.replicas) == ([3], 1)


async def test_two_targets_are_scaled_apart(stage: Stage) -> None:
    other = TargetRef("ai-apps", "other")
    stage.targets.have(REF, 2)
    stage.targets.have(other, 4)
    await asyncio.sleep(10)
    assert [stage.backends[ref].seen.replicas for ref in (REF, other)] == [2, 4]


async def test_without_a_run_it_says_so() -> None:
    assert Stage().targets.have(REF, 2) == "nothing is scaled at the moment"
