from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.core.scaling.readings import (
    GPU,
    HELD,
    LATENCY,
    LONG_AGO,
    MISSING,
    NOW,
    PROMQL,
    QUEUE,
    RUNNING,
    STARTING,
    Value,
    policy,
    readings,
    rule,
)
from vllm_chill.core.scaling.policy import Rule
from vllm_chill.core.scaling.recommend import recommend
from vllm_chill.core.scaling.signals import Aggregation, Metric, Readings, ReplicaReading, Sample, Signal

HIGHEST = Signal(Metric.QUEUE_LENGTH, Aggregation.MAX)
TOGETHER = Signal(Metric.QUEUE_LENGTH, Aggregation.SUM)
M, S = MISSING, STARTING


def asked(*rules: Rule, of: Readings) -> int:
    return recommend(policy(*rules), of).replicas


def row(values: list[Value], replicas: int, words: str) -> object:
    return pytest.param(values, replicas, id=words)


class TestTheAverageOverReplicas:
    """The target is 10 each."""

    @pytest.mark.parametrize(
        ("values", "replicas"),
        [
            row([20], 2, "twice the target is twice the replicas"),
            row([5, 5], 1, "half of the target is half of the replicas"),
            row([14, 14, 14], 5, "a part of a replica is a whole one"),
            row([0, 30, 0], 3, "it is the average that counts"),
            row([11, 11], 2, "the tolerance itself changes nothing on the way up"),
            row([11.01, 11.01], 3, "above the tolerance it grows"),
            row([9, 9], 2, "the tolerance itself changes nothing on the way down"),
            row([8.9] * 10, 9, "below the tolerance it shrinks"),
            row([8.9, 8.9], 2, "what is left of a replica keeps it"),
            row([0, 0], 0, "no load asks for none"),
            # What is not measured.
            row([20, 20, M], 4, "on the way up a missing metric counts as 0"),
            row([15, 15, M], 3, "counted as 0 it may be within the tolerance, and it stays"),
            row([12, M, M], 3, "counted as 0 it may turn round, and it stays"),
            row([5, 5, M], 2, "on the way down a missing metric counts as the target"),
            row([8.7, M, M, M], 4, "counted as the target it may be within the tolerance, and it stays"),
            row([10, 10, M], 3, "at the target nothing changes, whatever is missing"),
            row([0, M, M], 2, "a replica that is not measured is kept"),
            # What is not ready.
            row([40, S], 4, "on the way up a replica that is not ready counts as 0"),
            row([21, S], 2, "counted as 0 it may be within the tolerance, and it stays"),
            row([15, S, S], 3, "counted as 0 it may turn round, and it stays"),
            row([5, 5, S], 1, "on the way down a replica that is not ready is ignored"),
            row([10, S], 2, "at the target nothing changes, whoever is not ready"),
            row([40, M, S], 4, "on the way up both count as 0"),
            row([15, M, S], 3, "both as 0 may turn round, and it stays"),
            row([5, M, S], 2, "on the way down one counts and the other does not"),
        ],
    )
    def test_asks_as_hpa_does(self, values: list[Value], replicas: int) -> None:
        assert asked(rule(QUEUE, 10), of=readings(values)) == replicas

    def test_replicas_that_are_asked_for_and_not_there_are_not_ready(self) -> None:
        assert asked(rule(QUEUE, 10), of=readings([15], replicas=3)) == 3
        assert asked(rule(QUEUE, 10), of=readings([40], replicas=3)) == 4

    def test_replicas_that_are_there_and_not_asked_for_are_no_reason_to_grow(self) -> None:
        assert asked(rule(QUEUE, 10), of=readings([6, 6, 6], replicas=1)) == 1

    def test_a_sample_from_before_the_replica_was_ready_is_as_if_it_were_not_ready(self) -> None:
        loading = ReplicaReading("chat-1", NOW - 1, {QUEUE: Sample(90, NOW - 2)})
        measured = readings([15])
        assert asked(rule(QUEUE, 10), of=replace(measured, replicas=2, members=(*measured.members, loading))) == 2

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_is_missing(self, value: float) -> None:
        assert asked(rule(QUEUE, 10), of=readings([5, 5, value])) == 2
        assert asked(rule(QUEUE, 10), of=readings([value])) == 1

    def test_sums_of_decimal_fractions_are_not_a_replica_more(self) -> None:
        assert asked(rule(RUNNING, 0.1), of=readings([0.1 + 0.2], signal=RUNNING)) == 3

    def test_a_load_beyond_all_measure_is_a_number(self) -> None:
        assert asked(rule(QUEUE, 1e-300), of=readings([1e300])) == 2**31 - 1


