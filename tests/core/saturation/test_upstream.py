from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.saturation.told import UNTOLD, Load, coming, variant
from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.spare import analyze

CONFIG = Config(upstream=True)
Said = tuple[float, float]
UP: Said = (1, 0)
DOWN: Said = (0, 1)
STAY: Said = (0, 0)


def judged(*variants: Variant, more: int | Mapping[str, int] = 0, config: Config = CONFIG) -> Analysis:
    return analyze(config, variants, coming(variants, more))


def said(analysis: Analysis) -> Said:
    return analysis.required, analysis.spare


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        pytest.param([(0.70, 0)] * 3, STAY, id="KV spare is at its trigger"),
        pytest.param([(0.70 + 1e-8, 0)] * 3, UP, id="KV spare is below its trigger"),
        pytest.param([(0.8 - 0.1, 0), (0.5 + 0.2, 0), (0.7, 0)], STAY, id="at it but for how floats add up"),
        pytest.param([(0.1, 2)] * 3, STAY, id="queue spare is at its trigger"),
        pytest.param([(0.1, 2), (0.1, 2), (0.1, 3)], UP, id="queue spare is below its trigger"),
        pytest.param([(0.75, 4)] * 3, UP, id="both are below"),
        pytest.param([(0.80, 0)] * 3, UP, id="all have come to the KV threshold"),
        pytest.param([(0.1, 5)] * 3, UP, id="all have come to the queue threshold"),
        pytest.param([(0.80, 0), (0.1, 0), (0.1, 0)], DOWN, id="who is at the KV threshold does not count"),
        pytest.param([(0.79, 0), (0.1, 0), (0.1, 0)], DOWN, id="who is just below it does"),
        pytest.param([(0.35, 0)] * 2, DOWN, id="two: down from 0.35 on"),
        pytest.param([(0.35 + 1e-8, 0)] * 2, STAY, id="two: not above"),
        pytest.param([(0.7 * 2 / 3, 0)] * 3, DOWN, id="three: down from 0.4667 on"),
        pytest.param([(0.4667, 0)] * 3, STAY, id="three: not above"),
        pytest.param([(0.525, 0)] * 4, DOWN, id="four: down from 0.525 on"),
        pytest.param([(0.526, 0)] * 4, STAY, id="four: not above"),
        pytest.param([(0.6125, 0)] * 8, DOWN, id="eight: down from 0.6125 on"),
        pytest.param([(0.7 * 11 / 12, 0)] * 12, DOWN, id="twelve: down from 0.6417 on"),
        pytest.param([(0.1, 1)] * 2, DOWN, id="two: down from a queue of 1 on"),
        pytest.param([(0.1, 1), (0.1, 1.01)], STAY, id="two: not with a longer one"),
        pytest.param([(0, 0)], STAY, id="the last one stays"),
        pytest.param([(0, 0), (0.9, 0)], STAY, id="the last that is not saturated stays"),
        pytest.param([], STAY, id="none is there"),
    ],
)
def test_its_edges(loads: list[Load], expected: Said) -> None:
    assert said(judged(variant(*loads))) == expected


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        pytest.param(
            [(0.95, 9), (0.1, 0), (0.1, 0)], DOWN, id="a replica that is full does not keep another from going"
        ),
        pytest.param([(0.85, 2), (0.5, 6), (0.6, 2)], STAY, id="two of three are saturated, and nothing comes"),
        pytest.param(
            [(0.9, 213), (0.9, 150), (0.8, 90), (0.6, 60), (0.5, 30), (0.5, 10), (0.02, 0)],
            STAY,
            id="one idle replica hides the queues of six",
        ),
        pytest.param([(0.9, 40)] * 8, UP, id="however much is lacking it is one"),
        pytest.param([(0.0, 0)] * 8, DOWN, id="however much could go it is one"),
        pytest.param([(0.5, None), (None, 1)], DOWN, id="what one has not told is 0, but nothing goes by it"),
    ],
)
def test_its_flaws_are_its_own(loads: list[Load], expected: Said) -> None:
    analysis = judged(variant(*loads))
    if not analysis.complete:
        assert judged(variant(*((kv or 0, queue or 0) for kv, queue, *_ in loads))).spare == expected[1]
        expected = (expected[0], 0)
    assert said(analysis) == expected


