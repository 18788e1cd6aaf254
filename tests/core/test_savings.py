from __future__ import annotations

import math
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.savings import (
    DAY_SECONDS,
    NOTHING,
    Days,
    Stretch,
    Tally,
    added,
    counted_replicas,
    day_of,
    parts,
    total,
    waited,
)
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Failed,
    Observation,
    Phase,
    Queued,
    Ready,
    Shared,
    SleepReason,
    Target,
    TargetRef,
    Unknown,
    Waking,
)

REF = TargetRef("ai-apps", "vllm")
HOUR = 3600.0
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
TODAY, YESTERDAY = date(2026, 11, 22), date(2026, 11, 21)

seconds = st.floats(0, 5 * DAY_SECONDS)
walls = st.floats(MIDNIGHT - 3 * DAY_SECONDS, MIDNIGHT + 3 * DAY_SECONDS)
stretches = st.builds(Stretch, st.floats(0, 1e6), st.none() | st.integers(0, 8), st.integers(0, 16))


def counted(stretches: list[Stretch], end: float, wall_at_0: float) -> Days:
    """What a life comes to that is told in stretches, one after the other."""
    days: Days = {}
    for stretch, until in zip(stretches, [*(one.since for one in stretches[1:]), end], strict=True):
        days = added(days, stretch.spent(until, wall_at_0 + until))
    return days


def test_a_scripted_day_agrees_with_hand_arithmetic() -> None:
    """4 GPUs. Asleep from the evening before, woken at 08:00, a second replica from 10:00 to 11:30, asleep at 18:30."""
    evening = -2 * HOUR
    life = [
        Stretch(evening, 0, 4),
        Stretch(8 * HOUR, 1, 4),
        Stretch(10 * HOUR, 2, 4),
        Stretch(11.5 * HOUR, 1, 4),
        Stretch(18.5 * HOUR, 0, 4),
    ]
    days = counted(life, 24 * HOUR, MIDNIGHT)
    assert days == {
        YESTERDAY: Tally(asleep=2 * 4 * HOUR),
        TODAY: Tally(asleep=(8 + 5.5) * 4 * HOUR, awake=(2 + 2 * 1.5 + 7) * 4 * HOUR),
    }


@given(stretches, seconds, walls, st.lists(st.floats(0, 1), max_size=10))
def test_however_a_stretch_is_split_it_comes_to_the_same(
    stretch: Stretch, lasts: float, wall: float, cuts: list[float]
) -> None:
    end, wall_at_0 = stretch.since + lasts, wall - stretch.since
    ends = [*(stretch.since + cut * lasts for cut in sorted(cuts)), end]
    pieces = [Stretch(since, stretch.replicas, stretch.gpus) for since in [stretch.since, *ends[:-1]]]
    whole, split = stretch.spent(end, wall_at_0 + end), counted(pieces, end, wall_at_0)
    for day in whole.keys() | split.keys():
        assert split.get(day, NOTHING).asleep == pytest.approx(whole.get(day, NOTHING).asleep, abs=1e-3)
        assert split.get(day, NOTHING).awake == pytest.approx(whole.get(day, NOTHING).awake, abs=1e-3)


@given(stretches, seconds, walls)
def test_all_of_a_stretch_is_either_asleep_or_awake(stretch: Stretch, lasts: float, wall: float) -> None:
    spent = total(stretch.spent(stretch.since + lasts, wall))
    if stretch.replicas is None:
        assert spent == NOTHING
    elif stretch.replicas == 0:
        assert spent.awake == 0
        assert spent.asleep == pytest.approx(lasts * stretch.gpus, abs=1e-3)
    else:
        assert spent.asleep == 0
        assert spent.awake == pytest.approx(lasts * stretch.gpus * stretch.replicas, abs=1e-3)