class TestTheQueue:
    def test_counts_what_is_held_in_the_proxy(self) -> None:
        assert asked(rule(QUEUE, 5), of=readings([4, 4, 4], held=30)) == 9
        assert asked(rule(RUNNING, 5), of=readings([5], signal=RUNNING, held=30)) == 1

    @pytest.mark.parametrize(("held", "replicas"), [(1, 1), (10, 1), (11, 2), (42, 5)], ids=lambda number: str(number))
    def test_from_nothing_is_what_is_held(self, held: int, replicas: int) -> None:
        assert asked(rule(QUEUE, 10), of=readings([], held=held)) == replicas

    def test_from_nothing_up_to_the_threshold_is_one_replica(self) -> None:
        assert asked(rule(QUEUE, 5, threshold=20), of=readings([], held=20)) == 1
        assert asked(rule(QUEUE, 5, threshold=20), of=readings([], held=21)) == 5

    def test_while_nothing_is_ready_is_what_is_held(self) -> None:
        assert asked(rule(QUEUE, 10), of=readings([S, S], held=42)) == 5
        assert asked(rule(QUEUE, 10), of=readings([S] * 5, held=12)) == 5

    def test_of_engines_that_cannot_be_asked_is_at_least_what_is_held(self) -> None:
        assert asked(rule(QUEUE, 10), of=readings([M, M], held=42)) == 5
        assert asked(rule(QUEUE, 10), of=readings([M] * 5, held=12)) == 5


class TestOneValueForAll:
    @pytest.mark.parametrize(
        ("signal", "values", "replicas"),
        [
            pytest.param(HIGHEST, [2, 20], 4, id="the highest counts for all"),
            pytest.param(HIGHEST, [2, 11], 2, id="the highest within the tolerance stays"),
            pytest.param(HIGHEST, [2, 5], 1, id="the highest below the target shrinks"),
            pytest.param(HIGHEST, [2, 5, M], 3, id="a missing one may be the highest"),
            pytest.param(HIGHEST, [2, 20, S], 4, id="only ready ones are multiplied"),
            pytest.param(HIGHEST, [12, S, S], 3, id="only ready ones are multiplied, and up is not down"),
            pytest.param(TOGETHER, [10, 10], 4, id="the sum counts for all"),
            pytest.param(TOGETHER, [1, 1, 3], 2, id="the sum below the target shrinks"),
            pytest.param(TOGETHER, [1, 1, M], 3, id="a missing one may be the target"),
        ],
    )
    def test_is_multiplied_by_the_ready_replicas(self, signal: Signal, values: list[Value], replicas: int) -> None:
        assert asked(rule(signal, 10), of=readings(values, signal=signal)) == replicas

    def test_what_is_held_comes_on_top(self) -> None:
        assert asked(rule(HIGHEST, 10), of=readings([2, 14], signal=HIGHEST)) == 3
        held = replace(readings([2, 14], signal=HIGHEST), held=12)
        assert asked(rule(HIGHEST, 10), of=held) == 4
        assert asked(rule(TOGETHER, 10), of=replace(readings([2, 2], signal=TOGETHER), held=16)) == 4

    @pytest.mark.parametrize(
        ("value", "values", "replicas"),
        [
            pytest.param(2000, [M, M], 4, id="twice the latency is twice the replicas"),
            pytest.param(500, [M, M], 1, id="half of the latency is half of the replicas"),
            pytest.param(1100, [M, M], 2, id="within the tolerance it stays"),
            pytest.param(2000, [M, S, S], 3, id="up is never down, however few are ready"),
            pytest.param(2000, [S, S], 2, id="with none ready it stays"),
        ],
    )
    def test_a_latency_is_the_ratio_times_the_ready_replicas(
        self, value: float, values: list[Value], replicas: int
    ) -> None:
        assert asked(rule(LATENCY, 1000), of=readings(values, target={LATENCY: value})) == replicas

    def test_a_latency_below_the_target_is_never_more_than_there_is(self) -> None:
        assert asked(rule(LATENCY, 1000), of=readings([M] * 6, replicas=2, target={LATENCY: 500})) == 2


