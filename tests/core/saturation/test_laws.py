"""What holds of every decision on a model's variants, whatever is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.saturation.config import Analyzer, Config
from vllm_chill.core.saturation.decide import Memory, granted, propose, restored
from vllm_chill.core.saturation.decision import ModelDecision, Reason
from vllm_chill.core.saturation.fleet import Fleet, ReplicaLoad, Variant, Zero

LAW = settings(max_examples=40, deadline=None)
NOW = 10_000.0
NEVER = 1e9


@st.composite
def configs(draw: st.DrawFn) -> Config:
    return Config(
        analyzer=draw(st.sampled_from(Analyzer)),
        upstream=draw(st.sampled_from([False, False, True])),
        scale_up_increment=draw(st.integers(1, 6)),
        scale_up_period=draw(st.sampled_from([0.0, 60.0, 300.0])),
        scale_up_stabilization=draw(st.sampled_from([0.0, 0.0, 60.0])),
        scale_down_increment=draw(st.integers(1, 6)),
        scale_down_period=draw(st.sampled_from([0.0, 60.0])),
        scale_down_stabilization=draw(st.sampled_from([0.0, 0.0, 120.0])),
        transition_timeout=draw(st.sampled_from([0.0, 60.0, 600.0])),
    )


@st.composite
def loads(draw: st.DrawFn, name: str) -> ReplicaLoad:
    known = draw(st.sampled_from([True] * 9 + [False]))
    return ReplicaLoad(
        name,
        kv=draw(st.sampled_from([0.0, 0.05, 0.3, 0.62, 0.69, 0.71, 0.9, 1.0])),
        queue=draw(st.sampled_from([0.0, 0.0, 1.0, 2.5, 5.0, 40.0])) if known else None,
        running=draw(st.sampled_from([0.0, 0.0, 0.0, 3.0])) if known else None,
        stale=draw(st.sampled_from([False] * 9 + [True])),
    )


@st.composite
def variants(draw: st.DrawFn, key: str, *, alike: bool = False) -> Variant:
    replicas = draw(st.integers(0, 5))
    ready = replicas if draw(st.booleans()) else draw(st.integers(0, 5))
    least = draw(st.sampled_from([0, 0, 0, 1, 3]))
    told = ready if draw(st.sampled_from([True] * 5 + [False])) else draw(st.integers(0, ready))
    return Variant(
        key,
        cost=draw(st.sampled_from([5.0, 10.0, 10.0, 40.0])),
        replicas=replicas,
        ready=ready,
        min_replicas=least,
        max_replicas=draw(st.none() | st.integers(least, 8)),
        capacity=1.0 if alike else draw(st.sampled_from([0.5, 1.0, 1.0, 2.0])),
        loads=tuple(draw(loads(f"{key}-{index}")) for index in range(told)),
    )


@st.composite
def fleets(draw: st.DrawFn, keys: str = "", *, alike: bool = False) -> Fleet:
    keys = keys or "abc"[: draw(st.integers(1, 3))]
    return Fleet(
        "prod",
        "chat",
        tuple(draw(variants(key, alike=alike)) for key in keys),
        held=draw(st.sampled_from([None, 0.0, 0.0, 1.0, 30.0])),
        active_at=draw(st.sampled_from([None, 0.0, NOW - 30])),
        woken_at=draw(st.sampled_from([None, 0.0, NOW - 30])),
        zero=Zero(draw(st.booleans()), draw(st.sampled_from([60.0, 600.0]))),
    )


@st.composite
def histories(draw: st.DrawFn, *, alike: bool = False) -> tuple[Config, Memory, Fleet]:
    """A moment, with a memory of some before that had the same variants."""
    config, moment = draw(configs()), draw(fleets(alike=alike))
    memory, keys = Memory(), "".join(one.key for one in moment.variants)
    if draw(st.booleans()):
        memory = restored(memory, {key: draw(st.integers(0, 6)) for key in keys}, NOW - draw(st.sampled_from([0, 900])))
    before = draw(st.lists(fleets(keys, alike=alike), max_size=3))
    for index, one in enumerate(before):
        at = NOW - 30.0 * (len(before) - index)
        decision, memory = propose(config, one, memory, at)
        memory = granted(memory, decision, at)
    return config, memory, moment


def numbers(decision: ModelDecision) -> dict[str, int]:
    return {key: one.replicas for key, one in decision.variants.items()}


def capacity(fleet: Fleet, counts: Mapping[str, int]) -> float:
    return sum(one.capacity * counts[one.key] for one in fleet.variants)


def more(fleet: Fleet, kv: float, queue: float) -> Fleet:
    """The same with more load, wherever load was measured."""

    def loaded(load: ReplicaLoad) -> ReplicaLoad:
        return replace(
            load,
            kv=None if load.kv is None else min(1.0, load.kv + kv),
            queue=None if load.queue is None else load.queue + queue,
            running=None if load.running is None else load.running + queue,
        )

    return replace(
        fleet,
        variants=tuple(replace(one, loads=tuple(map(loaded, one.loads))) for one in fleet.variants),
        held=None if fleet.held is None else fleet.held + queue,
    )


@LAW
@given(histories())
def test_nothing_leaves_the_bounds(history: tuple[Config, Memory, Fleet]) -> None:
    config, memory, moment = history
    decision, _ = propose(config, moment, memory, NOW)
    for one in moment.variants:
        count = decision.variants[one.key].replicas
        assert one.min_replicas <= count
        assert one.max_replicas is None or count <= one.max_replicas


@LAW
@given(histories(), st.sampled_from([0.0, 0.01, 0.1, 0.5]), st.sampled_from([0.0, 0.5, 3.0, 100.0]))
def test_more_load_never_gets_less_capacity_from_the_same_memory(
    history: tuple[Config, Memory, Fleet], kv: float, queue: float
) -> None:
    """llm-d's own way breaks it: a saturated replica is not looked at, so more load can be less of it."""
    config, memory, moment = history
    config = replace(config, upstream=False, transition_timeout=NEVER)
    less = numbers(propose(config, moment, memory, NOW)[0])
    loaded = numbers(propose(config, more(moment, kv, queue), memory, NOW)[0])
    assert capacity(moment, less) <= capacity(moment, loaded)


