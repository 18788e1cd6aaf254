from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from tests.core.scaling.readings import (
    GPU,
    HELD,
    LATENCY,
    MISSING,
    QUEUE,
    STARTING,
    WALL,
    Value,
    policy,
    readings,
    rule,
)
from vllm_chill.core.scaling.decide import State, decide, scaled
from vllm_chill.core.scaling.decision import Decision, Limited
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import DOWN, UP, Fallback, Pace, Policy, Schedule, Select, Step, Unit
from vllm_chill.core.scaling.signals import Readings

M, S = MISSING, STARTING
AT_ONCE = replace(policy(), down=replace(DOWN, stabilization_seconds=0.0))


def decided(of: Policy, moments: Iterable[Readings], state: State | None = None) -> list[Decision]:
    """The decisions of a history of moments; what is asked for at each is told by it, and not by the one before."""
    state, before, decisions = state or State(), None, []
    for moment in moments:
        if before is not None:
            state = scaled(state, before, moment.replicas, moment.at)
        decision, state = decide(of, state, moment, WALL)
        decisions.append(decision)
        before = moment.replicas
    return decisions


def one(of: Policy, moment: Readings, wall: datetime = WALL, override: Override | None = None) -> Decision:
    return decide(of, State(), moment, wall, override)[0]


def trail(decision: Decision) -> list[tuple[str, int]]:
    return [(said.stage, said.replicas) for said in decision.trail]


class TestTheTrail:
    def test_says_what_every_stage_made_of_it(self) -> None:
        decision = one(policy(most=6), readings([90] * 3))
        assert trail(decision) == [("recommend", 27), ("pace", 7), ("bound", 6)]
        assert (decision.replicas, decision.recommended, decision.limited) == (6, 27, Limited.MAX)

    def test_says_nothing_of_a_stage_that_changed_nothing(self) -> None:
        decision = one(policy(), readings([20, 20]))
        assert trail(decision) == [("recommend", 4)]
        assert decision.limited is Limited.NOT

    def test_says_what_each_rule_asked_for(self) -> None:
        decision = one(policy(rule(QUEUE, 10), rule(LATENCY, 1000)), readings([20, 20]))
        assert [(ask.value, ask.replicas) for ask in decision.asked] == [(20, 4), (None, None)]
        assert decision.measured


class TestFromNothing:
    def test_those_who_are_held_get_as_many_as_they_need_at_once(self) -> None:
        decision = one(policy(most=9), readings([], held=500))
        assert trail(decision) == [("recommend", 50), ("bound", 9)]

    def test_nobody_held_is_one_and_the_idle_timeout_decides(self) -> None:
        decision = one(policy(least=0), readings([]))
        assert decision.replicas == 1
        assert decision.trail[-1].reason == "between 0 and 1 the idle timeout decides"

    def test_it_is_never_put_to_sleep(self) -> None:
        assert one(replace(AT_ONCE, min_replicas=0), readings([0])).replicas == 1

    def test_a_burst_that_woke_it_is_not_undone_by_the_first_replica_that_is_ready(self) -> None:
        moments = [
            readings([], at=0),
            readings([], held=42, at=15),
            readings([S] * 5, held=42, at=30),
            readings([3, S, S, S, S], at=45),
            readings([0] * 5, at=330),
        ]
        *_, asleep, woken, first, idle = decided(policy(least=0), moments)
        assert (asleep.replicas, woken.replicas, first.replicas) == (5, 5, 5)
        assert first.limited is Limited.STABILIZED
        assert idle.replicas == 1

    def test_callers_who_come_while_it_wakes_count(self) -> None:
        moments = [readings([], held=12, at=0), readings([S, S], held=42, at=15)]
        assert [decision.replicas for decision in decided(policy(), moments)] == [2, 5]


class TestHolding:
    def test_what_is_there_at_the_first_decision_counts_as_recommended(self) -> None:
        moments = [readings([0] * 5, at=at) for at in (0, 150, 299, 300)]
        assert [decision.replicas for decision in decided(policy(), moments)] == [5, 5, 5, 1]

    def test_a_short_peak_keeps_its_replicas_for_five_minutes(self) -> None:
        loads = [(0, 10), (15, 30), (30, 10), (300, 10), (314, 10), (315, 10)]
        replicas, decisions = 1, []
        state = State()
        for at, total in loads:
            decision, state = decide(policy(), state, readings([total / replicas] * replicas, at=at), WALL)
            state = scaled(state, replicas, decision.replicas, at)
            replicas = decision.replicas
            decisions.append(replicas)
        assert decisions == [1, 3, 3, 3, 3, 1]

    def test_what_somebody_else_scaled_up_is_not_undone_before_the_window(self) -> None:
        moments = [
            readings([5], at=0),
            readings([1] * 6, at=15),
            readings([1] * 6, at=314),
            readings([1] * 6, at=315),
        ]
        assert [decision.replicas for decision in decided(policy(), moments)] == [1, 6, 6, 1]

    def test_a_window_that_is_shorter_than_the_polling_still_lets_it_shrink(self) -> None:
        short = replace(policy(), down=replace(DOWN, stabilization_seconds=10.0))
        assert [decision.replicas for decision in decided(short, [readings([1] * 6, at=at) for at in (0, 15)])] == [
            6,
            1,
        ]

    def test_a_window_up_holds_back_too(self) -> None:
        slow = replace(policy(), up=replace(UP, stabilization_seconds=60.0))
        decisions = decided(slow, [readings([20], at=at) for at in (0, 59, 60)])
        assert [decision.replicas for decision in decisions] == [1, 1, 2]
        assert decisions[0].limited is Limited.UP_STABILIZED