class TestATotal:
    @pytest.mark.parametrize(
        ("total", "replicas"),
        [
            pytest.param(45, 5, id="as many as share it out at the target"),
            pytest.param(33, 3, id="within the tolerance it stays"),
            pytest.param(27, 3, id="within the tolerance it stays, below too"),
            pytest.param(5, 1, id="less load, fewer replicas"),
            pytest.param(0, 0, id="no load asks for none"),
            pytest.param(-5, 0, id="less than no load asks for none"),
        ],
    )
    def test_is_shared_by_the_replicas_ready_or_not(self, total: float, replicas: int) -> None:
        assert asked(rule(PROMQL, 10), of=readings([M, S, S], target={PROMQL: total})) == replicas
        if total >= 0:
            assert asked(rule(HELD, 10), of=readings([M, S, S], held=int(total))) == replicas

    def test_is_compared_as_it_is_where_the_aggregation_says_so(self) -> None:
        whole = replace(PROMQL, aggregation=Aggregation.MAX)
        assert asked(rule(whole, 10), of=readings([M, M], target={whole: 20})) == 4


class TestTheThreshold:
    @pytest.mark.parametrize(
        ("each", "replicas"),
        [
            pytest.param(4, 2, id="below the target it shrinks"),
            pytest.param(8, 4, id="between them it stays"),
            pytest.param(20, 4, id="at the threshold it stays"),
            pytest.param(22, 4, id="the tolerance counts for the threshold too"),
            pytest.param(23, 12, id="above the threshold it comes to the target"),
        ],
    )
    def test_above_the_target_is_a_band_in_which_nothing_happens(self, each: float, replicas: int) -> None:
        assert asked(rule(QUEUE, 8, threshold=20), of=readings([each] * 4)) == replicas

    def test_below_the_target_is_as_the_target(self) -> None:
        assert asked(rule(QUEUE, 10, threshold=5), of=readings([8] * 4)) == 4
        assert asked(rule(QUEUE, 10, threshold=5), of=readings([20] * 4)) == 8

    def test_what_is_not_known_is_compared_with_the_threshold_too(self) -> None:
        assert asked(rule(QUEUE, 10, threshold=20), of=readings([30, M])) == 2


class TestSeveralRules:
    RULES = (rule(QUEUE, 10), rule(LATENCY, 1000))

    def test_the_largest_ask_wins(self) -> None:
        assert asked(*self.RULES, of=readings([30], target={LATENCY: 2000})) == 3
        assert asked(*self.RULES, of=readings([20], target={LATENCY: 3000})) == 3

    def test_what_is_missing_does_not_keep_the_others_from_growing(self) -> None:
        assert asked(*self.RULES, of=readings([30, 30])) == 6

    def test_what_is_missing_keeps_the_others_from_shrinking(self) -> None:
        assert asked(*self.RULES, of=readings([1, 1])) == 2
        assert asked(*self.RULES, of=readings([1, 1], target={LATENCY: 1})) == 1

    def test_without_any_data_it_stays(self) -> None:
        nothing = recommend(policy(*self.RULES), readings([M, M, M]))
        assert (nothing.replicas, nothing.measured, nothing.blind) == (3, False, True)

    def test_without_any_rule_as_few_as_may_be(self) -> None:
        assert recommend(replace(policy(), rules=()), readings([90])).replicas == 0


class TestAge:
    def test_a_stale_sample_is_missing(self) -> None:
        assert recommend(policy(), readings([90], age=45)).replicas == 9
        assert not recommend(policy(), readings([90], age=45.1)).measured

    def test_what_is_stale_is_no_sooner_than_thirty_seconds(self) -> None:
        often = replace(policy(), polling_seconds=1)
        assert recommend(often, readings([90], age=30)).measured
        assert not recommend(often, readings([90], age=30.1)).measured

    def test_the_oldest_sample_is_told(self) -> None:
        members = (
            ReplicaReading("a", LONG_AGO, {QUEUE: Sample(1, NOW - 7)}),
            ReplicaReading("b", LONG_AGO, {QUEUE: Sample(1, NOW - 3)}),
        )
        [told] = recommend(policy(), Readings(NOW, 2, members)).asked
        assert told.age_seconds == 7
        assert told.value == 1

    def test_nothing_is_wrong_while_no_replica_is_ready(self) -> None:
        assert not recommend(policy(), readings([S])).blind


