from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.decide import Memory, granted, propose, restored
from vllm_chill.core.saturation.decision import Direction, ModelDecision, Reason
from vllm_chill.core.saturation.fleet import Fleet, ReplicaLoad, Variant, Zero

AT_ONCE = Config(scale_down_stabilization=0.0)
UPSTREAM = replace(AT_ONCE, upstream=True)
ZERO = Zero(enabled=True, retention_seconds=600.0)
NOW = 10_000.0


def variant(
    key: str,
    replicas: int,
    kv: float = 0.65,
    *,
    ready: int | None = None,
    cost: float = 10.0,
    least: int = 0,
    most: int | None = None,
    stale: bool = False,
    running: float = 1.0,
) -> Variant:
    there = replicas if ready is None else ready
    loads = tuple(ReplicaLoad(f"{key}-{n}", kv, 0.0, running, age_seconds=5.0, stale=stale) for n in range(there))
    return Variant(key, cost, "H100", replicas, there, least, most, loads=loads)


def fleet(*variants: Variant, zero: Zero = ZERO, held: float | None = 0.0, active_at: float | None = NOW) -> Fleet:
    return Fleet("prod", "chat", variants, held=held, active_at=active_at, zero=zero)


def numbers(decision: ModelDecision) -> dict[str, int]:
    return {key: one.replicas for key, one in decision.variants.items()}


def decided(
    config: Config, moment: Fleet, memory: Memory | None = None, at: float = NOW
) -> tuple[ModelDecision, Memory]:
    decision, memory = propose(config, moment, memory or Memory(), at)
    return decision, granted(memory, decision, at)


def once(config: Config, moment: Fleet) -> ModelDecision:
    return decided(config, moment)[0]


class TestTheTrail:
    def test_tells_of_the_model_what_every_stage_made_of_it_and_of_a_variant_what_it_got(self) -> None:
        decision = once(AT_ONCE, fleet(variant("a", 2, 0.9, cost=40), variant("b", 1, 0.9, cost=80)))
        grown, other = decision.variants["a"], decision.variants["b"]
        assert [(step.stage, step.replicas) for step in grown.trail] == [
            ("collect", None),
            ("analyze", None),
            ("optimize", None),
            ("optimize", 3),
            ("zero", None),
        ]
        assert grown.trail[0].text == "3 of 3 ready replicas have told their load, the oldest 5s ago"
        assert grown.words == "1 more at a cost of 40 each"
        assert (grown.reason, grown.direction, grown.before) == (Reason.SATURATED, Direction.UP, 2)
        assert other.trail[2].text == "a capacity of 0.86 is lacking, for which 1 more of a cost the least"
        assert (other.reason, other.direction) == (Reason.STEADY, Direction.NONE)
        assert grown.saturation == pytest.approx(0.9)

    def test_tells_of_what_is_stale(self) -> None:
        decision = once(AT_ONCE, fleet(variant("a", 2, stale=True)))
        assert decision.variants["a"].trail[0].text.endswith("the oldest 5s ago, 2 of them too old to shrink by")

    def test_tells_why_it_is_not_yet_acted_on(self) -> None:
        decision = once(Config(), fleet(variant("a", 3, 0.1)))
        assert [step.stage for step in decision.variants["a"].trail][:4] == ["collect", "analyze", "steady", "zero"]


