"""What the decider does with replicas in the loop: it has enough of them, comes to rest, and stays there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest

from tests.core.saturation.simulator import CYCLE_SECONDS, Cluster, History, play, turns
from vllm_chill.core.saturation.config import Analyzer, Config
from vllm_chill.core.saturation.decision import Reason
from vllm_chill.core.saturation.fleet import Variant, Zero

USABLE = {Analyzer.SPARE_CAPACITY: 0.70, Analyzer.SATURATION: 0.85}
"""What part of its capacity a replica may use, by the defaults."""
LEFT = {Analyzer.SPARE_CAPACITY: 0.63, Analyzer.SATURATION: 0.70}
"""What part is used at most after replicas have gone."""
HOUR = 3600.0
CYCLES_AN_HOUR = int(HOUR / CYCLE_SECONDS)
CYCLES_TO_REST = 90
"""Ten replicas too many go one at a time, each after capacity was spare for two minutes."""


class Trace:
    """One to three variants at random, under a load at random that they can bear."""

    def __init__(self, seed: int, noise: float = 0.0, lost: float = 0.0) -> None:
        random = Random(seed)
        sizes = (1.0, random.choice([1.0, 1.5, 2.0]), random.choice([0.5, 1.0]))
        variants = [
            Variant("a", random.choice([10.0, 20.0]), replicas=random.randint(1, 3), max_replicas=12),
            Variant("b", random.choice([15.0, 40.0]), replicas=random.randint(0, 3), max_replicas=8),
            Variant("c", random.choice([5.0, 50.0]), max_replicas=4),
        ][: random.randint(1, 3)]
        self.variants = [replace(one, capacity=size) for one, size in zip(variants, sizes, strict=False)]
        self.load = random.uniform(0.2, 6)
        self.cluster = Cluster(
            random,
            self.variants,
            start_seconds=random.uniform(15, 400),
            follow_seconds=random.choice([0, 0, 30, 120]),
            noise=noise,
            lost=lost,
        )

    def play(self, config: Config, hours: float) -> History:
        return play(config, self.cluster, lambda _: self.load, hours * HOUR)[0]


def turned(trace: Trace, numbers: Sequence[Mapping[str, int]]) -> int:
    return sum(turns(count[one.key] for count in numbers) for one in trace.variants)


@pytest.mark.parametrize("analyzer", Analyzer)
@pytest.mark.parametrize("count", [pytest.param(8, id="8"), pytest.param(500, id="500", marks=pytest.mark.slow)])
def test_under_a_noisy_steady_load_it_does_not_go_up_and_down(analyzer: Analyzer, count: int) -> None:
    """Each measurement is off by up to five percent: the band between growing and shrinking is wider than that.

    The slow ones are a thousand traces together.
    """
    changed = 0
    for seed in range(count):
        trace = Trace(seed, noise=0.05)
        history = trace.play(Config(analyzer=analyzer), 2.5)
        changed += turned(trace, history.numbers[int(1.5 * CYCLES_AN_HOUR) :])
        assert trace.cluster.capacity(2.5 * HOUR) >= trace.load / USABLE[analyzer] * 0.95, "it has what it needs"
        assert trace.cluster.waiting < 1, "nothing has piled up"
    assert changed == 0


@pytest.mark.slow
@pytest.mark.parametrize("analyzer", Analyzer)
def test_with_twice_the_noise_hardly_any_does(analyzer: Analyzer) -> None:
    config = Config(analyzer=analyzer)
    traces = [Trace(seed, noise=0.10) for seed in range(100)]
    changed = [turned(trace, trace.play(config, 3).numbers[2 * CYCLES_AN_HOUR :]) for trace in traces]
    assert sum(change > 0 for change in changed) <= 1


@pytest.mark.parametrize("analyzer", Analyzer)
def test_a_steady_load_comes_to_rest_within_so_many_cycles_and_stays(analyzer: Analyzer) -> None:
    """With what it needs, and without what could go."""
    for seed in range(10):
        trace = Trace(seed)
        trace.cluster.start_seconds, trace.cluster.follow_seconds = 0.0, 0.0
        history = trace.play(Config(analyzer=analyzer), 1.2)
        rest = history.numbers[CYCLES_TO_REST:]
        assert all(numbers == rest[0] for numbers in rest)
        there = trace.cluster.capacity(1.2 * HOUR)
        assert there >= trace.load / USABLE[analyzer] - 1e-6
        gone = [one.capacity for one in trace.variants if rest[0][one.key]]
        assert sum(rest[0].values()) == 1 or there - min(gone) < trace.load / LEFT[analyzer] + 1e-6


def test_a_load_that_comes_and_goes_within_a_minute_is_met_at_its_peaks() -> None:
    cluster = Cluster(Random(1), [Variant("a", replicas=2)])
    history, _ = play(Config(), cluster, lambda now: 3.0 if now % 60 else 1.0, 2 * HOUR)
    assert turns(history.totals[CYCLES_AN_HOUR:]) == 0


def test_a_load_that_comes_and_goes_is_followed_up_down_and_to_zero_and_back() -> None:
    cluster = Cluster(Random(1), [Variant("a", 10.0), Variant("b", 40.0, max_replicas=2)], start_seconds=120.0)
    cluster.zero = Zero(enabled=True, retention_seconds=600.0)
    loads = [0.0, 4.0, 1.0, 0.0, 0.5]
    history, _ = play(Config(), cluster, lambda now: loads[int(now // HOUR)], len(loads) * HOUR)
    at_the_end = [history.numbers[CYCLES_AN_HOUR * hour - 1] for hour in range(1, len(loads) + 1)]
    assert at_the_end == [{"a": 0, "b": 0}, {"a": 7, "b": 0}, {"a": 2, "b": 0}, {"a": 0, "b": 0}, {"a": 1, "b": 0}]
    reasons = {one.reason for decision in history.decisions for one in decision.variants.values()}
    assert reasons >= {Reason.FROM_ZERO, Reason.SATURATED, Reason.SPARE, Reason.IDLE, Reason.STEADY, Reason.TRANSITION}


def test_while_a_tenth_of_the_figures_is_missing_nothing_flaps_and_nobody_waits() -> None:
    for seed in range(5):
        trace = Trace(seed, noise=0.05, lost=0.1)
        history = trace.play(Config(), 1.5)
        assert turned(trace, history.numbers[CYCLES_AN_HOUR:]) == 0
        assert trace.cluster.waiting < 1


def test_while_nothing_is_known_nothing_changes() -> None:
    cluster = Cluster(Random(1), [Variant("a", replicas=4)], lost=1.0, zero=Zero(enabled=True, retention_seconds=60.0))
    history, _ = play(Config(), cluster, lambda _: 0.0, HOUR)
    assert set(history.totals) == {4}


def test_llm_ds_own_way_goes_up_and_down_where_ours_rests() -> None:
    """Which is what the band between growing and shrinking, and the time that capacity must be spare, are for."""

    def played(config: Config) -> int:
        cluster = Cluster(Random(3), [Variant("a", replicas=4)], noise=0.05)
        return turns(play(config, cluster, lambda _: 2.1, 2 * HOUR)[0].totals)

    assert played(Config(upstream=True)) > 10
    assert played(Config()) <= 1
