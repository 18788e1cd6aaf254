from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.scaling.readings import GPU, HELD, QUEUE, policy, rule
from vllm_chill.core.scaling.demand import demand
from vllm_chill.core.scaling.policy import Policy

BY_QUEUE = policy(rule(QUEUE, 10), least=0, most=8)


@pytest.mark.parametrize(
    ("of", "held", "wall_min", "replicas"),
    [
        pytest.param(BY_QUEUE, 1, 0, 1, id="one caller wants one replica"),
        pytest.param(BY_QUEUE, 10, 0, 1, id="as many as the threshold want one"),
        pytest.param(BY_QUEUE, 42, 0, 5, id="a burst goes straight to as many as it needs"),
        pytest.param(BY_QUEUE, 500, 0, 8, id="but not beyond the maximum"),
        pytest.param(BY_QUEUE, 0, 0, 1, id="a wake that nobody is held for wants one"),
        pytest.param(replace(BY_QUEUE, min_replicas=2), 1, 0, 2, id="never fewer than the minimum"),
        pytest.param(BY_QUEUE, 1, 4, 4, id="never fewer than a schedule asks for"),
        pytest.param(BY_QUEUE, 1, 40, 8, id="the maximum wins over a schedule"),
        pytest.param(policy(rule(QUEUE, 5, threshold=20)), 20, 0, 1, id="up to the threshold one is enough"),
        pytest.param(policy(rule(QUEUE, 5, threshold=20)), 21, 0, 5, id="above it they come to the target"),
        pytest.param(policy(rule(HELD, 2), rule(QUEUE, 10)), 9, 0, 5, id="the rule that asks for most wins"),
        pytest.param(policy(rule(GPU, 80)), 90, 0, 1, id="rules of other metrics say nothing of those who are held"),
        pytest.param(replace(BY_QUEUE, rules=()), 90, 0, 1, id="without rules it is one"),
        pytest.param(replace(BY_QUEUE, paused=True), 90, 0, 1, id="a paused policy wants no more than it must"),
        pytest.param(replace(BY_QUEUE, paused=True, min_replicas=2), 9, 0, 2, id="a paused policy has its minimum"),
    ],
)
def test_what_those_who_are_held_want(of: Policy, held: int, wall_min: int, replicas: int) -> None:
    assert demand(of, held, wall_min) == replicas