@LAW
@given(histories(alike=True), st.sampled_from([0.01, 0.1, 0.5]), st.sampled_from([0.0, 0.5, 3.0, 100.0]))
def test_more_load_never_gets_fewer_of_replicas_that_are_alike(
    history: tuple[Config, Memory, Fleet], kv: float, queue: float
) -> None:
    config, memory, moment = history
    config = replace(config, upstream=False, transition_timeout=NEVER)
    less = numbers(propose(config, moment, memory, NOW)[0])
    loaded = numbers(propose(config, more(moment, kv, queue), memory, NOW)[0])
    assert sum(less.values()) <= sum(loaded.values())


@LAW
@given(histories(), st.sampled_from(["untold", "stale", "partial", "nothing"]))
def test_what_is_missing_shrinks_nothing(history: tuple[Config, Memory, Fleet], missing: str) -> None:
    config, memory, moment = history
    first = replace(moment.variants[0], ready=max(1, moment.variants[0].ready))
    match missing:
        case "untold":
            first = replace(first, loads=first.loads[: first.ready - 1])
        case "stale":
            first = replace(first, loads=(ReplicaLoad("a-0", 0.0, 0.0, 0.0, stale=True), *first.loads[1:]))
        case "partial":
            first = replace(first, loads=(ReplicaLoad("a-0", 0.0, None, None), *first.loads[1:]))
    others = moment.variants[1:]
    if missing == "nothing":
        first, others = replace(first, loads=()), tuple(replace(one, loads=()) for one in others)
    moment = replace(moment, variants=(first, *others))
    decision, _ = propose(config, moment, memory, NOW)
    for one in moment.variants:
        decided = memory.variants[one.key].replicas if one.key in memory.variants else one.replicas
        least = min(decided, one.replicas)
        assert decision.variants[one.key].replicas >= min(
            least, NEVER if one.max_replicas is None else one.max_replicas
        )


@LAW
@given(histories())
def test_only_what_is_known_to_be_unused_goes_to_zero(history: tuple[Config, Memory, Fleet]) -> None:
    config, memory, moment = history
    decision, _ = propose(config, moment, memory, NOW)
    if any(one.reason is Reason.IDLE for one in decision.variants.values()):
        kept = moment.zero.retention_seconds
        assert moment.zero.enabled
        assert moment.held == 0
        for one in moment.variants:
            assert not one.untold
            assert all((load.running, load.queue, load.stale) == (0, 0, False) for load in one.loads)
        began = memory.watched.since if memory.watched is not None else NOW
        assert NOW - (began if moment.active_at is None else moment.active_at) >= kept
        assert moment.woken_at is None or NOW - moment.woken_at >= kept
        assert numbers(decision) == {
            one.key: min(one.min_replicas, decision.variants[one.key].replicas) for one in moment.variants
        }
    elif moment.replicas and not any(numbers(decision).values()):
        assert all(one.max_replicas == 0 for one in moment.variants) or moment.zero.enabled or config.upstream


@LAW
@given(histories())
def test_a_model_that_may_not_be_at_zero_keeps_a_replica(history: tuple[Config, Memory, Fleet]) -> None:
    config, memory, moment = history
    moment = replace(moment, zero=Zero())
    decision, _ = propose(config, moment, memory, NOW)
    if moment.replicas and any(one.max_replicas != 0 for one in moment.variants):
        assert any(numbers(decision).values())


