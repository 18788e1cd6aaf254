"""One target's autoscaler with a real controller, on loop time: an hour costs nothing."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from functools import partial

import pytest
from structlog.testing import capture_logs

from tests.control.scaling_stage import IDLE_SECONDS, policy, staged
from vllm_chill.control.autoscaler import Autoscalers
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import DOWN, UP, Schedule
from vllm_chill.core.target import Asleep, Limits, Ready, Waking
from vllm_chill.errors import BadRequest

pytestmark = pytest.mark.looptime(start=100)

_POLL = 15


# Deciding.


async def test_it_decides_at_once_and_then_once_in_each_polling_interval() -> None:
    async with staged(policy()) as stage:
        assert stage.load.asked == 1
        await asyncio.sleep(10 * _POLL)
        assert stage.load.asked == 11


async def test_the_replicas_follow_the_load_up_and_down() -> None:
    async with staged(policy()) as stage:
        stage.load.queue = 80
        await asyncio.sleep(_POLL + 1)
        assert stage.replicas == 8
        stage.load.queue = 31
        await asyncio.sleep(_POLL + 1)
        assert stage.replicas == 4
        stage.load.queue = 0
        await asyncio.sleep(_POLL + 1)
        assert stage.replicas == 1


async def test_no_more_replicas_than_there_are_gpus_for_awake_or_woken() -> None:
    async with staged(policy()) as stage:
        stage.scaler.room = lambda: 3
        stage.load.queue = 80
        await asyncio.sleep(_POLL + 1)
        assert stage.replicas == 3
        assert stage.controller.demand is not None
        assert stage.controller.demand(80) == 3


async def test_a_changed_policy_is_decided_by_at_once() -> None:
    async with staged(policy(max_replicas=2)) as stage:
        stage.load.queue = 80
        await asyncio.sleep(_POLL)
        assert stage.replicas == 2
        stage.scaler.policy = policy(max_replicas=6)
        await asyncio.sleep(0.1)
        assert stage.replicas == 6


async def test_without_a_policy_nothing_is_recommended_and_what_is_stays() -> None:
    async with staged(policy()) as stage:
        stage.load.queue = 80
        await asyncio.sleep(_POLL)
        stage.scaler.policy = None
        stage.load.queue = 0
        await asyncio.sleep(10 * _POLL)
        assert (stage.replicas, stage.controller.target.recommended) == (8, None)
        assert stage.scaler.decision is None


async def test_a_target_that_becomes_ready_is_decided_on_at_once() -> None:
    async with staged(policy(min_replicas=0), replicas=0, start=60) as stage:
        stage.load.queue = 80
        lease = await stage.controller.lease(120)
        await asyncio.sleep(0.1)
        assert stage.scaler.decision is not None
        assert stage.replicas == 8
        lease.release()


async def test_callers_at_zero_wake_as_many_replicas_as_they_ask_for() -> None:
    async with staged(policy(min_replicas=0), replicas=0, start=60) as stage:
        callers = [asyncio.create_task(stage.controller.lease(120)) for _ in range(35)]
        await asyncio.sleep(0.5)
        assert stage.backend.writes == [4]
        for caller in callers:
            (await caller).release()


async def test_the_pace_of_a_policy_counts_from_decision_to_decision() -> None:
    """Twice as many in 15 seconds, polled each 15 seconds, is twice as many at each poll."""
    async with staged(policy(max_replicas=100, up=replace(UP, steps=UP.steps[:1]))) as stage:
        stage.load.queue = 1000
        seen = []
        for _ in range(5):
            await asyncio.sleep(_POLL)
            seen.append(stage.replicas)
        assert seen == [2, 4, 8, 16, 32]


async def test_a_paused_policy_leaves_the_number_as_it_is_whoever_wrote_it() -> None:
    async with staged(policy(paused=True, min_replicas=0)) as stage:
        stage.load.queue = 80
        stage.others_scale(3)
        await asyncio.sleep(IDLE_SECONDS + 10 * _POLL)
        assert stage.replicas == 3
        assert stage.backend.writes == []


async def test_who_only_observes_decides_and_writes_nothing() -> None:
    async with staged(policy()) as stage:
        stage.controller.observe_only = True
        stage.load.queue = 80
        for replicas in (2, 3, 4, 5):
            stage.others_scale(replicas, "keda")
            await asyncio.sleep(_POLL)
        assert stage.scaler.decision is not None
        assert stage.scaler.decision.replicas == 8
        assert (stage.backend.writes, stage.conflict) == ([], None)


async def test_decisions_are_logged_once_for_each_change_with_their_trail() -> None:
    with capture_logs() as logs:
        async with staged(policy()) as stage:
            await asyncio.sleep(10 * _POLL)
            stage.load.queue = 80
            await asyncio.sleep(10 * _POLL)
    decided = [log for log in logs if log["event"] == "decided"]
    assert [(log["before"], log["replicas"]) for log in decided] == [(1, 8)]
    assert decided[0]["trail"]


async def test_data_that_goes_and_comes_back_is_logged_once_each() -> None:
    with capture_logs() as logs:
        async with staged(policy()) as stage:
            await asyncio.sleep(2 * _POLL)
            stage.load.queue = None
            await asyncio.sleep(5 * _POLL)
            stage.load.queue = 0
            await asyncio.sleep(5 * _POLL)
            assert stage.replicas == 1
    assert len([log for log in logs if log["event"] == "decided"]) == 2


# Sleeping.


async def test_with_a_minimum_of_0_it_sleeps_when_it_is_idle_and_decides_anew_when_it_wakes() -> None:
    async with staged(policy(min_replicas=0, idle_seconds=60.0)) as stage:
        stage.load.queue = 80
        await asyncio.sleep(30)
        assert stage.replicas == 8
        stage.load.queue = 0
        await asyncio.sleep(60)
        assert stage.phase_is(Asleep)
        assert (stage.scaler.decision, stage.controller.target.recommended) == (None, None)
        asked = stage.load.asked
        await asyncio.sleep(3600)
        assert stage.load.asked == asked
        (await stage.controller.lease(10)).release()
        await asyncio.sleep(0.1)
        assert stage.load.asked == asked + 1


async def test_a_recommendation_of_before_is_not_stabilised_on_after_a_sleep() -> None:
    slow = replace(DOWN, stabilization_seconds=3600.0)
    async with staged(policy(min_replicas=0, idle_seconds=60.0, down=slow)) as stage:
        stage.load.queue = 80
        await asyncio.sleep(_POLL + 1)
        await stage.controller.stop()
        stage.load.queue = 0
        (await stage.controller.lease(10)).release()
        await asyncio.sleep(2 * _POLL)
        assert stage.replicas == 1


async def test_engines_that_are_busy_keep_it_awake() -> None:
    async with staged(policy(min_replicas=0)) as stage:
        stage.load.busy = True
        await asyncio.sleep(10 * IDLE_SECONDS)
        assert stage.phase_is(Ready)
        stage.load.busy = False
        await asyncio.sleep(IDLE_SECONDS + 1)
        assert stage.phase_is(Asleep)


async def test_with_a_minimum_of_1_it_wakes_by_itself_and_never_sleeps() -> None:
    async with staged(policy(min_replicas=2), replicas=0) as stage:
        await asyncio.sleep(1)
        assert stage.replicas == 2
        await asyncio.sleep(10 * IDLE_SECONDS)
        assert stage.replicas == 2


async def test_a_schedule_wakes_it_in_time_and_lets_it_sleep_again() -> None:
    at_one = Schedule("0 13 * * *", "0 14 * * *", "UTC", 3)
    async with staged(policy(min_replicas=0, schedules=(at_one,)), replicas=0) as stage:
        await asyncio.sleep(3590)
        assert stage.replicas == 0
        await asyncio.sleep(20)
        assert stage.replicas == 3
        await asyncio.sleep(3600 + IDLE_SECONDS)
        assert stage.replicas == 0


async def test_without_its_policy_its_life_is_as_its_model_says_by_then() -> None:
    async with staged(policy(min_replicas=1)) as stage:
        assert stage.controller.limits.always_on
        changed = replace(stage.controller.limits, idle_seconds=77.0, always_on=False)
        stage.controller.limits = changed
        await asyncio.sleep(_POLL)
        assert (stage.controller.limits.always_on, stage.controller.limits.idle_seconds) == (True, math.inf)
        stage.scaler.policy = None
        await asyncio.sleep(0.1)
        assert stage.controller.limits == changed


async def test_the_life_of_what_nobody_can_wake_is_left_alone() -> None:
    async with staged(policy(min_replicas=0, idle_seconds=60.0), fronted=False, idle=math.inf) as stage:
        assert stage.controller.limits == Limits(math.inf, 1800, drain_seconds=0.0)
        await asyncio.sleep(3600)
        assert stage.replicas == 1


# By hand.


async def test_what_is_asked_for_by_hand_beats_what_is_measured_until_it_ends() -> None:
    async with staged(policy()) as stage:
        override = stage.scaler.adjust(5, "alice", 600)
        assert (override.by, override.until - override.at) == ("alice", 600)
        await asyncio.sleep(0.1)
        assert stage.replicas == 5
        await asyncio.sleep(590)
        assert (stage.replicas, stage.scaler.override) == (5, override)
        await asyncio.sleep(20)
        assert (stage.replicas, stage.scaler.override) == (1, None)


@pytest.mark.parametrize("replicas", [0, 1, 11, -1])
async def test_what_is_outside_of_the_bounds_cannot_be_asked_for(replicas: int) -> None:
    async with staged(policy(min_replicas=2)) as stage:
        with pytest.raises(BadRequest, match="from 2 to 10 replicas"):
            stage.scaler.adjust(replicas, "alice", 600)
        assert stage.scaler.override is None


async def test_without_a_policy_nothing_can_be_asked_for() -> None:
    async with staged() as stage:
        with pytest.raises(BadRequest, match="no scaling policy"):
            stage.scaler.adjust(2, "alice", 600)


async def test_asleep_it_counts_from_the_next_wake_on() -> None:
    async with staged(policy(min_replicas=0), replicas=0) as stage:
        stage.scaler.adjust(3, "alice", 600)
        await asyncio.sleep(1)
        assert stage.replicas == 0
        (await stage.controller.lease(10)).release()
        await asyncio.sleep(1)
        assert stage.replicas == 3


async def test_what_was_asked_for_by_hand_can_be_ended() -> None:
    async with staged(policy()) as stage:
        stage.scaler.adjust(5, "alice", 600)
        await asyncio.sleep(1)
        stage.scaler.release()
        await asyncio.sleep(1)
        assert (stage.replicas, stage.scaler.override) == (1, None)


async def test_an_override_of_before_a_restart_goes_on() -> None:
    async with staged(policy()) as stage:
        now = stage.controller.now()
        stage.scaler.restore(Override(4, "alice", now - 100, now + 100))
        await asyncio.sleep(1)
        assert stage.replicas == 4
        await asyncio.sleep(120)
        assert stage.replicas == 1


# Others.


async def test_what_somebody_else_wrote_once_stays_until_the_next_decision() -> None:
    async with staged(policy(max_replicas=5)) as stage:
        await asyncio.sleep(1)
        stage.others_scale(7, "kubectl-scale")
        await asyncio.sleep(10)
        assert (stage.replicas, stage.backend.writes) == (7, [])
        await asyncio.sleep(10)
        assert (stage.replicas, stage.conflict) == (1, None)


@pytest.mark.parametrize("by", [None, "cron"])
async def test_who_writes_again_and_again_is_left_to_it_and_then_no_longer(by: str | None) -> None:
    async with staged(policy()) as stage:
        stage.load.queue = 80
        for _ in range(3):
            await asyncio.sleep(_POLL + 1)
            stage.others_scale(2, by)
        cause: str | None = f"{by or 'somebody else'} scales it too"
        assert stage.conflict == cause
        written = len(stage.backend.writes)
        await asyncio.sleep(590)
        assert (stage.replicas, len(stage.backend.writes)) == (2, written)
        await asyncio.sleep(20)
        assert stage.replicas == 8


async def test_a_known_autoscaler_is_left_to_it_at_once() -> None:
    async with staged(policy()) as stage:
        stage.load.queue = 80
        stage.others_scale(2, "keda")
        assert stage.conflict == "KEDA (keda) scales it too"
        await asyncio.sleep(500)
        assert (stage.replicas, stage.backend.writes) == (2, [])
        assert stage.scaler.decision is not None
        assert stage.scaler.decision.replicas == 8


async def test_what_an_object_claims_is_a_conflict_for_as_long_as_it_does() -> None:
    async with staged(policy(min_replicas=3), replicas=0) as stage:
        await asyncio.sleep(1)
        assert stage.replicas == 3
        stage.scaler.claimed("HorizontalPodAutoscaler ai-apps/vllm scales it too")
        stage.others_scale(0)
        await asyncio.sleep(3600)
        assert (stage.replicas, stage.conflict) == (0, "HorizontalPodAutoscaler ai-apps/vllm scales it too")
        stage.scaler.claimed(None)
        await asyncio.sleep(1)
        assert stage.replicas == 3


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("by", [None, "cron", "argocd-controller"])
@pytest.mark.parametrize("back_seconds", [0.0, 40.0])
async def test_against_a_rival_that_always_writes_back_few_writes_are_ours(
    by: str | None, back_seconds: float, zero: bool
) -> None:
    """Also where what it writes is 0, and the policy would have it awake."""
    async with staged(policy(min_replicas=4), replicas=4) as stage:
        theirs = 0 if zero else 2
        loop = asyncio.get_running_loop()
        stage.backend.rival = partial(loop.call_later, back_seconds, stage.others_scale, theirs, by)
        stage.others_scale(theirs, by)
        await asyncio.sleep(7200)
        # Three to see a conflict, and one for each that follows: 10, 20, 40, 80 minutes.
        assert 1 <= len(stage.backend.writes) <= 3 + 4


async def test_a_change_of_replicas_is_told_with_who_and_why() -> None:
    async with staged(policy()) as stage:
        told: list[tuple[int, int, str | None]] = []

        def tell() -> None:
            change = stage.scaler.rescale
            if change is not None and (change.before, change.after, change.by) not in told:
                told.append((change.before, change.after, change.by))

        stage.scaler.on_decision = tell
        stage.load.queue = 80
        await asyncio.sleep(_POLL)
        assert stage.scaler.rescale is not None
        assert "queue_length" in stage.scaler.rescale.why
        stage.others_scale(9, "kubectl")
        assert told == [(1, 8, None), (8, 9, "kubectl")]


async def test_waking_is_no_decision() -> None:
    async with staged(policy(min_replicas=0), replicas=0, start=600) as stage:
        caller = asyncio.create_task(stage.controller.lease(700))
        await asyncio.sleep(300)
        assert stage.phase_is(Waking)
        assert stage.load.asked == 0
        (await caller).release()


# All of them.


async def test_autoscalers_are_found_by_name_and_by_their_target() -> None:
    async with staged() as stage:
        scalers = Autoscalers()
        changes = []
        scalers.on_change = lambda: changes.append(len(scalers))
        scalers.add(stage.scaler)
        assert scalers["vllm"] is scalers.find("vllm") is scalers.find("ai-apps/vllm")
        assert list(scalers) == ["vllm"]
        assert scalers.find("other") is None
        scalers.remove("vllm")
        scalers.remove("vllm")
        assert changes == [1, 0]
