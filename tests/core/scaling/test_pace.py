from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.scaling.readings import policy
from vllm_chill.core.scaling.pace import Change, after_change, down_limit, pace, up_limit
from vllm_chill.core.scaling.policy import DOWN, UP, Pace, Policy, Select, Step, Unit

NOW = 1000.0


def pods(value: int, period: float = 60) -> Step:
    return Step(Unit.PODS, value, period)


def percent(value: int, period: float = 60) -> Step:
    return Step(Unit.PERCENT, value, period)


def paced(*steps: Step, select: Select = Select.MAX) -> Pace:
    return Pace(0, steps, select)


def changes(*changed: tuple[float, int]) -> tuple[Change, ...]:
    """Changes, each so many seconds ago."""
    return tuple(Change(NOW - ago, by) for ago, by in changed)


# The examples are those of "Configurable scaling behavior" in Kubernetes' page on horizontal pod autoscaling.
FOUR_OR_A_TENTH = paced(pods(4), percent(10))
A_TENTH = paced(percent(10))
A_TENTH_AND_FIVE_AT_MOST = paced(percent(10), pods(5), select=Select.MIN)
BY_DEFAULT = UP


@pytest.mark.parametrize(
    ("rules", "current", "changed", "limit"),
    [
        pytest.param(FOUR_OR_A_TENTH, 80, [], 72, id="ten percent of 80 are 8"),
        pytest.param(FOUR_OR_A_TENTH, 72, [], 64, id="ten percent of 72 are rounded up to 8"),
        pytest.param(FOUR_OR_A_TENTH, 40, [], 36, id="at 40 both are 4"),
        pytest.param(FOUR_OR_A_TENTH, 36, [], 32, id="below 40 it is 4 pods"),
        pytest.param(FOUR_OR_A_TENTH, 72, [(59, -8)], 72, id="what went within the period is over"),
        pytest.param(FOUR_OR_A_TENTH, 77, [(59, -3)], 72, id="a part of a step leaves the rest of it"),
        pytest.param(FOUR_OR_A_TENTH, 72, [(60, -8)], 64, id="a period later there is another step"),
        pytest.param(FOUR_OR_A_TENTH, 90, [(30, 10)], 72, id="what came within the period does not widen the step"),
        pytest.param(A_TENTH, 80, [], 72, id="limited to a tenth a minute"),
        pytest.param(A_TENTH, 5, [], 4, id="a tenth of few is one"),
        pytest.param(A_TENTH_AND_FIVE_AT_MOST, 80, [], 75, id="Min: no more than five"),
        pytest.param(A_TENTH_AND_FIVE_AT_MOST, 30, [], 27, id="Min: no more than a tenth"),
        pytest.param(paced(select=Select.DISABLED), 30, [], 30, id="Disabled: none"),
        pytest.param(paced(pods(9), select=Select.DISABLED), 30, [], 30, id="Disabled: none, whatever the steps"),
        pytest.param(DOWN, 30, [], 0, id="by default all"),
        pytest.param(paced(percent(7)), 100, [], 93, id="seven percent of a hundred are seven"),
        pytest.param(paced(pods(2, 15), pods(5, 60)), 20, [(20, -4)], 18, id="each step has a period of its own"),
        pytest.param(
            paced(pods(2, 15), pods(5, 60), select=Select.MIN), 20, [(20, -4)], 19, id="and Min takes the strictest"
        ),
        pytest.param(FOUR_OR_A_TENTH, 20, [(30, -30)], 45, id="more went than may go"),
    ],
)
def test_the_fewest_are_hpas(rules: Pace, current: int, changed: list[tuple[float, int]], limit: int) -> None:
    assert down_limit(rules, changes(*changed), current, NOW) == limit


