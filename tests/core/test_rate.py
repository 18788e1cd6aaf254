from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.rate import NEVER_USED, RateLimit, spent, wait_seconds

# Multiples of what a float has exactly, so that the laws hold without a margin.
LIMITS = st.builds(RateLimit, st.sampled_from([1, 3, 15, 60, 240, 960]), st.integers(1, 20))
TIMES = st.lists(st.integers(0, 8 * 300), max_size=200).map(lambda ticks: [tick / 8 for tick in sorted(ticks)])


def admitted(limit: RateLimit, times: list[float]) -> list[float]:
    """When those came that were let through, of requests that come at these times."""
    full_at, through = NEVER_USED, []
    for now in times:
        if not wait_seconds(limit, full_at, now):
            full_at = spent(limit, full_at, now)
            through.append(now)
    return through


def of_a_bucket(limit: RateLimit, times: list[float]) -> list[float]:
    """The same by the book: a bucket of tokens that is filled as time goes by."""
    tokens, last, through = float(limit.burst), 0.0, []
    for now in times:
        tokens = min(limit.burst, tokens + (now - last) * limit.per_minute / 60)
        last = now
        if tokens >= 1:
            tokens -= 1
            through.append(now)
    return through


@given(LIMITS, TIMES)
def test_it_lets_through_what_a_bucket_of_tokens_does(limit: RateLimit, times: list[float]) -> None:
    assert admitted(limit, times) == of_a_bucket(limit, times)


@given(LIMITS, TIMES)
def test_no_span_of_time_has_more_than_the_burst_and_what_it_earns(limit: RateLimit, times: list[float]) -> None:
    through = admitted(limit, times)
    for (i, first), (j, last) in itertools.combinations(enumerate(through), 2):
        assert j - i + 1 <= limit.burst + (last - first) * limit.per_minute / 60


@given(LIMITS, TIMES, st.integers(0, 8 * 300))
def test_who_waits_as_long_as_is_said_is_let_through_and_not_before(
    limit: RateLimit, times: list[float], more: int
) -> None:
    full_at = NEVER_USED
    for now in admitted(limit, times):
        full_at = spent(limit, full_at, now)
    now = (times[-1] if times else 0) + more / 8
    wait = wait_seconds(limit, full_at, now)
    assert wait_seconds(limit, full_at, now + wait) == 0
    if wait:
        assert wait_seconds(limit, full_at, now + wait - 1e-3) > 0


@given(LIMITS)
def test_a_burst_is_let_through_at_once_and_one_more_is_not(limit: RateLimit) -> None:
    assert len(admitted(limit, [0.0] * (limit.burst + 5))) == limit.burst


def test_the_wait_is_until_one_more_has_been_earned() -> None:
    limit = RateLimit(60, 2)
    full_at = spent(limit, spent(limit, NEVER_USED, 10.0), 10.0)
    assert wait_seconds(limit, full_at, 10.25) == pytest.approx(0.75)
