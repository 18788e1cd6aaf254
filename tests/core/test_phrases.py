from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from vllm_chill.core.phrases import listed, timestamp


def test_names_beyond_the_most_are_counted() -> None:
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_a_moment_is_told_in_utc_to_the_second() -> None:
    moment = datetime(2026, 1, 5, 17, 0, 0, 999999, timezone(timedelta(hours=1)))
    assert timestamp(moment) == timestamp(moment.astimezone(UTC)) == "2026-01-05T16:00:00Z"