class TestPacing:
    def test_it_counts_what_was_really_changed(self) -> None:
        two_a_minute = replace(policy(), up=Pace(0, (Step(Unit.PODS, 2, 60.0),)))
        moments = [
            readings([90], at=0),
            readings([90] * 3, at=15),
            readings([90] * 3, at=74),
            readings([90] * 3, at=75),
        ]
        decisions = decided(two_a_minute, moments)
        assert [decision.replicas for decision in decisions] == [3, 3, 3, 5]
        assert decisions[1].limited is Limited.UP

    def test_going_to_sleep_and_waking_are_not_steps_of_its(self) -> None:
        assert scaled(State(), 0, 9, 0) == scaled(State(), 9, 0, 0) == scaled(State(), 3, 3, 0) == State()

    def test_shrinking_may_be_disabled(self) -> None:
        never = replace(AT_ONCE, down=replace(DOWN, stabilization_seconds=0.0, select=Select.DISABLED))
        decision = one(never, readings([0] * 3))
        assert (decision.replicas, decision.limited) == (3, Limited.DOWN)


class TestBounds:
    def test_what_is_above_the_maximum_comes_down_at_once(self) -> None:
        decision = one(policy(most=4), readings([90] * 9))
        assert (decision.replicas, decision.limited) == (4, Limited.MAX)
        assert decision.trail[-1].reason == "the maximum is 4"

    def test_what_is_below_the_minimum_comes_up_at_once(self) -> None:
        slow = replace(policy(least=20), up=Pace(0, (Step(Unit.PODS, 1, 60.0),)))
        decision = one(slow, readings([0]))
        assert (decision.replicas, decision.limited) == (20, Limited.MIN)
        assert decision.trail[-1].reason == "the minimum is 20"

    OFFICE = replace(AT_ONCE, max_replicas=9, schedules=(Schedule("0 8 * * *", "0 18 * * *", "Europe/Berlin", 4),))

    def test_a_schedule_is_a_minimum_while_it_holds(self) -> None:
        decision = one(self.OFFICE, readings([0]))
        assert (decision.replicas, decision.limited) == (4, Limited.MIN)
        assert decision.trail[-1].reason == (
            "the schedule asks for at least 4 replicas until 2026-01-05 18:00 Europe/Berlin"
        )
        assert one(self.OFFICE, readings([0]), datetime(2026, 1, 5, 20, tzinfo=UTC)).replicas == 1

    def test_of_two_schedules_the_larger_counts(self) -> None:
        more = Schedule("0 9 * * *", "0 12 * * *", "UTC", 6)
        both = replace(self.OFFICE, schedules=(*self.OFFICE.schedules, more))
        assert one(both, readings([0])).replicas == 6

    def test_the_maximum_wins_over_a_schedule(self) -> None:
        assert one(replace(self.OFFICE, max_replicas=2), readings([0])).replicas == 2

    def test_a_policy_of_schedules_alone_goes_back_to_the_minimum(self) -> None:
        alone = replace(self.OFFICE, rules=())
        assert one(alone, readings([M])).replicas == 4
        assert one(alone, readings([M] * 4), datetime(2026, 1, 5, 20, tzinfo=UTC)).replicas == 1


class TestOverride:
    ALICE = Override(5, "alice", 900, 1600)

    def test_it_beats_what_was_measured(self) -> None:
        decision = one(policy(most=9), readings([90] * 3), override=self.ALICE)
        assert (decision.replicas, decision.limited, decision.recommended) == (5, Limited.NOT, 27)
        assert decision.trail[-1].reason == "it was set to 5 by alice, for another 10m"

    def test_it_ends_by_itself(self) -> None:
        assert one(policy(), readings([10] * 3, at=1600), override=self.ALICE).replicas == 3

    def test_it_beats_a_schedule_and_a_pause(self) -> None:
        assert one(TestBounds.OFFICE, readings([0]), override=replace(self.ALICE, replicas=2)).replicas == 2
        assert one(replace(policy(), paused=True), readings([0]), override=self.ALICE).replicas == 5

    def test_it_stays_within_bounds_that_were_changed_since(self) -> None:
        decision = one(policy(least=2, most=3), readings([0]), override=self.ALICE)
        assert decision.replicas == 3
        assert decision.trail[-1].reason == "it was set to 5 by alice, for another 10m, and the bounds are 2 to 3"


