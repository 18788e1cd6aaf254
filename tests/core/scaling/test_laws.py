"""What holds of every decision, whatever is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.scaling.readings import GPU, HELD, LATENCY, LONG_AGO, NOW, PROMQL, QUEUE, RUNNING, WALL
from vllm_chill.core.scaling.decide import State, decide, scaled
from vllm_chill.core.scaling.demand import demand
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Fallback, Pace, Policy, Rule, Schedule, Select, Step, Unit
from vllm_chill.core.scaling.recommend import recommend
from vllm_chill.core.scaling.signals import Aggregation, Metric, Readings, ReplicaReading, Sample, Signal

OF_REPLICAS = (
    QUEUE,
    GPU,
    RUNNING,
    Signal(Metric.KV_CACHE_USAGE, Aggregation.MAX),
    Signal(Metric.TOKENS_PER_SECOND, Aggregation.SUM, window_seconds=60),
)
OF_TARGET = (LATENCY, PROMQL, replace(PROMQL, aggregation=Aggregation.SUM))
SIGNALS = (*OF_REPLICAS, *OF_TARGET, HELD)

LAW = settings(max_examples=50, deadline=None)  # several decisions each, on a machine that may have other work

VALUES = st.floats(0, 1e6) | st.integers(0, 200).map(float) | st.just(0.0)
TARGETS = st.floats(0.01, 1e4)
STEPS = st.lists(
    st.builds(Step, st.sampled_from(Unit), st.integers(1, 200), st.integers(1, 1800).map(float)), max_size=3
).map(tuple)
PACES = st.builds(Pace, st.integers(0, 600).map(float), STEPS, st.sampled_from(Select))


@st.composite
def rules(draw: st.DrawFn, signals: Sequence[Signal] = SIGNALS, most: int = 3) -> tuple[Rule, ...]:
    chosen = draw(st.lists(st.sampled_from(signals), unique=True, min_size=1, max_size=most))
    targets = [draw(TARGETS) for _ in chosen]
    bands = [draw(st.sampled_from([1.0, 1.0, 1.5, 3.0])) for _ in chosen]
    return tuple(
        Rule(signal, target * band, target) for signal, target, band in zip(chosen, targets, bands, strict=True)
    )


@st.composite
def policies(draw: st.DrawFn, signals: Sequence[Signal] = SIGNALS) -> Policy:
    least = draw(st.integers(0, 20))
    most = draw(st.integers(max(1, least), 60))
    return Policy(
        "chat",
        least,
        most,
        draw(rules(signals)),
        draw(PACES),
        draw(PACES),
        tolerance=draw(st.floats(0, 1)),
        fallback=draw(st.none() | st.builds(Fallback, st.integers(1, 60), st.integers(1, 3))),
        schedules=draw(
            st.sampled_from([(), (Schedule("0 8 * * *", "0 18 * * *", "Europe/Berlin", 5),)]),
        ),
    )


@st.composite
def members(draw: st.DrawFn, at: float, most: int = 8) -> tuple[ReplicaReading, ...]:
    found = []
    for index in range(draw(st.integers(0, most))):
        since = draw(st.sampled_from([None, LONG_AGO, LONG_AGO, LONG_AGO, at - 5]))
        samples = {
            signal: Sample(draw(VALUES), at - draw(st.sampled_from([0.0, 0.0, 3.0, 10.0, 100.0])))
            for signal in OF_REPLICAS
            if draw(st.booleans())
        }
        found.append(ReplicaReading(f"chat-{index}", since, samples))
    return tuple(found)


@st.composite
def moments(draw: st.DrawFn, at: float = NOW) -> Readings:
    there = draw(members(at))
    replicas = draw(st.just(len(there)) | st.integers(0, 20))
    whole = {signal: Sample(draw(VALUES), at) for signal in OF_TARGET if draw(st.booleans())}
    return Readings(at, replicas, there, whole, draw(st.integers(0, 500)))


@LAW
@given(policies(), st.lists(moments(), min_size=1, max_size=6), st.booleans(), st.none() | st.integers(1, 90))
def test_nothing_leaves_the_bounds(policy: Policy, history: list[Readings], paused: bool, by_hand: int | None) -> None:
    policy = replace(policy, paused=paused and by_hand is not None)  # what is only paused stays where it was put
    override = None if by_hand is None else Override(by_hand, "alice", 0, 1e6)
    state = State()
    for index, moment in enumerate(history):
        at = NOW + 15 * index
        decision, state = decide(policy, state, replace(moment, at=at), WALL, override if index % 2 else None)
        if policy.paused and not index % 2:
            assert decision.replicas == moment.replicas
        else:
            assert max(1, policy.min_replicas) <= decision.replicas <= policy.max_replicas
        state = scaled(state, moment.replicas, decision.replicas, at)


@LAW
@given(policies(), st.integers(0, 10**6), st.integers(0, 100))
def test_those_who_are_held_never_wake_more_or_fewer_than_may_be(policy: Policy, held: int, wall_min: int) -> None:
    wanted = demand(policy, held, wall_min)
    assert max(1, policy.min_replicas) <= wanted <= policy.max_replicas
    assert wanted <= demand(policy, held + 1, wall_min)
    assert wanted <= demand(policy, held, wall_min + 1)


def more(readings: Readings, added: float, held: int) -> Readings:
    """The same with more load, wherever load was measured."""

    def up(sample: Sample) -> Sample:
        return replace(sample, value=sample.value + added)

    return replace(
        readings,
        members=tuple(
            replace(member, samples={signal: up(sample) for signal, sample in member.samples.items()})
            for member in readings.members
        ),
        target={signal: up(sample) for signal, sample in readings.target.items()},
        held=readings.held + held,
    )


@LAW
@given(policies(), moments(), st.floats(0, 1e4), st.integers(0, 100))
def test_more_load_never_asks_for_fewer(policy: Policy, moment: Readings, added: float, held: int) -> None:
    assert recommend(policy, moment).replicas <= recommend(policy, more(moment, added, held)).replicas


@LAW
@given(policies(), st.lists(moments(), max_size=4), moments(), st.floats(0, 1e4), st.integers(0, 100))
def test_more_load_never_gets_fewer_whatever_came_before(
    policy: Policy, history: list[Readings], moment: Readings, added: float, held: int
) -> None:
    state = State()
    for index, one in enumerate(history):
        _, state = decide(policy, state, replace(one, at=NOW - 15 * (len(history) - index)), WALL)
    less, _ = decide(policy, state, moment, WALL)
    loaded, _ = decide(policy, state, more(moment, added, held), WALL)
    if less.fallen_back == loaded.fallen_back:  # a first sample ends the fallback
        assert less.replicas <= loaded.replicas


@LAW
@given(policies(), moments(), st.lists(moments(), max_size=3))
def test_without_any_data_nothing_shrinks(policy: Policy, moment: Readings, history: list[Readings]) -> None:
    policy = replace(policy, rules=tuple(rule for rule in policy.rules if rule.signal != HELD) or (Rule(QUEUE, 5, 5),))
    blind = tuple(replace(member, samples={}) for member in moment.members)
    moment = replace(moment, members=blind, target={})
    state = State()
    for index, one in enumerate(history):
        _, state = decide(policy, state, replace(one, at=NOW - 15 * (len(history) - index)), WALL)
    assert decide(policy, state, moment, WALL)[0].replicas >= min(moment.replicas, policy.max_replicas)


@LAW
@given(policies(), moments(), st.sampled_from(SIGNALS[:-1]))
def test_while_one_rule_has_no_data_nothing_shrinks(policy: Policy, moment: Readings, gone: Signal) -> None:
    policy = replace(policy, rules=(*(rule for rule in policy.rules if rule.signal != gone), Rule(gone, 5, 5)))
    without = replace(
        moment,
        members=tuple(
            replace(member, samples={signal: one for signal, one in member.samples.items() if signal != gone})
            for member in moment.members
        ),
        target={signal: one for signal, one in moment.target.items() if signal != gone},
    )
    assert recommend(policy, without).replicas >= moment.replicas


@LAW
@given(rules(OF_REPLICAS, most=1), moments())
def test_a_ready_replica_that_was_not_measured_is_kept(rules: tuple[Rule, ...], moment: Readings) -> None:
    [rule] = rules
    policy = Policy("chat", 1, 60, rules)
    unmeasured = sum(member.ready_since is not None and rule.signal not in member.samples for member in moment.members)
    assert recommend(policy, moment).replicas >= min(unmeasured, moment.replicas)


@LAW
@given(
    st.floats(0.1, 100),
    st.floats(0, 2000),
    st.integers(1, 50),
    st.floats(0, 0.3),
    st.sampled_from([QUEUE, RUNNING, GPU]),
)
def test_a_steady_load_comes_to_rest_at_once_and_stays(
    target: float, load: float, replicas: int, tolerance: float, signal: Signal
) -> None:
    """A load that the replicas share: after one step there are as many as it needs, and there they stay."""
    policy = Policy("chat", 1, 10**6, (Rule(signal, target, target),), tolerance=tolerance)

    def asked(count: int) -> int:
        each = {signal: Sample(load / count, NOW)}
        there = tuple(ReplicaReading(f"chat-{index}", LONG_AGO, each) for index in range(count))
        return max(1, recommend(policy, Readings(NOW, count, there)).replicas)

    at_rest = asked(replicas)
    if at_rest < 2000:
        assert asked(at_rest) == at_rest
        assert load / at_rest <= target * (1 + tolerance) + 1e-6 or at_rest == replicas


def test_what_is_remembered_does_not_grow() -> None:
    policy, state = Policy("chat", 1, 60, (Rule(QUEUE, 5, 5),)), State()
    for index in range(1000):
        load = {QUEUE: Sample(index * 7 % 100, 15.0 * index)}
        moment = Readings(15.0 * index, 1 + index % 7, (ReplicaReading("chat-0", LONG_AGO, load),))
        decision, state = decide(policy, state, moment, WALL)
        state = scaled(state, moment.replicas, decision.replicas, moment.at)
    assert len(state.recommended) <= 300 / 15 + 1
    assert len(state.changes) <= 1800 / 15
