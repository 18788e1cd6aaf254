"""What a decision says of itself in one line."""

from __future__ import annotations

import pytest

from vllm_chill.core.scaling.decision import Decision, Limited, Said

FULL = [("recommend", 2, "latency"), ("recommend", 9, "the queue"), ("recommend", 9, "the most is 9")]


@pytest.mark.parametrize(
    ("trail", "limited", "reason"),
    [
        pytest.param([], Limited.NOT, "", id="no trail"),
        pytest.param([("recommend", 3, "the queue")], Limited.NOT, "the queue", id="one rule"),
        pytest.param(FULL, Limited.NOT, "the queue", id="the rule that asks for the most"),
        pytest.param(
            [*FULL, ("pace", 6, "so fast"), ("bound", 4, "the maximum is 4")],
            Limited.MAX,
            "the queue; the maximum is 4",
            id="and what held it back last",
        ),
        pytest.param([*FULL, ("hold", 3, "not yet")], Limited.STABILIZED, "the queue; not yet", id="held back once"),
        pytest.param(
            [*FULL, ("bound", 9, "it was set to 9 by ada")],
            Limited.NOT,
            "it was set to 9 by ada",
            id="what was set by hand, alone",
        ),
        pytest.param([("recommend", 3, "two\n lines")], Limited.NOT, "two lines", id="on one line"),
    ],
)
def test_its_reason_is_the_rule_that_it_follows_and_what_was_made_of_that_last(
    trail: list[tuple[str, int, str]], limited: Limited, reason: str
) -> None:
    said = tuple(Said(*step) for step in trail)
    recommended = max((step.replicas for step in said if step.stage == "recommend"), default=1)
    replicas = said[-1].replicas if said else 1
    assert Decision(0, replicas, recommended, said, (), limited).reason == reason