class TestPause:
    def test_nothing_changes(self) -> None:
        decision = one(replace(policy(most=9), paused=True), readings([90] * 3))
        assert (decision.replicas, decision.recommended, decision.limited) == (3, 27, Limited.NOT)
        assert decision.trail[-1].reason == "the policy is paused, so it stays at 3"

    def test_not_even_what_is_out_of_bounds(self) -> None:
        assert one(replace(policy(most=2), paused=True), readings([90] * 3)).replicas == 3


class TestMissingData:
    SAFE = replace(AT_ONCE, fallback=Fallback(4, failure_threshold=3))

    def test_it_holds_and_then_falls_back(self) -> None:
        decisions = decided(self.SAFE, [readings([M, M], at=15 * index) for index in range(4)])
        assert [decision.replicas for decision in decisions] == [2, 2, 4, 4]
        assert [decision.fallen_back for decision in decisions] == [False, False, True, True]
        assert not any(decision.measured for decision in decisions)
        assert decisions[2].trail[-1].reason == "there was no data for 3 decisions in a row, so it falls back to 4"

    def test_one_decision_with_data_begins_the_count_anew(self) -> None:
        values: list[list[Value]] = [[M, M], [M, M], [10, 10], [M, M], [M, M]]
        decisions = decided(self.SAFE, [readings(value, at=15 * index) for index, value in enumerate(values)])
        assert {decision.replicas for decision in decisions} == {2}

    def test_the_fallback_never_shrinks_it(self) -> None:
        decisions = decided(self.SAFE, [readings([M] * 6, at=15 * index) for index in range(5)])
        assert {decision.replicas for decision in decisions} == {6}
        assert decisions[-1].fallen_back

    def test_the_fallback_stays_within_the_bounds(self) -> None:
        small = replace(self.SAFE, max_replicas=3)
        assert decided(small, [readings([M], at=15 * index) for index in range(3)])[-1].replicas == 3

    def test_without_a_fallback_it_holds_for_ever(self) -> None:
        decisions = decided(AT_ONCE, [readings([M] * 6, at=15 * index) for index in range(50)])
        assert {decision.replicas for decision in decisions} == {6}

    def test_a_start_that_takes_long_is_no_outage(self) -> None:
        decisions = decided(self.SAFE, [readings([S], at=15 * index) for index in range(50)])
        assert {decision.replicas for decision in decisions} == {1}
        assert not any(decision.fallen_back for decision in decisions)

    def test_one_rule_with_data_is_data(self) -> None:
        two = replace(self.SAFE, rules=(rule(QUEUE, 10), rule(GPU, 80)))
        decisions = decided(two, [readings([1] * 3, at=15 * index) for index in range(5)])
        assert {decision.replicas for decision in decisions} == {3}
        assert all(decision.measured and not decision.fallen_back for decision in decisions)

    def test_after_an_outage_one_low_number_does_not_shrink_it(self) -> None:
        outage = [readings([M] * 6, at=15 * index) for index in range(40)]
        *_, after = decided(policy(), [readings([10] * 6, at=-15), *outage, readings([0] * 6, at=600)])
        assert after.replicas == 6

    def test_those_who_are_held_are_always_known(self) -> None:
        assert one(replace(self.SAFE, rules=(rule(HELD, 2),)), readings([M], held=9)).measured


class TestRoom:
    def test_no_more_than_there_are_gpus_for(self) -> None:
        decision = one(policy(most=9), replace(readings([90] * 3), room=4))
        assert (decision.replicas, decision.limited) == (4, Limited.MAX)
        assert decision.trail[-1].reason == "the GPU budget has room for 4 replicas beside other models"

    def test_one_may_be_there_whatever_room_there_is(self) -> None:
        assert one(policy(), replace(readings([0]), room=0)).replicas == 1
        assert one(policy(), replace(readings([0, 0]), room=0)).replicas == 1

    def test_room_that_is_taken_by_others_is_given_up_at_once(self) -> None:
        assert one(policy(), replace(readings([50] * 5), room=2)).replicas == 2

    def test_it_bounds_what_was_set_by_hand_too_and_a_pause_changes_nothing(self) -> None:
        override = Override(5, "alice", 0, 9000)
        assert one(policy(), replace(readings([0]), room=3), override=override).replicas == 3
        assert one(replace(policy(), paused=True), replace(readings([0] * 4), room=3)).replicas == 4