class TestDealing:
    def test_a_sibling_at_zero_can_be_the_cheapest(self) -> None:
        moment = fleet(variant("a", 1, 0.9, cost=40), variant("b", 0, cost=5))
        assert numbers(once(AT_ONCE, moment)) == {"a": 1, "b": 1}

    def test_a_sibling_takes_what_one_at_its_most_cannot(self) -> None:
        moment = fleet(variant("a", 2, 0.95, cost=5, most=2), variant("b", 1, 0.95, cost=40))
        assert numbers(once(AT_ONCE, moment)) == {"a": 2, "b": 3}

    def test_the_dearest_gives(self) -> None:
        moment = fleet(variant("a", 2, 0.2, cost=5), variant("b", 2, 0.2, cost=40))
        decision = once(AT_ONCE, moment)
        assert numbers(decision) == {"a": 2, "b": 1}
        assert decision.variants["b"].reason is Reason.SPARE
        assert decision.variants["b"].words == "1 less, which saves a cost of 40"

    def test_growth_is_paced_by_what_came_and_not_by_how_often_it_is_looked_at(self) -> None:
        config, memory, got = replace(AT_ONCE, scale_up_increment=2), Memory(), []
        for at in (NOW, NOW + 1, NOW + 30, NOW + 60):
            decision, memory = decided(config, fleet(variant("a", 4, 1.0)), memory, at)
            got.append(numbers(decision)["a"])
        assert got == [6, 6, 6, 6]
        memory, got = Memory(), []
        for at in (NOW, NOW + 1, NOW + 60, NOW + 61):
            moment = fleet(variant("a", got[-1] if got else 4, 1.0, most=9))
            decision, memory = decided(config, moment, memory, at)
            got.append(numbers(decision)["a"])
        assert got == [6, 6, 8, 8]
        assert decision.variants["a"].trail[2].text.endswith("is lacking; no more than 2 come within 1m")

    def test_shrinking_is_paced_as_well(self) -> None:
        memory, got = Memory(), [5]
        for at in (NOW, NOW + 1, NOW + 59, NOW + 60):
            decision, memory = decided(AT_ONCE, fleet(variant("a", got[-1], 0.1)), memory, at)
            got.append(numbers(decision)["a"])
        assert got == [5, 4, 4, 4, 3]

    def test_what_the_limiter_did_not_grant_is_asked_for_again_at_once(self) -> None:
        moment = fleet(variant("a", 2, 0.95))
        decision, memory = propose(AT_ONCE, moment, Memory(), NOW)
        denied = replace(decision.variants["a"], replicas=2, reason=Reason.LIMITED)
        memory = granted(memory, replace(decision, variants={"a": denied}), NOW)
        assert memory.changes == ()
        assert numbers(decided(AT_ONCE, moment, memory, NOW + 1)[0]) == {"a": 3}