@pytest.mark.parametrize(
    ("rules", "current", "changed", "limit"),
    [
        pytest.param(BY_DEFAULT, 1, [], 5, id="by default four more"),
        pytest.param(BY_DEFAULT, 4, [], 8, id="by default four more, or twice as many"),
        pytest.param(BY_DEFAULT, 10, [], 20, id="by default twice as many"),
        pytest.param(BY_DEFAULT, 20, [(14, 10)], 20, id="what came within the period is over"),
        pytest.param(BY_DEFAULT, 20, [(15, 10)], 40, id="a period later there is another step"),
        pytest.param(BY_DEFAULT, 5, [(10, -5)], 20, id="what went within the period was there when it began"),
        pytest.param(paced(percent(10)), 1, [], 2, id="ten percent of one are one"),
        pytest.param(paced(percent(10)), 100, [], 110, id="ten percent of a hundred are ten"),
        pytest.param(paced(percent(50), pods(2), select=Select.MIN), 10, [], 12, id="Min: two pods"),
        pytest.param(paced(percent(50), pods(2), select=Select.MIN), 2, [], 3, id="Min: half"),
        pytest.param(paced(select=Select.DISABLED), 3, [], 3, id="Disabled: none"),
        pytest.param(paced(pods(4)), 20, [(30, 12)], 12, id="more came than may come"),
    ],
)
def test_the_most_are_hpas(rules: Pace, current: int, changed: list[tuple[float, int]], limit: int) -> None:
    assert up_limit(rules, changes(*changed), current, NOW) == limit


def with_pace(up: Pace = UP, down: Pace = DOWN) -> Policy:
    return replace(policy(), up=up, down=down)


def test_eighty_replicas_go_to_ten_in_the_steps_that_kubernetes_page_tells() -> None:
    rules, current, changed, steps = with_pace(down=FOUR_OR_A_TENTH), 80, tuple[Change, ...](), []
    for minute in range(20):
        after, _ = pace(rules, changed, current, 10, minute * 60)
        if after != current:
            changed = after_change(changed, current, after, minute * 60)
        steps.append(current - after)
        current = after
    assert steps[:14] == [8, 8, 7, 6, 6, 5, 4, 4, 4, 4, 4, 4, 4, 2]
    assert current == 10


@pytest.mark.parametrize(
    ("rules", "current", "wanted", "changed", "replicas", "words"),
    [
        pytest.param(with_pace(), 3, 3, [], 3, None, id="nothing is wanted"),
        pytest.param(with_pace(), 3, 5, [], 5, None, id="it is fast enough"),
        pytest.param(
            with_pace(),
            3,
            20,
            [],
            7,
            "it may grow by 100% in 15s or 4 in 15s, so 7 for now",
            id="it grows step by step",
        ),
        pytest.param(
            with_pace(down=A_TENTH_AND_FIVE_AT_MOST),
            *(80, 9, [], 75),
            "it may shrink by 10% in 1m and 5 in 1m, so 75 for now",
            id="it shrinks step by step",
        ),
        pytest.param(
            with_pace(down=paced(select=Select.DISABLED)),
            *(80, 9, [], 80),
            "shrinking is disabled, so it stays at 80",
            id="it may not shrink",
        ),
        pytest.param(
            with_pace(up=paced(pods(4), select=Select.DISABLED)),
            *(8, 9, [], 8),
            "growing is disabled, so it stays at 8",
            id="it may not grow",
        ),
        pytest.param(with_pace(up=paced(), down=paced()), 3, 90, [], 90, None, id="without steps it grows at once"),
        pytest.param(with_pace(up=paced(), down=paced()), 90, 3, [], 3, None, id="without steps it shrinks at once"),
        pytest.param(
            with_pace(up=paced(pods(4))),
            *(20, 30, [(30, 12)], 20),
            "it may grow by 4 in 1m, so 20 for now",
            id="where too many came it stays, and does not shrink",
        ),
        pytest.param(
            with_pace(down=paced(pods(4))),
            *(20, 10, [(30, -12)], 20),
            "it may shrink by 4 in 1m, so 20 for now",
            id="where too many went it stays, and does not grow",
        ),
    ],
)
def test_it_goes_as_far_as_it_may(
    rules: Policy, current: int, wanted: int, changed: list[tuple[float, int]], replicas: int, words: str | None
) -> None:
    after, said = pace(rules, changes(*changed), current, wanted, NOW)
    assert after == replicas
    assert (said and said.reason) == words


def test_changes_that_no_period_reaches_back_to_are_forgotten() -> None:
    assert after_change(changes((1800, 1), (1799, 2)), 3, 5, NOW) == changes((1799, 2), (0, 2))