@given(st.floats(-1e6, 5 * DAY_SECONDS), st.floats())
def test_whatever_the_wall_clock_says_nothing_is_made_or_lost(lasts: float, wall: float) -> None:
    spent = list(parts(lasts, wall))
    assert all(part > 0 for _, part in spent)
    assert sum(part for _, part in spent) == pytest.approx(max(0.0, lasts), abs=1e-6)
    assert len({day for day, _ in spent}) == len(spent) <= max(0.0, lasts) / DAY_SECONDS + 2


def test_what_ends_at_midnight_is_of_the_day_that_ends() -> None:
    assert list(parts(10, MIDNIGHT)) == [(YESTERDAY, 10)]
    assert list(parts(10, MIDNIGHT + 4)) == [(TODAY, 4), (YESTERDAY, 6)]


@pytest.mark.parametrize(
    ("wall", "day"),
    [
        (MIDNIGHT, TODAY),
        (MIDNIGHT - 0.001, YESTERDAY),
        (-1e12, date(1970, 1, 1)),
        (math.nan, date(1970, 1, 1)),
        (1e300, date.max),
        (math.inf, date(1970, 1, 1)),
    ],
)
def test_the_day_of_a_moment(wall: float, day: date) -> None:
    assert day_of(wall) == day


@pytest.mark.parametrize(
    ("before", "after", "woken"),
    [(0, 1, True), (0, 3, True), (0, 0, False), (1, 2, False), (None, 1, False), (0, None, False), (1, 0, False)],
)
def test_it_is_woken_when_it_had_none_and_has_some(before: int | None, after: int | None, woken: bool) -> None:
    assert Stretch(0, before).is_woken(after) is woken


GONE = Observation(0, 0)
RUNS = Observation(1, 1)


@pytest.mark.parametrize(
    ("phase", "seen", "replicas"),
    [
        pytest.param(Unknown(), None, None, id="not known"),
        pytest.param(Asleep(0), GONE, 0, id="asleep"),
        pytest.param(Asleep(0), Observation(0, 0, terminating=1), 1, id="asleep, and on its way out"),
        pytest.param(Queued(0), GONE, 0, id="waits for its turn"),
        pytest.param(Waking(0, confirmed=False), GONE, 1, id="about to be asked for"),
        pytest.param(Waking(0, confirmed=True), RUNS, 1, id="waking"),
        pytest.param(Ready(0, 0), Observation(3, 2), 3, id="three asked for, two there"),
        pytest.param(Ready(0, 0), Observation(1, 2), 2, id="one asked for, two there"),
        pytest.param(Draining(0, SleepReason.IDLE, confirmed=False), RUNS, 1, id="draining"),
        pytest.param(Failed(0, "x", 9, confirmed=True), GONE, 0, id="failed and given back"),
    ],
)
def test_what_has_gpus(phase: Phase, seen: Observation | None, replicas: int | None) -> None:
    assert counted_replicas(Target(REF, phase, observed=seen)) == replicas


def test_it_is_for_the_proxy_that_leads_to_count() -> None:
    assert counted_replicas(Target(REF, Asleep(0), observed=GONE, shared=Shared(leads=False))) is None


@pytest.mark.parametrize(
    ("phase", "seconds", "now", "counts"),
    [
        pytest.param(Ready(100, 100), 30, 100, 30, id="let in as it is ready"),
        pytest.param(Ready(100, 100), 40, 110, 30, id="10 s more for a place"),
        pytest.param(Ready(100, 100), 5, 200, 0, id="came to it when it was ready"),
        pytest.param(Waking(50, confirmed=True), 30, 100, 30, id="left while it was waking"),
        pytest.param(Failed(100, "x", 105, confirmed=False), 30, 100, 30, id="its start failed"),
        pytest.param(Failed(50, "x", 105, confirmed=False), 0.001, 100, 0, id="told at once that it has failed"),
        pytest.param(Waking(50, confirmed=True), -1, 100, 0, id="a clock that went back"),
    ],
)
def test_how_long_a_caller_waited_for_a_wake(phase: Phase, seconds: float, now: float, counts: float) -> None:
    assert waited(phase, seconds, now) == counts
