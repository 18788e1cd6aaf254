from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.core.saturation.told import UNTOLD, Load, coming, variant
from vllm_chill.core.saturation.analysis import Analysis, VariantAnalysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.spare import analyze

CONFIG = Config()
"""Of a KV cache 0.7 may be used on average, 0.63 after some have gone; of queues 2 and 1.8."""


def judged(*variants: Variant, more: int | Mapping[str, int] = 0, config: Config = CONFIG) -> Analysis:
    return analyze(config, variants, coming(variants, more))


@pytest.mark.parametrize(
    ("loads", "more", "required", "spare"),
    [
        pytest.param([(0.7, 0)] * 3, 0, 0, 0, id="KV spare is at its trigger"),
        pytest.param(
            [(0.8 - 0.1, 0), (0.5 + 0.2, 0), (0.7, 0)], 0, 0, 0, id="at its trigger but for how floats add up"
        ),
        pytest.param([(0.7, 0), (0.7, 0), (0.71, 0)], 0, 2.11 / 0.7 - 3, 0, id="KV spare is just below its trigger"),
        pytest.param([(0, 2)] * 3, 0, 0, 0, id="queue spare is at its trigger"),
        pytest.param([(0, 2), (0, 2), (0, 3)], 0, 0.5, 0, id="queue spare is below its trigger"),
        pytest.param([(0.75, 0), (0.75, 6)], 0, 1, 0, id="both are below: what the worse of them needs"),
        pytest.param([(0.77, 2), (0.77, 2)], 0, 1.54 / 0.7 - 2, 0, id="both count, the KV cache more"),
        pytest.param([(0.63, 0)] * 3, 0, 0, 0, id="no more than the hysteresis is left"),
        pytest.param([(0.62, 0)] * 3, 0, 0, 3 - 1.86 / 0.63, id="a little more is left"),
        pytest.param([(0.35, 0)] * 2, 0, 0, 2 - 0.7 / 0.63, id="upstream's edge for two does not do"),
        pytest.param([(0.315, 0)] * 2, 0, 0, 1, id="one of two could go"),
        pytest.param([(0.42, 0)] * 3, 0, 0, 1, id="one of three could go"),
        pytest.param([(0, 0.9)] * 2, 0, 0, 1, id="one of two could go by their queues"),
        pytest.param([(0.1, 0.9)] * 2, 0, 0, 1, id="what the queues need stays"),
        pytest.param([(0.63 / 4, 0)] * 8, 0, 0, 6, id="many could go at once"),
        pytest.param([(0, 0)] * 3, 0, 0, 3, id="without any load all could go"),
        pytest.param([(1, 40)] * 2, 0, 38, 0, id="much is lacking at once"),
        pytest.param([(1, 40)] * 2, 30, 8, 0, id="what is on its way counts"),
        pytest.param([(1, 40)] * 2, 38, 0, 0, id="what is on its way is enough"),
        pytest.param([(0.3, 0)] * 3, 4, 0, 3 - 0.9 / 0.63, id="what is on its way does not make more of what could go"),
        pytest.param([(0.6, 0)] * 3, -1, 1.8 / 0.7 - 2, 0, id="what is on its way out is lacking"),
        pytest.param([(0.2, 0)] * 3, -1, 0, 2 - 0.6 / 0.63, id="what is on its way out has gone already"),
        pytest.param([(0.2, 0)] * 3, -3, 0.6 / 0.7, 0, id="all are on their way out"),
    ],
)
def test_as_much_as_brings_both_back_and_as_much_as_leaves_both(
    loads: list[Load | None], more: int, required: float, spare: float
) -> None:
    analysis = judged(variant(*loads), more=more)
    assert analysis.required == pytest.approx(required)
    assert analysis.spare == pytest.approx(spare)


STUCK = ((0.9, 213), (0.9, 150), (0.8, 90), (0.6, 60), (0.5, 30), (0.5, 10), (0.02, 0))
"""Seven replicas of which one is idle: llm-d's issue 769."""


