from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.scaling.readings import policy
from vllm_chill.core.scaling.hold import Recommended, hold, remember
from vllm_chill.core.scaling.policy import DOWN, UP, Policy


def windows(up: float, down: float) -> Policy:
    return replace(policy(), up=replace(UP, stabilization_seconds=up), down=replace(DOWN, stabilization_seconds=down))


def past(*recommended: tuple[float, int]) -> tuple[Recommended, ...]:
    """What was recommended, each so many seconds ago; it is second 1000."""
    return tuple(Recommended(1000 - ago, replicas) for ago, replicas in recommended)


@pytest.mark.parametrize(
    ("up", "down", "recommended", "current", "wanted", "held"),
    [
        pytest.param(0, 300, [(15, 3)], 3, 9, 9, id="by default it grows at once"),
        pytest.param(0, 300, [(15, 9), (290, 4)], 9, 2, 9, id="it shrinks to the most of the last five minutes"),
        pytest.param(0, 300, [(299, 7), (200, 4)], 9, 2, 7, id="it shrinks part of the way"),
        pytest.param(0, 300, [(300, 9), (200, 4)], 9, 2, 4, id="what is as old as the window counts no more"),
        pytest.param(0, 60, [(61, 9), (45, 2)], 9, 2, 2, id="a window of a minute is a minute"),
        pytest.param(0, 0, [(15, 9)], 9, 2, 2, id="without a window it shrinks at once"),
        pytest.param(60, 300, [(59, 3), (30, 9)], 3, 9, 3, id="it grows to the least within the window up"),
        pytest.param(60, 300, [(60, 3), (30, 5)], 3, 9, 5, id="it grows part of the way"),
        pytest.param(60, 300, [(45, 9), (30, 2)], 5, 7, 5, id="what was less than there is now keeps what there is"),
        pytest.param(60, 60, [(30, 2), (15, 9)], 5, 5, 5, id="what is wanted now is there"),
        pytest.param(0, 300, [], 5, 2, 2, id="nothing remembered holds nothing"),
    ],
)
def test_holds_as_hpa_does(
    up: float, down: float, recommended: list[tuple[float, int]], current: int, wanted: int, held: int
) -> None:
    replicas, said = hold(windows(up, down), past(*recommended), current, wanted, 1000)
    assert replicas == held
    assert (said is None) == (held == wanted)


def test_the_words() -> None:
    _, down = hold(windows(0, 300), past((15, 9)), 9, 2, 1000)
    assert down is not None
    assert down.reason == "within the last 5m up to 9 were wanted, so no fewer than 9 yet"
    _, up = hold(windows(60, 300), past((15, 3)), 3, 9, 1000)
    assert up is not None
    assert up.reason == "within the last 1m at least 3 has been enough, so no more than 3 yet"


def test_what_no_window_asks_for_is_forgotten() -> None:
    kept = past((400, 1), (301, 2), (200, 5), (100, 3))
    assert remember(windows(0, 300), kept, 5, 1000) == past((100, 3), (0, 5))


def test_a_window_up_may_be_the_longer_one() -> None:
    assert remember(windows(600, 300), past((500, 4)), 5, 1000) == past((500, 4), (0, 5))