class TestOnTheWay:
    def test_what_is_on_its_way_is_not_asked_for_twice(self) -> None:
        _, memory = decided(AT_ONCE, fleet(variant("a", 2, 0.9)))
        decision, _ = decided(AT_ONCE, fleet(variant("a", 3, 0.9, ready=2)), memory, NOW + 90)
        assert numbers(decision) == {"a": 3}
        assert decision.variants["a"].reason is Reason.TRANSITION

    def test_a_sibling_may_shrink_meanwhile(self) -> None:
        memory = restored(Memory(), {"a": 2, "b": 3}, NOW - 30)
        moment = fleet(variant("a", 2, 0.1, ready=1), variant("b", 3, 0.1, cost=5))
        assert numbers(once_with(memory, moment)) == {"a": 2, "b": 2}

    def test_what_is_going_is_not_spare_again(self) -> None:
        """Two could go, and one of them is: HPA has not followed yet."""
        memory = restored(Memory(), {"a": 2, "b": 3}, NOW - 30)
        moment = fleet(variant("a", 3, 0.4), variant("b", 3, 0.4, cost=5))
        assert numbers(once_with(memory, moment)) == {"a": 2, "b": 2}
        tighter = fleet(variant("a", 3, 0.5), variant("b", 3, 0.5, cost=5))
        decision = once_with(memory, tighter)
        assert numbers(decision) == {"a": 2, "b": 3}
        assert decision.variants["b"].trail[2].text == "what could go is on its way already"

    def test_what_is_going_stays_when_capacity_is_lacking(self) -> None:
        memory = restored(Memory(), {"a": 2, "b": 1}, NOW - 30)
        decision = once_with(memory, fleet(variant("a", 3, 0.8), variant("b", 1, 0.8, cost=5)))
        assert numbers(decision) == {"a": 3, "b": 2}
        assert decision.variants["a"].words == "those that were to go stay, for capacity is lacking"

    def test_pods_that_do_not_come_leave_it_to_a_sibling_and_stay_asked_for(self) -> None:
        memory = restored(Memory(), {"a": 4, "b": 1}, NOW - 600)
        moment = fleet(variant("a", 4, 0.9, ready=2), variant("b", 1, 0.9, cost=40))
        assert numbers(once_with(memory, moment)) == {"a": 4, "b": 2}

    def test_without_a_sibling_no_more_pods_pile_up_than_are_lacking(self) -> None:
        memory = restored(Memory(), {"a": 4}, NOW - 600)
        assert numbers(once_with(memory, fleet(variant("a", 4, 0.9, ready=2)))) == {"a": 4}
        crowded = variant("a", 4, 1.0, ready=2)
        crowded = replace(crowded, loads=tuple(replace(load, queue=6.0) for load in crowded.loads))
        assert numbers(once_with(memory, fleet(crowded))) == {"a": 6}

    def test_an_hpa_with_a_lower_maximum_leaves_it_to_a_sibling(self) -> None:
        memory = restored(Memory(), {"a": 9, "b": 1}, NOW - 600)
        moment = fleet(variant("a", 5, 0.9), variant("b", 1, 0.9, cost=40))
        decision, memory = decided(AT_ONCE, moment, memory)
        assert numbers(decision) == {"a": 5, "b": 3}
        moment = fleet(variant("a", 5, 0.9), variant("b", 3, 0.9, cost=40))
        assert numbers(decided(AT_ONCE, moment, memory, NOW + 60)[0])["a"] == 5

    def test_a_step_that_hpa_takes_for_too_small_becomes_a_larger_one(self) -> None:
        memory = restored(Memory(), {"a": 12}, NOW - 600)
        assert numbers(once_with(memory, fleet(variant("a", 11, 0.75)))) == {"a": 13}

    def test_pods_that_never_came_go_with_the_first_that_is_spare(self) -> None:
        memory = restored(Memory(), {"a": 6}, NOW - 600)
        assert numbers(once_with(memory, fleet(variant("a", 6, 0.1, ready=3)))) == {"a": 2}

    def test_what_somebody_else_asks_for_is_taken_for_decided(self) -> None:
        _, memory = decided(AT_ONCE, fleet(variant("a", 2)))
        assert numbers(decided(AT_ONCE, fleet(variant("a", 3, 0.5)), memory, NOW + 30)[0]) == {"a": 3}

    def test_after_a_restart_what_was_decided_stands(self) -> None:
        memory = restored(Memory(), {"a": 4}, NOW)
        assert numbers(once_with(memory, fleet(variant("a", 3)))) == {"a": 4}


def once_with(memory: Memory, moment: Fleet) -> ModelDecision:
    return decided(AT_ONCE, moment, memory)[0]


class TestBounds:
    def test_the_least_is_there_at_once_and_the_most_is_kept_at_once(self) -> None:
        moment = fleet(variant("a", 1, least=6), variant("b", 9, most=2))
        decision = once(AT_ONCE, moment)
        assert numbers(decision) == {"a": 6, "b": 2}
        assert {one.reason for one in decision.variants.values()} == {Reason.BOUNDS}
        assert decision.variants["a"].words == "no fewer than 6, its minReplicas"
        assert decision.variants["b"].words == "no more than 2, its maxReplicas"

    def test_they_hold_without_any_metrics(self) -> None:
        blind = replace(variant("a", 3, most=2), loads=())
        assert numbers(once(AT_ONCE, fleet(blind))) == {"a": 2}

    def test_one_that_wants_more_than_it_may_have_has_what_it_may(self) -> None:
        assert numbers(once(AT_ONCE, fleet(variant("a", 3, least=4, most=2)))) == {"a": 2}


class TestWithoutMetrics:
    def test_everything_stays(self) -> None:
        blind = fleet(replace(variant("a", 3), loads=()), replace(variant("b", 1), loads=()), active_at=0.0)
        decision = once(AT_ONCE, blind)
        assert numbers(decision) == {"a": 3, "b": 1}
        assert {one.reason for one in decision.variants.values()} == {Reason.NO_METRICS}
        assert decision.variants["a"].trail[0].text == "4 ready and none has told its load"

    def test_a_replica_that_tells_nothing_keeps_all(self) -> None:
        partly = replace(variant("a", 3, 0.1), ready=4, replicas=4)
        assert numbers(once(AT_ONCE, fleet(partly))) == {"a": 4}

    def test_what_is_stale_can_make_it_grow_and_not_shrink(self) -> None:
        assert numbers(once(AT_ONCE, fleet(variant("a", 3, 0.1, stale=True)))) == {"a": 3}
        assert numbers(once(AT_ONCE, fleet(variant("a", 3, 0.9, stale=True)))) == {"a": 4}