@pytest.mark.parametrize(
    ("loads", "required", "spare"),
    [
        pytest.param([(0.95, 9), (0.1, 0), (0.1, 0)], 1.5, 0, id="one is full and has a queue: none goes, some come"),
        pytest.param(
            [(0.95, 4), (0.1, 0), (0.1, 0)], 0, 3 - 4 / 1.8, id="one is full without one: what the queue leaves"
        ),
        pytest.param([(0.85, 2), (0.5, 6), (0.6, 2)], 2, 0, id="two of three are saturated: more come"),
        pytest.param(STUCK, 553 / 2 - 7, 0, id="queues that do not end, and one idle: more come"),
        pytest.param([(0.99, 0)] * 3, 2.97 / 0.7 - 3, 0, id="all are saturated: as much as all of them need"),
    ],
)
def test_the_load_of_saturated_replicas_counts(loads: list[Load | None], required: float, spare: float) -> None:
    analysis = judged(variant(*loads))
    assert analysis.required == pytest.approx(required)
    assert analysis.spare == pytest.approx(spare)


@pytest.mark.parametrize("count", range(2, 13))
def test_noise_does_not_bring_back_what_went(count: int) -> None:
    """With as much load as one less can just bear, two percent of noise make upstream shrink and grow by turns."""
    load = 0.7 * (count - 1)
    many, fewer = variant(*[(0.98 * load / count, 0)] * count), variant(*[(1.02 * load / (count - 1), 0)] * (count - 1))
    upstream = replace(CONFIG, upstream=True)
    assert judged(many, config=upstream).spare == 1
    assert judged(fewer, config=upstream).required == 1
    assert judged(many).required == 0
    assert judged(many).spare < 1


@pytest.mark.parametrize(
    ("hysteresis", "kv", "spare"),
    [
        pytest.param(0, 0.35, 1, id="none: up to the trigger itself"),
        pytest.param(0.5, 0.175, 1, id="half the way"),
        pytest.param(1, 0.001, 0, id="all of the way: nothing goes while there is any load"),
        pytest.param(1, 0, 2, id="all of the way, and no load"),
    ],
)
def test_hysteresis_is_part_of_the_way_to_the_trigger(hysteresis: float, kv: float, spare: float) -> None:
    assert judged(variant((kv, 0), (kv, 0)), config=replace(CONFIG, hysteresis=hysteresis)).spare == pytest.approx(
        spare
    )


def test_a_trigger_that_no_replica_can_meet_asks_for_more_while_there_is_load() -> None:
    impossible = replace(CONFIG, queue_spare_trigger=5.0)
    assert judged(variant((0.1, 0), (0.1, 0)), config=impossible).required == 0
    assert judged(variant((0.1, 1), (0.1, 0)), config=impossible).required > 1000


def test_exactly_one_is_one_whatever_floats_make_of_it() -> None:
    assert judged(variant(*[(0.7, 0)] * 3), more=-1).required == 1
    assert judged(variant(*[(0.09, 0)] * 7, (0, 0))).spare == 7


def test_capacity_weighs() -> None:
    big, small = variant((0.75, 0), key="h100", capacity=4.0), variant((0.1, 0), key="t4", capacity=1.0)
    assert judged(big, small).required == 0
    assert judged(replace(big, capacity=9.0), small).required == 0
    assert judged(replace(big, capacity=12.0), small).required == pytest.approx(9.1 / 0.7 - 13)
    assert judged(replace(big, capacity=1.0), replace(small, capacity=4.0)).spare == pytest.approx(5 - 1.15 / 0.63)
    assert judged(big, small).slack == pytest.approx(4 * 0.05 / 0.8 + 1 * 0.7 / 0.8)


