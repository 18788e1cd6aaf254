from __future__ import annotations

import math

import pytest

from tests.core.saturation.told import UNTOLD, Load, coming, variant
from vllm_chill.core.saturation.config import DEFAULT
from vllm_chill.core.saturation.fleet import ReplicaLoad, Variant
from vllm_chill.core.saturation.survey import above_zero, apart, capacity_for, number, survey


@pytest.mark.parametrize(
    ("load", "kv", "queue"),
    [
        pytest.param((0.4, 2), 0.4, 2, id="as it is told"),
        pytest.param((-0.1, -1), 0, 0, id="nothing is below zero"),
        pytest.param((1.2, 1e30), 1, 1e9, id="a cache is no more than full, and a queue not endless"),
        pytest.param((math.nan, 2), None, 2, id="no number is not known"),
        pytest.param((0.4, math.inf), 0.4, None, id="an infinite one is not known"),
    ],
)
def test_what_is_told_is_a_number_that_can_be(load: Load, kv: float | None, queue: float | None) -> None:
    [one] = survey(DEFAULT, [variant(load)], {}).told
    assert (one.kv, one.queue) == (kv, queue)


def test_one_who_told_no_number_has_told_nothing() -> None:
    found = survey(DEFAULT, [variant((math.nan, None), (None, None))], {})
    assert (found.told, found.untold, found.ready) == ((), 2, 2)


@pytest.mark.parametrize(
    ("kv", "queue", "saturated", "left"),
    [
        pytest.param(0.8, 0, True, 0, id="the KV cache is at its threshold"),
        pytest.param(0.79, 0, False, 0.0125, id="just below it"),
        pytest.param(0.7 + 0.1, 0, True, 0, id="at it but for how floats add up"),
        pytest.param(0.4, 5, True, 0, id="the queue is at its threshold"),
        pytest.param(0.4, 4, False, 0.2, id="the queue is nearer to its threshold"),
        pytest.param(0.4, None, False, 0.5, id="the KV cache is all that is known"),
        pytest.param(None, 4, False, 0.2, id="the queue is all that is known"),
        pytest.param(None, 90, True, 0, id="the queue alone is beyond"),
    ],
)
def test_a_replica_is_saturated_from_its_thresholds_on(
    kv: float | None, queue: float | None, saturated: bool, left: float
) -> None:
    [one] = survey(DEFAULT, [variant((kv, queue))], {}).told
    assert one.saturated is saturated
    assert one.left == pytest.approx(left)


def test_capacity_is_counted_in_replicas_of_each_kind() -> None:
    big, small = (
        variant((0.5, 0), UNTOLD, key="h100", capacity=2.5),
        variant((0.5, 0), (0.5, 0), key="t4", capacity=0.5),
    )
    found = survey(DEFAULT, [big, small], coming([big, small], {"h100": 2, "t4": -1}))
    assert (found.replicas, found.ready, found.capacity_told) == (4, 6, 3.5)
    assert found.anticipated == 10.5
    assert found.staying == 5.5


def test_more_who_tell_than_are_ready_are_all_there() -> None:
    assert survey(
        DEFAULT, [Variant("a100", ready=1, loads=(ReplicaLoad("a", 0.1, 0), ReplicaLoad("b", 0.1, 0)))], {}
    ) == (survey(DEFAULT, [Variant("a100", ready=2, loads=(ReplicaLoad("a", 0.1, 0), ReplicaLoad("b", 0.1, 0)))], {}))


@pytest.mark.parametrize(
    ("loads", "most", "words"),
    [
        pytest.param([(0.1, 0)], 0, "over 1 replica", id="one"),
        pytest.param([(0.9, 0)], 1, "over 1 replica, which is full", id="one that is full"),
        pytest.param([(0.9, 0), (0.1, 0), UNTOLD], 1, "over 3 replicas, 1 of them full", id="one of three"),
        pytest.param([(0.9, 0), (0.9, 0)], 2, "over 2 replicas, all of them full", id="all"),
    ],
)
def test_the_replicas_in_words(loads: list[Load | None], most: int, words: str) -> None:
    assert survey(DEFAULT, [variant(*loads)], {}).over(most, "full") == words


def test_what_is_missing_in_words() -> None:
    found = survey(DEFAULT, [variant((0.1, 0), UNTOLD, UNTOLD, (0.1, None), (0.1, 0, "stale"))], {})
    assert found.gaps(0) == "; 2 told nothing, 1 told only a part, 1 told nothing lately, so none may go"
    assert found.gaps(1.5) == "; 2 told nothing, 1 told only a part, 1 told nothing lately"
    assert not survey(DEFAULT, [variant((0.1, 0))], {}).gaps(0)


def test_a_capacity_has_no_noise_of_floats() -> None:
    assert above_zero(capacity_for(0.7 + 0.7 + 0.7, 0.8 - 0.1) - 3) == 0
    assert above_zero(0.1 * 3 / 0.1) == 3
    assert above_zero(-0.5) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (3, "3"),
        (1.2857, "1.29"),
        (1.5, "1.5"),
        (100, "100"),
        (0.004, "0.004"),
        (1e-9, "0.000000001"),
    ],
)
def test_a_number_is_short_and_not_zero_unless_it_is(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "limit", "texts"),
    [
        pytest.param(0.04, 0.1, ("0.04", "0.10"), id="two decimals"),
        pytest.param(0.0996, 0.1, ("0.0996", "0.1000"), id="as many as it takes"),
        pytest.param(0.1, 0.1, ("0.10", "0.10"), id="equal"),
    ],
)
def test_two_numbers_that_differ_look_different(value: float, limit: float, texts: tuple[str, str]) -> None:
    assert apart(value, limit) == texts