@LAW
@given(histories(), st.integers(1, 5))
def test_no_more_come_or_go_within_a_period_however_often_it_is_looked_at(
    history: tuple[Config, Memory, Fleet], looks: int
) -> None:
    """Bounds, zero and what somebody else did are no matter of pace: of what is left, all is."""
    config, _, moment = history
    config = replace(config, upstream=False, transition_timeout=NEVER, scale_up_period=60.0, scale_down_period=60.0)
    moment = replace(
        moment, zero=Zero(), variants=tuple(replace(one, min_replicas=0, max_replicas=None) for one in moment.variants)
    )
    memory, first = Memory(), {one.key: one.replicas for one in moment.variants}
    last = first
    for look in range(looks + 1):
        decision, memory = propose(config, moment, memory, NOW + look * 59.0 / looks)
        memory, last = granted(memory, decision, NOW + look * 59.0 / looks), numbers(decision)
    came = sum(max(0, last[key] - first[key]) for key in first)
    went = sum(max(0, first[key] - last[key]) for key in first)
    assert came <= max(config.scale_up_increment, 1)
    assert went <= config.scale_down_increment


@LAW
@given(histories())
def test_every_variant_has_a_decision_and_words_for_it(history: tuple[Config, Memory, Fleet]) -> None:
    config, memory, moment = history
    decision, after = propose(config, moment, memory, NOW)
    assert list(decision.variants) == list(after.variants) == [one.key for one in moment.variants]
    for one in moment.variants:
        decided = decision.variants[one.key]
        assert decided.words
        assert not any(step.text.endswith(".") for step in decided.trail)
        told = [step.replicas for step in decided.trail if step.replicas is not None]
        assert not told or config.upstream or told[-1] == decided.replicas


def small_fleets() -> list[tuple[Variant, ...]]:
    """Every fleet of two variants of some costs, sizes, replicas and bounds."""
    kinds = [
        (cost, capacity, replicas, most)
        for cost, capacity in ((10.0, 1.0), (25.0, 2.0), (18.0, 2.0))
        for replicas, most in ((0, 3), (1, 4), (2, 2))
    ]
    return [
        tuple(
            Variant(key, cost, replicas=replicas, ready=replicas, max_replicas=most, capacity=size)
            for key, (cost, size, replicas, most) in zip("ab", pair, strict=True)
        )
        for pair in product(kinds, repeat=2)
    ]


def under(fleet: tuple[Variant, ...], kv: float, queue: float) -> Fleet:
    return Fleet(
        "prod",
        "chat",
        tuple(
            replace(
                one, loads=tuple(ReplicaLoad(f"{one.key}-{index}", kv, queue, 1.0) for index in range(one.replicas))
            )
            for one in fleet
        ),
        held=0.0,
        active_at=NOW,
    )


@pytest.mark.parametrize("analyzer", Analyzer)
def test_nothing_cheaper_would_do_for_any_small_fleet(analyzer: Analyzer) -> None:
    """By brute force: no cheaper additions give what was required, or at least what came; no removals within what was
    spare save more.
    """
    config = Config(analyzer=analyzer, scale_down_stabilization=0.0, scale_up_increment=3, scale_down_increment=2)
    grown = shrunk = 0
    for fleet, (kv, queue) in product(small_fleets(), ((0.8, 0.0), (0.95, 0.0), (1.0, 4.0), (0.1, 0.0), (0.3, 0.0))):
        moment = under(fleet, kv, queue)
        decision, _ = propose(config, moment, Memory(), NOW)
        moves = [decision.variants[one.key].replicas - one.replicas for one in fleet]
        cost = sum(move * one.cost for move, one in zip(moves, fleet, strict=True))
        size = sum(move * one.capacity for move, one in zip(moves, fleet, strict=True))
        if decision.analysis.required > 0:
            assert min(moves) >= 0
            rooms = [range((one.max_replicas or 0) - one.replicas + 1) for one in fleet]
            wanted = min(size, decision.analysis.required)
            costs = [
                sum(count * one.cost for count, one in zip(way, fleet, strict=True))
                for way in product(*rooms)
                if sum(count * one.capacity for count, one in zip(way, fleet, strict=True)) >= wanted - 1e-9
            ]
            assert cost == min(costs)
            grown += any(moves)
        elif decision.analysis.spare > 0:
            assert max(moves) <= 0
            rooms = [range(one.replicas + 1) for one in fleet]
            there = sum(one.replicas for one in fleet)
            savings = [
                sum(count * one.cost for count, one in zip(way, fleet, strict=True))
                for way in product(*rooms)
                if sum(way) <= min(2, there - 1)
                and sum(count * one.capacity for count, one in zip(way, fleet, strict=True))
                <= decision.analysis.spare + 1e-9
            ]
            assert -cost == max(savings)
            shrunk += any(moves)
        else:
            assert moves == [0, 0]
    assert grown > 100
    assert shrunk > 50
