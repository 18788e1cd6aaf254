from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.core.saturation.told import UNTOLD, coming, variant
from vllm_chill.core.saturation.analysis import Analysis, VariantAnalysis
from vllm_chill.core.saturation.config import Analyzer, Config
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.saturation import analyze

CONFIG = Config(analyzer=Analyzer.SATURATION)  # above 0.85 it is too much, until 0.70 some may go; a queue of 5 is full


def judged(*variants: Variant, more: int | Mapping[str, int] = 0, config: Config = CONFIG) -> Analysis:
    return analyze(config, variants, coming(variants, more))


@pytest.mark.parametrize(
    ("kv", "queue", "saturation"),
    [
        pytest.param(0.3, 0, 0.3, id="no queue: the KV cache"),
        pytest.param(0.3, 1, 0.3, id="the KV cache is fuller than the queue"),
        pytest.param(0.3, 1.5, 0.3, id="both are as full"),
        pytest.param(0.3, 2, 0.4, id="the queue is fuller than the KV cache"),
        pytest.param(0.3, 5, 1, id="the queue is at its greatest length"),
        pytest.param(0.3, 213, 1, id="the queue is beyond it"),
        pytest.param(1, 0, 1, id="the KV cache is full"),
        pytest.param(0, 0, 0, id="it is idle"),
        pytest.param(0.3, None, 0.3, id="only the KV cache is known"),
        pytest.param(None, 2, 0.4, id="only the queue is known"),
    ],
)
def test_saturation_is_the_greater_of_kv_cache_and_queue(
    kv: float | None, queue: float | None, saturation: float
) -> None:
    analysis = judged(variant((kv, queue)))
    assert analysis.saturation == pytest.approx(saturation)
    assert analysis.slack == pytest.approx(1 - saturation)
    assert analysis.complete is (kv is not None and queue is not None)


@pytest.mark.parametrize(
    ("kvs", "more", "required", "spare"),
    [
        pytest.param([0.85, 0.85], 0, 0, 0, id="at the threshold nothing is lacking"),
        pytest.param([0.8 + 0.05, 0.9 - 0.05], 0, 0, 0, id="at the threshold but for how floats add up"),
        pytest.param([0.85, 0.86], 0, 1.71 / 0.85 - 2, 0, id="just above the threshold a little is"),
        pytest.param([0.70, 0.70], 0, 0, 0, id="at the boundary nothing could go"),
        pytest.param([0.70, 0.69], 0, 0, 2 - 1.39 / 0.7, id="just below the boundary a little could"),
        pytest.param([0.35, 0.35], 0, 0, 1, id="one could go when the rest is at the boundary then"),
        pytest.param([0.6, 0.6], 0, 0, 2 - 1.2 / 0.7, id="a mean below the boundary is not one that could go"),
        pytest.param([0.78, 0.78, 0.78], 0, 0, 0, id="in between nothing changes"),
        pytest.param([1.0] * 10, 0, 10 / 0.85 - 10, 0, id="all are full"),
        pytest.param([1.0] * 10, 1, 10 / 0.85 - 11, 0, id="what is on its way counts"),
        pytest.param([1.0] * 10, 2, 0, 0, id="what is on its way is enough"),
        pytest.param([0.3] * 3, 4, 0, 3 - 0.9 / 0.7, id="what is on its way does not make more of what could go"),
        pytest.param([0.6] * 3, -1, 1.8 / 0.85 - 2, 0, id="what is on its way out is lacking"),
        pytest.param([0.3] * 3, -1, 0, 2 - 0.9 / 0.7, id="what is on its way out has gone already"),
        pytest.param([0.2] * 3, -3, 0.6 / 0.85, 0, id="all are on their way out"),
        pytest.param([0.0] * 3, 0, 0, 3, id="without any load all could go"),
    ],
)
def test_between_threshold_and_boundary_nothing_changes(
    kvs: list[float], more: int, required: float, spare: float
) -> None:
    analysis = judged(variant(*((kv, 0) for kv in kvs)), more=more)
    assert analysis.required == pytest.approx(required)
    assert analysis.spare == pytest.approx(spare)


def test_exactly_one_is_one_whatever_floats_make_of_it() -> None:
    assert judged(variant(*[(0.1, 0)] * 7, (0, 0))).spare == 7  # 8 - 0.7 / 0.7, whose sum is 0.7 only nearly
    assert judged(variant((0.85, 0), (0.85, 0)), more=-1).required == 1


def test_a_boundary_above_the_threshold_makes_nothing_come_and_go_at_once() -> None:
    turned = replace(CONFIG, scale_up_threshold=0.5, scale_down_boundary=0.9)
    analysis = judged(variant((0.6, 0), (0.6, 0)), config=turned)
    assert analysis.required == pytest.approx(0.4)
    assert analysis.spare == 0


def test_capacity_weighs() -> None:
    big, small = variant((0.9, 0), key="h100", capacity=4.0), variant((0.1, 0), key="t4", capacity=1.0)
    analysis = judged(big, small)
    assert analysis.saturation == pytest.approx(3.7 / 5)
    assert analysis.required == 0
    turned = judged(replace(big, capacity=1.0), replace(small, capacity=4.0))
    assert turned.saturation == pytest.approx(1.3 / 5)
    assert turned.spare == pytest.approx(5 - 1.3 / 0.7)
    assert judged(big, small, more={"t4": 1}).slack == pytest.approx(4 * 0.1 + 1 * 0.9)