@pytest.mark.parametrize(
    ("loads", "required"),
    [
        pytest.param([(0.9, 0), (0.9, 0), UNTOLD], 0, id="who told nothing is capacity that is there"),
        pytest.param([(0.9, 9), (0.9, 9), UNTOLD], 6, id="and takes its share of the load that is known"),
        pytest.param([(0.9, 0, "stale"), (0.9, 0)], 1.8 / 0.7 - 2, id="what is stale makes it grow"),
        pytest.param([(0.9, 0), (None, 0)], 1.8 / 0.7 - 2, id="who told only its queue is as full as the others"),
        pytest.param([(0.1, 4), (0.1, None)], 2, id="who told only its KV use has a queue as the others"),
        pytest.param([(None, 4), (None, 4)], 2, id="none told its KV use"),
        pytest.param([(0.9, None), (0.9, None)], 1.8 / 0.7 - 2, id="none told its queue"),
        pytest.param([(0.1, 0), (0.1, 0), UNTOLD], 0, id="nothing goes while one told nothing"),
        pytest.param([(0.1, 0), (0.1, 0, "stale")], 0, id="nothing goes while one is stale"),
        pytest.param([(0.1, 0), (0.1, None)], 0, id="nothing goes while one told only a part"),
    ],
)
def test_what_is_missing_is_not_zero(loads: list[Load | None], required: float) -> None:
    analysis = judged(variant(*loads))
    assert analysis.required == pytest.approx(required)
    assert analysis.spare == 0
    assert analysis.measured
    assert not analysis.complete


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize(
    ("seen", "complete"),
    [
        pytest.param(variant(), True, id="at zero"),
        pytest.param(Variant("a100", replicas=3), True, id="starting"),
        pytest.param(variant(UNTOLD, (None, None)), False, id="ready, and nothing is told"),
    ],
)
def test_nothing_known_is_nothing_said(seen: Variant, complete: bool, upstream: bool) -> None:
    analysis = judged(seen, more=1, config=replace(CONFIG, upstream=upstream))
    assert (analysis.required, analysis.spare) == (0, 0)
    assert (analysis.measured, analysis.complete) == (False, complete)
    assert (analysis.saturation, analysis.variants) == (None, {"a100": VariantAnalysis()})


def test_each_variant_has_its_own() -> None:
    hot, cold = variant((0.8, 0), (0.79, 5), (0.79, 4)), variant((0.63, 0), (0.62, 1.8), (0.62, 1.7), key="t4")
    analysis = judged(hot, cold, variant(key="l4"))
    assert analysis.variants == {
        "a100": VariantAnalysis(round(2.6 / 3, 9), ("a100-0", "a100-1"), ()),
        "t4": VariantAnalysis(round(1.87 / 3, 9), (), ("t4-2",)),
        "l4": VariantAnalysis(),
    }
    assert analysis.saturation == pytest.approx(4.47 / 6)


@pytest.mark.parametrize(
    ("loads", "more", "reason"),
    [
        pytest.param(
            [(0.76, 0), (0.72, 0), (0.8, 0)],
            0,
            "KV spare 0.04 is below 0.10 over 3 replicas, 1 of them saturated, so a capacity of 0.26 is lacking",
            id="lacking",
        ),
        pytest.param(
            [(0.9, 9), (0.8, 9)],
            1,
            "KV spare -0.05 is below 0.10 and queue spare -4.00 is below 3.00 over 2 replicas, all of them saturated,"
            " so a capacity of 6 is lacking besides the 1 that is on its way",
            id="both are lacking besides what is on its way",
        ),
        pytest.param(
            [(0.7004, 0)],
            1,
            "KV spare 0.0996 is below 0.1000 over 1 replica; a capacity of 1 is on its way, which is enough",
            id="on its way",
        ),
        pytest.param(
            [(0.6, 0)] * 3,
            -1,
            "KV spare 0.20 and queue spare 5.00 over 3 replicas will not stay above 0.10 and 3.00"
            " once those on their way out are gone, so a capacity of 0.57 is lacking",
            id="on its way out",
        ),
        pytest.param(
            [(0.3, 0)] * 3,
            0,
            "KV spare 0.50 and queue spare 5.00 over 3 replicas,"
            " so a capacity of 1.57 could go and leave 0.17 and 3.20",
            id="spare",
        ),
        pytest.param(
            [(0.65, 1)] * 3,
            0,
            "KV spare 0.15 and queue spare 4.00 over 3 replicas, which is enough and leaves none to go",
            id="enough",
        ),
        pytest.param(
            [(0.3, 0), (0.3, 0, "stale"), UNTOLD],
            0,
            "KV spare 0.60 and queue spare 5.00 over 3 replicas; 1 told nothing, 1 told nothing lately, so none may go",
            id="not all is known",
        ),
        pytest.param(
            [(0.9, None)],
            0,
            "KV spare -0.10 is below 0.10 over 1 replica, which is saturated, so a capacity of 0.29 is lacking;"
            " 1 told only a part",
            id="lacking, and not all is known",
        ),
    ],
)
def test_the_words(loads: list[Load | None], more: int, reason: str) -> None:
    assert judged(variant(*loads), more=more).reason == reason
