"""What is known of an engine as its figures grow old."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.saturation.fleet import ReplicaLoad
from vllm_chill.core.saturation.freshness import Ages, Track, begun_anew, load_of, told
from vllm_chill.core.saturation.places import EngineLoad

AGES = Ages()
WHOLE = EngineLoad(kv=0.5, queue=2, running=3, successes=10, cache_tokens=1000)


def after(*loads: tuple[float, EngineLoad]) -> Track:
    track = Track()
    for at, load in loads:
        track = told(track, load, at)
    return track


@pytest.mark.parametrize(
    ("age", "stale"),
    [(0.0, False), (59.9, False), (60.0, True), (299.9, True), (300.0, None), (1e9, None)],
)
def test_a_load_is_fresh_then_stale_then_gone(age: float, stale: bool | None) -> None:
    load = load_of("a", after((100.0, WHOLE)), AGES, 100.0 + age)
    if stale is None:
        assert load is None
    else:
        assert load is not None
        assert load.age_seconds == pytest.approx(age)
        assert replace(load, age_seconds=age) == ReplicaLoad("a", 0.5, 2, 3, None, 1000, age_seconds=age, stale=stale)


def test_each_figure_grows_old_by_itself_and_the_oldest_counts() -> None:
    track = after((0.0, EngineLoad(kv=0.5, queue=2)), (100.0, EngineLoad(kv=0.6)))
    assert load_of("a", track, AGES, 110.0) == ReplicaLoad("a", 0.6, 2, age_seconds=110, stale=True)
    assert load_of("a", track, AGES, 310.0) == ReplicaLoad("a", 0.6, None, age_seconds=210, stale=True)
    track = told(track, EngineLoad(kv=0.7), 310.0)
    assert load_of("a", track, AGES, 310.0) == ReplicaLoad("a", 0.7, None)


def test_what_is_not_told_is_not_0() -> None:
    assert load_of("a", after((0.0, EngineLoad(queue=0.0))), AGES, 1.0) == ReplicaLoad("a", queue=0.0, age_seconds=1)
    assert load_of("a", after((0.0, EngineLoad())), AGES, 1.0) is None
    assert load_of("a", Track(), AGES, 1.0) is None


def test_how_many_tokens_fit_does_not_grow_old_and_is_no_load() -> None:
    track = after((0.0, EngineLoad(cache_tokens=1000)), (400.0, EngineLoad(kv=0.5)))
    assert load_of("a", track, AGES, 401.0) == ReplicaLoad("a", 0.5, cache_tokens=1000, age_seconds=1)
    assert load_of("a", after((0.0, EngineLoad(cache_tokens=1000))), AGES, 1.0) is None


def test_the_rate_is_between_two_looks_at_what_was_answered() -> None:
    track = after((0.0, EngineLoad(successes=10)), (30.0, EngineLoad(successes=70)))
    load = load_of("a", track, AGES, 30.0)
    assert load is not None
    assert load.rate == 2


def test_a_source_that_knows_the_rate_is_believed() -> None:
    track = after((0.0, EngineLoad(successes=10, rate=9)), (30.0, EngineLoad(successes=70, rate=7)))
    load = load_of("a", track, AGES, 30.0)
    assert load is not None
    assert load.rate == 7


def test_an_engine_that_has_begun_anew_has_no_rate_until_the_next_look() -> None:
    track = after((0.0, EngineLoad(successes=10)), (30.0, EngineLoad(successes=70)), (60.0, EngineLoad(successes=6)))
    assert load_of("a", track, AGES, 60.0) is None
    assert track.active_at == 60
    load = load_of("a", told(track, EngineLoad(successes=36), 90.0), AGES, 90.0)
    assert load is not None
    assert load.rate == 1


IDLE = EngineLoad(queue=0, running=0, successes=5)
MORE, ANEW, UNCOUNTED = (replace(IDLE, successes=count) for count in (6, 0, None))


@pytest.mark.parametrize(
    ("loads", "active_at"),
    [
        pytest.param([(1.0, ANEW)], None, id="one that never had a request"),
        pytest.param([(1.0, IDLE), (2.0, IDLE)], 1.0, id="at the latest when it was first looked at"),
        pytest.param([(1.0, IDLE), (2.0, MORE), (3.0, MORE)], 2.0, id="answered"),
        pytest.param([(1.0, IDLE), (2.0, replace(IDLE, running=1)), (3.0, IDLE)], 2.0, id="running"),
        pytest.param([(1.0, IDLE), (2.0, replace(IDLE, queue=1)), (3.0, IDLE)], 2.0, id="waiting"),
        pytest.param([(1.0, IDLE), (2.0, ANEW), (3.0, ANEW)], 1.0, id="begun anew, and unused"),
        pytest.param([(1.0, EngineLoad(rate=0.0)), (2.0, EngineLoad(rate=0.0))], None, id="a rate of 0"),
        pytest.param([(1.0, EngineLoad(rate=0.5)), (2.0, EngineLoad(rate=0.0))], 1.0, id="a rate"),
        pytest.param(
            [(1.0, IDLE), (2.0, replace(MORE, rate=0.1)), (90.0, replace(MORE, rate=0.1))],
            2.0,
            id="no longer, though the rate is still that of minutes ago",
        ),
        pytest.param([(1.0, UNCOUNTED), (2.0, UNCOUNTED)], 2.0, id="where nobody counts answers it may be in use"),
    ],
)
def test_an_engine_was_last_used(loads: list[tuple[float, EngineLoad]], active_at: float | None) -> None:
    assert after(*loads).active_at == active_at


def test_of_another_engine_in_its_place_nothing_is_known_but_when_it_was_used() -> None:
    track = begun_anew(after((1.0, WHOLE)))
    assert (track.figures, track.successes, track.active_at) == ({}, None, 1.0)


figures = st.none() | st.floats(0, 1e6)
engine_loads = st.builds(EngineLoad, figures, figures, figures, figures, figures, figures)


@given(st.lists(st.tuples(st.floats(0.01, 400), engine_loads), max_size=12), st.floats(0, 400))
def test_whatever_is_told_each_figure_is_what_was_told_last_within_its_time(
    steps: list[tuple[float, EngineLoad]], later: float
) -> None:
    now, track, history = 0.0, Track(), list[tuple[float, EngineLoad]]()
    for pause, load in steps:
        now += pause
        track = told(track, load, now)
        history.append((now, load))
        assert track.active_at is None or track.active_at <= now
    now += later
    found = load_of("a", track, AGES, now)
    for name in ("kv", "queue", "running"):
        last = next(
            ((at, getattr(each, name)) for at, each in reversed(history) if getattr(each, name) is not None), None
        )
        known = last is not None and now - last[0] < AGES.gone_seconds
        value = None if found is None else getattr(found, name)
        assert value == (last[1] if last is not None and known else None)
    if found is not None:
        assert 0 <= found.age_seconds < AGES.gone_seconds
        assert found.stale is (found.age_seconds >= AGES.fresh_seconds)
        assert found.rate is None or found.rate >= 0