def test_a_sibling_of_more_capacity_that_is_on_its_way_is_enough_for_more() -> None:
    full, big = variant(*[(1.0, 0)] * 6), replace(variant(key="h100"), capacity=1.1)
    assert judged(full, big).required == pytest.approx(6 / 0.85 - 6)
    assert judged(full, big, more={"h100": 1}).required == 0


@pytest.mark.parametrize(
    ("loads", "required"),
    [
        pytest.param([(1, 0), (1, 0), UNTOLD], 0, id="who told nothing is capacity that is there"),
        pytest.param([(1, 0)] * 6 + [UNTOLD], 6 / 0.85 - 7, id="and takes its share of the load that is known"),
        pytest.param([(1, 0, "stale"), (1, 0)], 2 / 0.85 - 2, id="what is stale makes it grow"),
        pytest.param([(1, None), (1, None)], 2 / 0.85 - 2, id="a part makes it grow"),
        pytest.param([(0.1, 0), (0.1, 0), UNTOLD], 0, id="nothing goes while one told nothing"),
        pytest.param([(0.1, 0), (0.1, 0, "stale")], 0, id="nothing goes while one is stale"),
        pytest.param([(0.1, 0), (0.1, None)], 0, id="nothing goes while one told only a part"),
        pytest.param([(0.1, 0), (None, 0)], 0, id="nothing goes while one told only its queue"),
    ],
)
def test_what_is_missing_is_not_zero(loads: list[tuple[float | None, float | None] | None], required: float) -> None:
    analysis = judged(variant(*loads))
    assert analysis.required == pytest.approx(max(0.0, required))
    assert analysis.spare == 0
    assert analysis.measured
    assert not analysis.complete


@pytest.mark.parametrize(
    ("seen", "complete", "reason"),
    [
        pytest.param(variant(), True, "no replica is ready", id="at zero"),
        pytest.param(Variant("a100", replicas=3), True, "no replica is ready", id="starting"),
        pytest.param(variant(UNTOLD), False, "the one replica that is ready has told nothing", id="one"),
        pytest.param(
            variant(UNTOLD, (None, None)),
            False,
            "none of the 2 replicas that are ready has told anything",
            id="two",
        ),
    ],
)
def test_nothing_known_is_nothing_said(seen: Variant, complete: bool, reason: str) -> None:
    analysis = judged(seen, more=2)
    assert analysis == Analysis(0, 0, reason, variants={"a100": VariantAnalysis()}, measured=False, complete=complete)


def test_each_variant_has_its_own() -> None:
    hot = variant((0.9, 0), (0.85, 0), (0.2, 5))
    cold = variant((0.7, 0), (0.69, 3.49), (0.1, 0), key="t4")
    asleep = variant(key="l4")
    analysis = judged(hot, cold, asleep)
    assert analysis.variants == {
        "a100": VariantAnalysis(round(2.75 / 3, 9), ("a100-0", "a100-2"), ()),
        "t4": VariantAnalysis(round(1.498 / 3, 9), (), ("t4-1", "t4-2")),
        "l4": VariantAnalysis(),
    }


@pytest.mark.parametrize(
    ("loads", "more", "reason"),
    [
        pytest.param(
            [(1, 0), (0.9, 0), (0.89, 0)],
            0,
            "saturation 0.93 is above 0.85 over 3 replicas, all of them overloaded, so a capacity of 0.28 is lacking",
            id="lacking",
        ),
        pytest.param(
            [(1, 0)] * 12,
            1,
            "saturation 1.00 is above 0.85 over 12 replicas, all of them overloaded,"
            " so a capacity of 1.12 is lacking besides the 1 that is on its way",
            id="lacking besides what is on its way",
        ),
        pytest.param(
            [(0.9, 0), (0.8, 0.5), (0.86, 0)],
            1,
            "saturation 0.853 is above 0.850 over 3 replicas, 2 of them overloaded;"
            " a capacity of 1 is on its way, which is enough",
            id="on its way",
        ),
        pytest.param(
            [(0.6, 0)] * 3,
            -1,
            "saturation 0.60 over 3 replicas will be above 0.85 once those on their way out are gone,"
            " so a capacity of 0.12 is lacking",
            id="on its way out",
        ),
        pytest.param(
            [(0.3, 0)] * 3,
            0,
            "saturation 0.30 is below 0.70 over 3 replicas, so a capacity of 1.71 could go",
            id="spare",
        ),
        pytest.param(
            [(0.3, 0), (0.3, 0), UNTOLD],
            0,
            "saturation 0.20 is below 0.70 over 3 replicas; 1 told nothing, so none may go",
            id="not all is known",
        ),
        pytest.param(
            [(0.95, 0), (0.61, 0)],
            0,
            "saturation 0.78 is between 0.70 and 0.85 over 2 replicas, 1 of them overloaded",
            id="in between",
        ),
    ],
)
def test_the_words(loads: list[tuple[float | None, float | None] | None], more: int, reason: str) -> None:
    assert judged(variant(*loads), more=more).reason == reason