@pytest.mark.parametrize(
    ("variants", "more"),
    [
        pytest.param([variant((0.9, 9), UNTOLD)], 0, id="one has told nothing"),
        pytest.param([variant((0.9, 9))], 1, id="one is on its way"),
        pytest.param([variant((0.1, 0), (0.1, 0))], -1, id="one is on its way out"),
        pytest.param([variant((0.9, 9)), variant(key="t4")], {"t4": 1}, id="one of a sibling is on its way"),
    ],
)
def test_one_without_figures_freezes_them_all(variants: list[Variant], more: int | Mapping[str, int]) -> None:
    analysis = judged(*variants, more=more)
    assert said(analysis) == STAY
    assert "nothing changes" in analysis.reason


def test_a_sibling_at_zero_freezes_nothing() -> None:
    assert said(judged(variant((0.9, 9)), variant(key="t4"))) == UP


def test_stale_figures_make_it_grow_and_not_shrink() -> None:
    assert said(judged(variant((0.9, 9, "stale"), (0.9, 9)))) == UP
    assert said(judged(variant((0.1, 0, "stale"), (0.1, 0)))) == STAY


def test_it_knows_no_capacities_and_asks_for_one_replica_of_any() -> None:
    assert judged(variant((0.9, 9), capacity=4.0), variant(key="t4", capacity=0.5)).required == 0.5
    assert judged(variant((0.1, 0), (0.1, 0), capacity=4.0)).spare == 4


def test_thresholds_that_were_left_out_and_became_zero_freeze_it() -> None:
    forgotten = replace(
        CONFIG, kv_cache_threshold=0.0, queue_length_threshold=0.0, kv_spare_trigger=0.0, queue_spare_trigger=0.0
    )
    assert said(judged(variant((0.9, 9), (0, 0)), config=forgotten)) == STAY


@pytest.mark.parametrize(
    ("loads", "more", "reason"),
    [
        pytest.param(
            [(0.76, 0), (0.76, 0), (0.85, 0)],
            0,
            "KV spare 0.04 is below 0.10 over 3 replicas, 1 of them saturated and not counted,"
            " so one replica is lacking",
            id="lacking",
        ),
        pytest.param(
            [(0.9, 0), (0.9, 0)],
            0,
            "KV spare 0.00 is below 0.10 and queue spare 0.00 is below 3.00 over 2 replicas,"
            " all of them saturated and not counted, so one replica is lacking",
            id="all are saturated",
        ),
        pytest.param(
            [(0.3, 0), (0.3, 0)],
            0,
            "KV spare 0.50 and queue spare 5.00 over 2 replicas, so one replica could go",
            id="spare",
        ),
        pytest.param([(0.6, 0), (0.6, 0)], 0, "KV spare 0.20 and queue spare 5.00 over 2 replicas", id="enough"),
        pytest.param(
            [(0.9, 0)],
            1,
            "KV spare 0.00 is below 0.10 and queue spare 0.00 is below 3.00 over 1 replica,"
            " which is saturated and not counted; a100 is to have 2 and has figures of 1, so nothing changes",
            id="frozen",
        ),
    ],
)
def test_the_words(loads: list[Load], more: int, reason: str) -> None:
    assert judged(variant(*loads), more=more).reason == reason


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 8)), min_size=1, max_size=8),
    st.integers(50, 95),
    st.integers(0, 30),
    st.integers(3, 8),
    st.integers(0, 3),
)
def test_it_is_what_the_formulas_say_in_whole_numbers(
    loads: list[tuple[int, int]], kt: int, ks: int, qt: int, qs: int
) -> None:
    """KV in percent, so that no float decides: the formulas of the facts, written out with fractions cleared."""
    config = replace(
        CONFIG,
        kv_cache_threshold=kt / 100,
        kv_spare_trigger=ks / 100,
        queue_length_threshold=float(qt),
        queue_spare_trigger=float(qs),
    )
    rest = [(kv, queue) for kv, queue in loads if kv < kt and queue < qt]
    count, kv_sum, queue_sum = len(rest), sum(kv for kv, _ in rest), sum(queue for _, queue in rest)
    up = (ks > 0 or qs > 0) if not rest else kt * count - kv_sum < ks * count or qt * count - queue_sum < qs * count
    down = count >= 2 and kv_sum <= (kt - ks) * (count - 1) and queue_sum <= (qt - qs) * (count - 1)
    analysis = judged(variant(*((kv / 100, queue) for kv, queue in loads)), config=config)
    assert said(analysis) == (UP if up else DOWN if down else STAY)
    assert math.isfinite(analysis.slack)