class TestZero:
    IDLE = fleet(variant("a", 2, 0.0, running=0.0), variant("b", 1, 0.0, running=0.0, least=1), active_at=0.0)

    def test_a_model_that_nobody_uses_has_the_least_of_each_variant(self) -> None:
        decision = once(AT_ONCE, self.IDLE)
        assert numbers(decision) == {"a": 0, "b": 1}
        assert decision.variants["a"].reason is Reason.IDLE
        assert decision.variants["a"].words == "nobody has used it for 2h46m"

    def test_while_it_is_on_its_way_to_zero_whoever_comes_calls_it_back(self) -> None:
        idle = fleet(variant("a", 2, 0.0, running=0.0), active_at=0.0)
        decision, memory = decided(AT_ONCE, idle)
        assert numbers(decision) == {"a": 0}
        assert numbers(decided(AT_ONCE, idle, memory, NOW + 30)[0]) == {"a": 0}
        assert numbers(decided(Config(), replace(idle, held=None), memory, NOW + 30)[0]) == {"a": 2}
        used = fleet(variant("a", 2, 0.1, running=1.0))
        assert numbers(decided(Config(), used, memory, NOW + 30)[0]) == {"a": 2}

    def test_where_it_is_not_enabled_the_cheapest_keeps_one(self) -> None:
        idle = replace(self.IDLE, zero=Zero())
        assert sum(numbers(once(AT_ONCE, idle)).values()) == 2
        last = fleet(variant("a", 1, most=0), variant("b", 0, cost=3), zero=Zero())
        decision = once(AT_ONCE, last)
        assert numbers(decision) == {"a": 0, "b": 1}
        assert decision.variants["b"].words == "one stays, for zero is not enabled and it is the cheapest"

    def test_the_last_replica_is_never_spare(self) -> None:
        assert numbers(once(AT_ONCE, fleet(variant("a", 1, 0.0)))) == {"a": 1}

    @pytest.mark.parametrize("zero", [ZERO, Zero()], ids=["enabled", "not enabled"])
    @pytest.mark.parametrize("held", [None, 0.0])
    def test_a_model_at_zero_stays_so(self, zero: Zero, held: float | None) -> None:
        decision = once(AT_ONCE, fleet(variant("a", 0), variant("b", 0), zero=zero, held=held))
        assert numbers(decision) == {"a": 0, "b": 0}
        assert decision.variants["a"].words == "it has no replica, and nobody is known to wait"

    def test_the_first_who_is_held_wakes_the_cheapest(self) -> None:
        decision = once(AT_ONCE, fleet(variant("a", 0), variant("b", 0, cost=4), held=1.0))
        assert numbers(decision) == {"a": 0, "b": 1}
        assert decision.variants["b"].reason is Reason.FROM_ZERO
        assert decision.variants["b"].words == "1 held, for which a capacity of 0.2 is needed"

    def test_many_who_are_held_wake_several_within_the_pace(self) -> None:
        asleep = fleet(variant("a", 0), held=12.0)
        assert numbers(once(AT_ONCE, asleep)) == {"a": 3}
        assert numbers(once(AT_ONCE, replace(asleep, held=1000.0))) == {"a": 4}

    def test_who_comes_while_it_starts_counts_too(self) -> None:
        decision, memory = decided(AT_ONCE, fleet(variant("a", 0), held=1.0))
        assert numbers(decision) == {"a": 1}
        starting = fleet(variant("a", 1, ready=0), held=12.0)
        decision, memory = decided(AT_ONCE, starting, memory, NOW + 30)
        assert numbers(decision) == {"a": 3}
        assert decision.variants["a"].words == "12 held, for which a capacity of 1.4 more is needed"

    def test_one_who_has_left_does_not_stop_the_wake(self) -> None:
        _, memory = decided(AT_ONCE, fleet(variant("a", 0), held=1.0))
        starting = fleet(variant("a", 1, ready=0), held=0.0, active_at=0.0)
        assert numbers(decided(AT_ONCE, starting, memory, NOW + 599)[0]) == {"a": 1}

    def test_a_wake_that_does_not_come_ends_when_nobody_asks_any_more(self) -> None:
        _, memory = decided(AT_ONCE, fleet(variant("a", 1, ready=0), held=0.0, active_at=0.0))
        stuck = fleet(variant("a", 1, ready=0), held=0.0, active_at=0.0)
        assert numbers(decided(AT_ONCE, stuck, memory, NOW + 599)[0]) == {"a": 1}
        assert numbers(decided(AT_ONCE, stuck, memory, NOW + 600)[0]) == {"a": 0}

    def test_a_wake_that_does_not_come_is_left_to_a_sibling(self) -> None:
        memory = restored(Memory(), {"a": 1, "b": 0}, NOW - 600)
        stuck = fleet(variant("a", 1, ready=0), variant("b", 0, cost=40), held=3.0)
        assert numbers(once_with(memory, stuck)) == {"a": 1, "b": 1}

    def test_a_woken_model_is_kept_for_as_long_as_one_that_was_used(self) -> None:
        _, memory = decided(AT_ONCE, fleet(variant("a", 1, ready=0), held=0.0, active_at=0.0))
        ready = fleet(variant("a", 1, 0.0, running=0.0), active_at=0.0)
        assert numbers(decided(AT_ONCE, ready, memory, NOW + 599)[0]) == {"a": 1}
        assert numbers(decided(AT_ONCE, ready, memory, NOW + 600)[0]) == {"a": 0}


