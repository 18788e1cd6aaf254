from __future__ import annotations

from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.pace import Change, change, left_down, left_up, recent

CONFIG = Config(scale_up_increment=4, scale_up_period=60.0, scale_down_increment=2, scale_down_period=300.0)
CHANGES = (Change(0.0, came=3, went=1), Change(50.0, came=2, went=0), Change(55.0, came=0, went=1))


def test_what_came_within_the_period_counts() -> None:
    assert [left_up(CONFIG, CHANGES, now) for now in (55.0, 60.0, 110.0)] == [0, 2, 4]


def test_what_went_within_the_period_counts() -> None:
    assert [left_down(CONFIG, CHANGES, now) for now in (55.0, 300.0, 355.0)] == [0, 1, 2]


def test_what_no_period_reaches_is_forgotten() -> None:
    assert recent(CONFIG, CHANGES, 299.0) == CHANGES
    assert recent(CONFIG, CHANGES, 300.0) == CHANGES[1:]


def test_what_comes_and_what_goes_are_counted_apart() -> None:
    assert change([2, -1, 0, 3], 7.0) == Change(7.0, came=5, went=1)