class TestWords:
    @pytest.mark.parametrize(
        ("rule_", "of", "words"),
        [
            (
                rule(QUEUE, 5),
                readings([14, 14, 14]),
                "queue_length is 42 over 3 replicas, 14 each; the target is 5, so 9 replicas",
            ),
            (
                rule(QUEUE, 5),
                readings([4, 4, 4], held=30),
                "queue_length is 42 (30 of them held) over 3 replicas, 14 each; the target is 5, so 9 replicas",
            ),
            (
                rule(QUEUE, 5),
                readings([], held=42),
                "queue_length is 42 while there are no replicas; the target is 5, so 9 replicas",
            ),
            (
                rule(QUEUE, 5),
                readings([S, S], held=42),
                "queue_length is 42 (all of them held) over 2 replicas, 21 each; the target is 5, so 9 replicas",
            ),
            (
                rule(GPU, 75),
                readings([90, 90, 90], signal=GPU),
                "gpu_utilization is 90% on average over 3 replicas; the target is 75%, so 4 replicas",
            ),
            (
                rule(GPU, 70, threshold=90),
                readings([80], signal=GPU),
                "gpu_utilization is 80% on average over 1 replica; the target is 70% and the threshold 90%; that is "
                "not above the threshold, so it stays at 1",
            ),
            (
                rule(GPU, 70, threshold=90),
                readings([95], signal=GPU),
                "gpu_utilization is 95% on average over 1 replica; the target is 70% and the threshold 90%; that is "
                "within 10% of the threshold, so it stays at 1",
            ),
            (
                rule(QUEUE, 10),
                readings([11]),
                "queue_length is 11 over 1 replica; the target is 10; that is within 10% of the target, so it stays "
                "at 1",
            ),
            (
                rule(QUEUE, 10),
                readings([40, M, S, S]),
                "queue_length is 40 over 1 replica; the target is 10; 1 replica without a fresh sample counts as 0 "
                "and 2 replicas not ready count as 0; that leaves nothing to change, so it stays at 4",
            ),
            (
                rule(QUEUE, 10),
                readings([4, M, S]),
                "queue_length is 4 over 1 replica; the target is 10; 1 replica without a fresh sample counts as the "
                "target, so 2 replicas",
            ),
            (
                rule(Signal(Metric.LATENCY, Aggregation.TTFT, 95, 60), 1000),
                readings([M] * 3, target={Signal(Metric.LATENCY, Aggregation.TTFT, 95, 60): 2000}),
                "latency (ttft, p95) is 2000 ms with 3 replicas ready; the target is 1000 ms, so 6 replicas",
            ),
            (
                rule(LATENCY, 1000),
                readings([M, S, S], target={LATENCY: 1200}),
                "latency is 1200 ms with 1 replica ready; the target is 1000 ms; not all replicas are ready, so it "
                "stays at 3",
            ),
            (
                rule(PROMQL, 10),
                readings([M], target={PROMQL: 45.678}),
                "promql (sum(rate(x[1m]))) is 45.68 over 1 replica; the target is 10, so 5 replicas",
            ),
            (
                rule(HIGHEST, 10),
                readings([3, 25], signal=HIGHEST),
                "the highest queue_length of 2 replicas is 25; the target is 10, so 5 replicas",
            ),
            (
                rule(QUEUE, 10),
                readings([M, M]),
                "queue_length is missing, as no ready replica has a fresh sample of it, so it stays at 2",
            ),
            (rule(QUEUE, 10), readings([S]), "queue_length is missing, as no replica is ready, so it stays at 1"),
            (
                rule(LATENCY, 10),
                readings([S]),
                "latency is missing, as there is no fresh sample of it, so it stays at 1",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_say_what_was_asked_and_why(self, rule_: Rule, of: Readings, words: str) -> None:
        [said] = recommend(policy(rule_), of).said
        assert said.reason == words

    def test_say_which_of_several_rules_it_was(self) -> None:
        rules = (rule(QUEUE, 10), rule(LATENCY, 1000))
        *_, grown = recommend(policy(*rules), readings([30], target={LATENCY: 2000})).said
        assert grown.reason == "the most that a rule asks for is 3 replicas"
        *_, kept = recommend(policy(*rules), readings([1, 1])).said
        assert kept.reason == "without latency it does not shrink below 2"

    def test_a_long_query_is_cut(self) -> None:
        long = Signal(Metric.PROMQL, query=f"sum(\n  {'x' * 100})")
        [said] = recommend(policy(rule(long, 10)), readings([M], target={long: 10})).said
        assert f"promql (sum( {'x' * 54}…) is 10" in said.reason