class TestUpstream:
    def test_one_comes_and_then_all_wait_for_it(self) -> None:
        decision, memory = decided(UPSTREAM, fleet(variant("a", 2, 0.75, cost=5), variant("b", 1, 0.75)))
        assert numbers(decision) == {"a": 3, "b": 1}
        assert decision.variants["a"].reason is Reason.SATURATED
        decision, _ = decided(UPSTREAM, fleet(variant("a", 2, 0.75), variant("b", 1, 0.1)), memory, NOW + 6000)
        assert numbers(decision) == {"a": 3, "b": 1}
        assert decision.variants["b"].trail[-2].text.startswith("the whole model is frozen: a was to have 3")

    def test_one_goes(self) -> None:
        moment = fleet(variant("a", 2, 0.1), variant("b", 3, 0.1))
        decision = once(UPSTREAM, moment)
        assert numbers(decision) == {"a": 2, "b": 2}
        assert decision.variants["b"].reason is Reason.SPARE

    def test_neither_pace_nor_stabilization(self) -> None:
        config = replace(UPSTREAM, scale_down_stabilization=600.0, scale_down_increment=0)
        assert numbers(once(config, fleet(variant("a", 3, 0.1)))) == {"a": 2}

    def test_bounds_and_zero_hold_all_the_same(self) -> None:
        assert numbers(once(UPSTREAM, fleet(variant("a", 2, 0.75, most=2)))) == {"a": 2}
        idle = fleet(variant("a", 2, 0.0, running=0.0), active_at=0.0)
        assert numbers(once(UPSTREAM, idle)) == {"a": 0}
        assert numbers(once(UPSTREAM, fleet(variant("a", 0), held=1.0))) == {"a": 1}


def test_a_variant_that_is_gone_is_forgotten() -> None:
    _, memory = decided(AT_ONCE, fleet(variant("a", 1), variant("b", 1)))
    _, memory = decided(AT_ONCE, fleet(variant("a", 1)), memory, NOW + 30)
    assert list(memory.variants) == ["a"]


def test_what_is_remembered_does_not_grow() -> None:
    memory = Memory()
    for index in range(500):
        kv = 0.95 if index % 2 else 0.05
        _, memory = decided(AT_ONCE, fleet(variant("a", 1 + index % 5, kv)), memory, NOW + 15.0 * index)
    assert len(memory.changes) <= 5
