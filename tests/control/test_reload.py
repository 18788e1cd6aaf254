"""Other limits for a target that lives: they count from its last use, and put nobody to sleep wrongly."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.scaling_stage import Stage, policy, staged
from vllm_chill.control.lease import Lease
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.target import Asleep, Ready

pytestmark = pytest.mark.looptime(start=100)

HISTORIES = st.lists(
    st.one_of(
        st.tuples(st.just("reload"), st.integers(1, 400)),
        st.tuples(st.just("wait"), st.integers(1, 300)),
        st.tuples(st.sampled_from(["use", "release"]), st.just(0)),
    ),
    max_size=15,
)
POLICIES = st.sampled_from(
    [None, policy(min_replicas=0), policy(min_replicas=0, idle_seconds=150.0), policy(min_replicas=1)]
)


@pytest.mark.looptime(False)  # each history has a loop of its own
@given(HISTORIES, POLICIES)
@settings(max_examples=60, deadline=None)
def test_whatever_is_reloaded_it_sleeps_when_unused_for_what_holds_then_and_never_before(
    history: list[tuple[str, int]], given: Policy | None
) -> None:
    async def live() -> None:
        async with staged(given, idle=100.0) as stage:
            await _live(stage, history, given)

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=100)) as runner:
        runner.run(live())


async def _live(stage: Stage, history: list[tuple[str, int]], given: Policy | None) -> None:
    controller, leases = stage.controller, list[Lease]()
    idle, used = 100.0, controller.now()
    for step, number in history:
        match step:
            case "reload":
                idle = float(number)
                stage.scaler.rebase(replace(stage.scaler._base, idle_seconds=idle))
            case "wait":
                await asyncio.sleep(number)
            case "use":
                leases.append(await controller.lease(60))
            case _:
                for lease in leases:
                    used = controller.now()
                    lease.release()
                leases.clear()
        await asyncio.sleep(0.01)
        asleep = stage.phase_is(Asleep)
        if leases or _is_kept(given):
            assert stage.phase_is(Ready)
        elif asleep:
            used = -10_000.0  # until it is used again
        else:
            holds = given.idle_seconds if given is not None and given.idle_seconds is not None else idle
            assert controller.now() <= used + holds + 1, "it should sleep"
        if asleep:
            continue
        assert stage.phase_is(Ready)
    # What was not put to sleep at a step is put to sleep at its time, which the phase itself says.
    phase = controller.target.phase
    if isinstance(phase, Ready) and not leases and not _is_kept(given):
        holds = given.idle_seconds if given is not None and given.idle_seconds is not None else idle
        left = phase.idle_since + holds - controller.now()
        await asyncio.sleep(max(0.0, left - 1))
        assert stage.phase_is(Ready) or left < 1
        await asyncio.sleep(2)
        assert stage.phase_is(Asleep)
    for lease in leases:
        lease.release()


def _is_kept(given: Policy | None) -> bool:
    return given is not None and given.min_replicas > 0


async def test_a_longer_time_lets_it_live_and_a_shorter_one_counts_from_the_last_use() -> None:
    async with staged(idle=300.0) as stage:
        await asyncio.sleep(200)
        stage.scaler.rebase(replace(stage.controller.limits, idle_seconds=1000.0))
        await asyncio.sleep(700)
        assert stage.phase_is(Ready)
        stage.scaler.rebase(replace(stage.controller.limits, idle_seconds=950.0))
        await asyncio.sleep(40)
        assert stage.phase_is(Ready)
        await asyncio.sleep(15)
        assert stage.phase_is(Asleep)


async def test_a_policy_that_keeps_it_awake_does_so_through_a_reload() -> None:
    async with staged(policy(min_replicas=1), idle=300.0) as stage:
        await asyncio.sleep(5000)
        stage.scaler.rebase(replace(stage.controller.limits, idle_seconds=1.0, always_on=False))
        await asyncio.sleep(5000)
        assert stage.phase_is(Ready)
        stage.scaler.policy = None
        await asyncio.sleep(60)
        assert stage.phase_is(Asleep)
