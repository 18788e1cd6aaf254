"""What a policy does with engines in the loop: it comes to rest, and has enough of them."""

from __future__ import annotations

from random import Random

import pytest

from tests.core.scaling.cluster_of_engines import Engines, play, turns
from tests.core.scaling.readings import QUEUE, RUNNING, policy, rule
from vllm_chill.core.scaling.policy import Rule


def by_use(seats: int) -> tuple[Rule, ...]:
    """What the engines have to do, with a band between the target and the threshold, and what waits for them."""
    return rule(RUNNING, 0.6 * seats, threshold=0.8 * seats), rule(QUEUE, 5)


def by_queue(seats: int) -> tuple[Rule, ...]:
    return (rule(QUEUE, 5),)


class Trace:
    """A load at random that needs some replicas, on engines at random, measured with an error of ten percent."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self.seats = random.choice([8, 16, 64])
        self.service_seconds = random.uniform(2, 30)
        self.start_seconds = random.uniform(15, 240)
        self.needs = [random.uniform(0.3, 4), random.uniform(0.3, 4)]
        self._random = random

    def play(self, rules: tuple[Rule, ...], needs: list[float]) -> tuple[list[int], Engines]:
        """Forty minutes of each need."""
        engines = Engines(self._random, self.seats, self.service_seconds, self.start_seconds, noise=0.1)

        def arrivals(now: float) -> float:
            return needs[min(int(now // 2400), len(needs) - 1)] * self.seats / self.service_seconds

        return play(policy(*rules, most=40), engines, arrivals, 2400 * len(needs)), engines


TRACES = [pytest.param(20, id="20"), pytest.param(1000, id="1000", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", TRACES)
def test_under_a_noisy_steady_load_it_does_not_go_up_and_down(count: int) -> None:
    """It grows, and once it has caught up with what waited meanwhile it shrinks: one turn."""
    counted = []
    for trace in map(Trace, range(count)):
        replicas, engines = trace.play(by_use(trace.seats), trace.needs[:1])
        counted.append(turns(replicas))
        assert len(engines.began) >= trace.needs[0], "it has as many as it needs"
        assert engines.waiting <= trace.seats * len(engines.began), "nothing has piled up"
    assert max(counted) <= 4
    assert sum(turned > 1 for turned in counted) <= 0.05 * count


@pytest.mark.parametrize("count", TRACES)
def test_a_load_that_changes_once_is_followed(count: int) -> None:
    for trace in map(Trace, range(count)):
        replicas, engines = trace.play(by_use(trace.seats), trace.needs)
        assert turns(replicas) <= 6
        assert trace.needs[1] <= len(engines.began) <= 2.2 * trace.needs[1] + 2


def test_by_the_queue_alone_it_does_go_up_and_down() -> None:
    """Which is why the docs tell to add a rule for what the engines have to do: a queue that is empty says nothing of
    how few would do.
    """
    trace = Trace(1)
    assert turns(trace.play(by_queue(trace.seats), [3.0])[0]) > 3
    assert turns(trace.play(by_use(trace.seats), [3.0])[0]) <= 1
