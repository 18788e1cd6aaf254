from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.histogram import Histogram, histogram_of, merged

BOUNDS = (0.1, 0.5, 1.0, 5.0)


def made(*observed: float, bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    counts = tuple(float(sum(value <= bound for value in observed)) for bound in bounds)
    return Histogram(bounds, counts, float(len(observed)), math.fsum(observed))


observations = st.lists(st.floats(0, 10), max_size=30)
bounds = st.lists(st.sampled_from(BOUNDS), unique=True).map(lambda some: tuple(sorted(some)))


@pytest.mark.parametrize(
    ("counts", "count", "percent", "value"),
    [
        pytest.param((0, 10, 10, 10), 10, 50, 0.3, id="the middle of a bucket"),
        pytest.param((10, 10, 10, 10), 10, 50, 0.05, id="the first bucket begins at 0"),
        pytest.param((0, 0, 0, 10), 10, 100, 5.0, id="the end of the last bucket"),
        pytest.param((0, 0, 0, 0), 10, 50, 5.0, id="above all bounds"),
        pytest.param((4, 8, 10, 10), 10, 95, 0.875, id="linear in the bucket that it falls into"),
        pytest.param((4, 8, 10, 10), 10, 40, 0.1, id="just at a bound"),
        pytest.param((0, 5, 5, 10), 10, 0, 0.0, id="the least of all is at the begin of the first bucket"),
        pytest.param((0, 0, 0, 0), 0, 95, None, id="nothing was observed"),
        pytest.param((4, 3, 10, 10), 10, 50, 0.5 + 0.5 / 6, id="counts that fall are taken not to"),
    ],
)
def test_a_percentile_is_as_prometheus_has_it(
    counts: tuple[int, ...], count: int, percent: float, value: float | None
) -> None:
    assert Histogram(BOUNDS, counts, count, 1).percentile(percent) == (None if value is None else pytest.approx(value))


def test_bounds_that_are_not_above_zero_have_no_begin() -> None:
    assert Histogram((-1.0, 0.0), (5, 10), 10, -3).percentile(10) == -1
    assert Histogram((0.0,), (5,), 10, 3).percentile(10) == 0


def test_without_bounds_nothing_is_known() -> None:
    assert Histogram((), (), 10, 3).percentile(50) is None


@given(observations, st.floats(0, 100), st.floats(0, 100))
def test_a_higher_percentile_is_no_lower_value(observed: list[float], one: float, other: float) -> None:
    low, high = (made(*observed).percentile(percent) for percent in sorted((one, other)))
    assert (low is None) == (high is None) == (not observed)
    if low is not None and high is not None:
        assert low <= high <= BOUNDS[-1]


@given(observations, observations, bounds, bounds)
def test_two_together_are_one_of_all_observations(
    here: list[float], there: list[float], mine: tuple[float, ...], others: tuple[float, ...]
) -> None:
    both = made(*here, bounds=mine).plus(made(*there, bounds=others))
    shared = tuple(sorted(set(mine) & set(others)))
    expected = made(*here, *there, bounds=shared)
    assert (both.bounds, both.counts, both.count) == (shared, expected.counts, expected.count)
    assert both.sum == pytest.approx(expected.sum)


@given(observations, observations)
def test_what_came_since_is_what_was_observed_since(before: list[float], after: list[float]) -> None:
    came = made(*before, *after).since(made(*before))
    assert (came.counts, came.count) == (made(*after).counts, made(*after).count)


def test_of_none_there_is_none() -> None:
    assert merged([]) is None
    assert merged([made(1), made(2), made(3)]) == made(1, 2, 3)


def test_it_is_made_of_buckets_in_any_order() -> None:
    assert histogram_of({math.inf: 3, 1.0: 2, 0.5: 1}, 3, 4.5) == Histogram((0.5, 1.0), (1, 2), 3, 4.5)
