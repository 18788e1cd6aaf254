"""Facts of llm-d's autoscaler, row by row: its step of targets."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.fleet import ReplicaLoad, Variant
from vllm_chill.core.saturation.one_step import targets

UP, DOWN, STAY = Analysis(1.0, 0.0, ""), Analysis(0.0, 1.0, ""), Analysis(0.0, 0.0, "")
BLIND = Analysis(0.0, 0.0, "", measured=False)


def variant(key: str, replicas: int, cost: float = 10.0, ready: int | None = None, told: int | None = None) -> Variant:
    there = replicas if ready is None else ready
    loads = tuple(ReplicaLoad(f"{key}-{index}", 0.1, 0.0) for index in range(there if told is None else told))
    return Variant(key, cost, replicas=replicas, ready=there, loads=loads)


@pytest.mark.parametrize(
    ("variants", "decided", "analysis", "numbers"),
    [
        pytest.param([variant("a", 2, 40), variant("b", 2, 80)], {}, UP, (3, 2), id="the cheapest gets one more"),
        pytest.param([variant("a", 2), variant("b", 2)], {}, UP, (3, 2), id="of two as cheap the first by name"),
        pytest.param([variant("a", 2, 40), variant("b", 2, 80)], {}, DOWN, (2, 1), id="the dearest gives one"),
        pytest.param([variant("a", 2), variant("b", 2)], {}, DOWN, (2, 1), id="of two as dear the last by name"),
        pytest.param([variant("a", 3, 40), variant("b", 1, 80)], {}, DOWN, (2, 1), id="one that has more than one"),
        pytest.param([variant("a", 1, 40), variant("b", 1, 80)], {}, DOWN, (1, 1), id="none has more than one"),
        pytest.param([variant("a", 2), variant("b", 2)], {}, STAY, (2, 2), id="nothing is to change"),
        pytest.param([variant("a", 2), variant("b", 2)], {}, BLIND, (2, 2), id="no analysis"),
        pytest.param([variant("a", 0, 1), variant("b", 2)], {}, UP, (0, 3), id="a variant at zero is never chosen"),
        pytest.param([variant("a", 0, 1), variant("b", 0)], {}, UP, (0, 0), id="all at zero"),
        pytest.param([variant("a", 2), variant("b", 2)], {"a": 3}, UP, (3, 2), id="frozen while one has not followed"),
        pytest.param([variant("a", 2), variant("b", 9)], {"a": 3}, DOWN, (3, 9), id="and its sibling with it"),
        pytest.param([variant("a", 5)], {"a": 10}, DOWN, (10,), id="beyond a maximum of its HPA, for good"),
        pytest.param([variant("a", 2)], {"a": 0}, UP, (3,), id="zero decided is no decision"),
        pytest.param([variant("a", 3, ready=2), variant("b", 2)], {}, UP, (3, 2), id="frozen while a pod is pending"),
        pytest.param([variant("a", 3, told=2), variant("b", 2)], {}, DOWN, (3, 2), id="frozen while one is not told"),
        pytest.param([variant("a", 2, ready=3), variant("b", 2)], {}, DOWN, (2, 2), id="frozen while one more is told"),
    ],
)
def test_targets(
    variants: list[Variant], decided: Mapping[str, int], analysis: Analysis, numbers: tuple[int, ...]
) -> None:
    last = {**{one.key: one.replicas for one in variants}, **decided}
    found = targets(variants, last, analysis)
    assert tuple(found.numbers[one.key] for one in variants) == numbers


def test_a_replica_that_is_told_before_it_is_ready_does_not_let_its_variant_grow() -> None:
    """Every replica is measured, so nothing is frozen, and one of them is pending: the next cheapest gets it."""
    pending = variant("a", 2, 10, ready=1, told=2)
    assert targets([pending, variant("b", 2, 20)], {"a": 2, "b": 2}, UP).changed == "b"


def test_it_says_why() -> None:
    grown = targets([variant("a", 2, 40)], {"a": 2}, UP)
    assert (grown.changed, grown.why) == ("a", "1 more, for a is the cheapest at a cost of 40")
    frozen = targets([variant("a", 2, 40)], {"a": 3}, UP)
    assert frozen.changed is None
    assert frozen.why == "the whole model is frozen: a was to have 3, and is asked to have 2"
