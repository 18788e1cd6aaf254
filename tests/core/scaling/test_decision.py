"""What a decision says of itself in one line."""

from __future__ import annotations

import pytest

from vllm_chill.core.scaling.decision import Decision, Said


@pytest.mark.parametrize(
    ("trail", "reason"),
    [
        pytest.param([], "", id="no trail"),
        pytest.param([("recommend", 3, "the queue")], "the queue", id="one rule"),
        pytest.param(
            [("recommend", 2, "latency"), ("recommend", 5, "the queue"), ("recommend", 5, "the most is 5")],
            "the queue",
            id="the rule that asks for the most",
        ),
        pytest.param(
            [("recommend", 5, "the queue"), ("hold", 3, "not yet"), ("bound", 3, "within bounds")],
            "not yet",
            id="what held it back",
        ),
        pytest.param(
            [("recommend", 9, "the queue"), ("pace", 6, "so fast"), ("bound", 4, "max is 4")],
            "max is 4",
            id="what held it back last",
        ),
        pytest.param([("recommend", 3, "two\n lines")], "two lines", id="in one line"),
    ],
)
def test_its_reason_is_what_held_it_back_last_or_the_rule_that_it_follows(
    trail: list[tuple[str, int, str]], reason: str
) -> None:
    said = tuple(Said(*step) for step in trail)
    replicas = said[-1].replicas if said else 1
    assert Decision(0, replicas, replicas, said, ()).reason == reason
