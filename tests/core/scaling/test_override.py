"""A number of replicas by hand: told in objects, and read back by a proxy whose clock is another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.scaling.override import Override, read, told

WALL = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@settings(deadline=None)
@given(st.integers(1, 100), st.text(max_size=50), st.floats(0, 1e6), st.floats(2, 1e6), st.floats(-1e6, 1e6))
def test_what_was_told_is_read_back_to_a_second_by_whoever_has_another_clock(
    replicas: int, by: str, ago: float, rest: float, other_now: float
) -> None:
    override = Override(replicas, by, 1e6 - ago, 1e6 + rest)
    again = read(told(override, 1e6, WALL), other_now, WALL)
    assert again is not None
    assert (again.replicas, again.by) == (replicas, by)
    assert again.until - other_now == pytest.approx(rest, abs=1)
    assert other_now - again.at == pytest.approx(ago, abs=1)


@settings(deadline=None)
@given(st.floats(0, 3600))
def test_it_is_told_in_the_same_words_at_any_moment(later: float) -> None:
    override = Override(4, "alice", 10.0, 5000.0)
    assert told(override, 20.0, WALL) == told(override, 20.0 + later, WALL + timedelta(seconds=later))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"replicas": 3, "by": "alice", "expires": "2026-03-01T11:59:59Z"}, id="it has ended"),
        pytest.param({"replicas": 3, "by": "alice", "expires": "soon"}, id="no time"),
        pytest.param({"replicas": 3, "by": "alice", "expires": "2026-03-01T13:00:00"}, id="no time zone"),
        pytest.param({"replicas": "x", "expires": "2026-03-01T13:00:00Z"}, id="no number"),
        pytest.param({"replicas": 0, "expires": "2026-03-01T13:00:00Z"}, id="none"),
        pytest.param({}, id="nothing"),
    ],
)
def test_what_is_over_or_not_to_be_understood_is_no_override(said: dict[str, Any]) -> None:
    assert read(said, 100.0, WALL) is None
