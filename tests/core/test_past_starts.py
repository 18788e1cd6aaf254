from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_cold_start import moments, moved
from vllm_chill.core.cold_start import ColdStart, Outcome
from vllm_chill.core.past_starts import PastStarts, StageMean
from vllm_chill.core.target import Progress, Stage

moves = st.lists(st.tuples(moments, st.sampled_from([s for s in Stage if s < Stage.ANSWERING])), max_size=12)
starts = st.builds(lambda moves, last: became_ready([*moves, (last, Stage.ANSWERING)]), moves, moments)
histories = st.lists(starts, max_size=6).map(lambda starts: past(*starts))


def became_ready(moves: list[tuple[float, Stage]]) -> ColdStart:
    return moved(moves)[0]


def took(**seconds: float) -> ColdStart:
    """A start that was ready after so many seconds in each of these stages."""
    start, now = ColdStart.begun(0), 0.0
    for name, each in seconds.items():
        start = start.moved(Progress(Stage[name.upper()]), now)
        now += each
    return start.moved(Progress(Stage.ANSWERING), now)


def past(*starts: ColdStart) -> PastStarts:
    known = PastStarts()
    for start in starts:
        known = known.learned(start)
    return known


def under_way(stage: Stage, *, since: float, began: float = 0) -> ColdStart:
    return ColdStart.begun(began).moved(Progress(stage), since)


@given(histories, moves, moments)
def test_the_time_left_is_never_negative(known: PastStarts, moves: list[tuple[float, Stage]], later: float) -> None:
    start, now = moved(moves)
    eta = known.eta(start, now + later)
    assert (eta is None) == (known.whole is None)
    assert eta is None or eta >= 0
    assert 1 <= known.retry_after(start, now + later) <= 600
    assert 1 <= known.retry_after(None, now + later) <= 600


@given(histories)
def test_what_is_written_is_read_again_as_it_was(known: PastStarts) -> None:
    assert PastStarts.parse(known.dump()) == known
    assert len(known.dump()) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["version", "whole", "stages", "loading"]), inner),
)


garbage = (
    st.none()
    | st.text()
    | json_values.map(json.dumps)
    | st.integers(0, 80).map(lambda length: past(took(loading=9)).dump()[:length])
)


@given(garbage)
def test_garbage_is_no_history_and_never_an_error(text: str | None) -> None:
    known = PastStarts.parse(text)
    assert PastStarts.parse(known.dump()) == known


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="too deep"),
        pytest.param('{"version":2,"whole":5,"stages":{}}', id="a newer version"),
        pytest.param('{"version":1,"whole":-5,"stages":{}}', id="a negative time"),
        pytest.param('{"version":1,"whole":NaN,"stages":{}}', id="no number"),
        pytest.param('{"version":1,"whole":true,"stages":{}}', id="a truth"),
        pytest.param('{"version":1,"whole":5,"stages":{"loading":[5]}}', id="a stage without its share"),
        pytest.param('{"version":1,"whole":5,"stages":{"loading":[5,1.5]}}', id="a share above one"),
    ],
)
def test_what_cannot_be_is_no_history(text: str) -> None:
    assert PastStarts.parse(text) == PastStarts()


def test_without_history_nothing_is_foretold() -> None:
    start = under_way(Stage.LOADING, since=5)
    assert PastStarts().eta(start, 10) is None
    assert PastStarts().retry_after(start, 10) == PastStarts().retry_after(None, 10) == 10


def test_the_time_left_is_the_rest_of_this_stage_and_all_of_the_later_ones() -> None:
    known = past(took(requested=1, creating=9, loading=40, listing=2))
    assert known.whole == 52
    assert known.eta(ColdStart.begun(0), 0) == 52
    assert known.eta(under_way(Stage.CREATING, since=1), 5) == 5 + 40 + 2
    assert known.eta(under_way(Stage.LOADING, since=10), 20) == 30 + 2


def test_a_stage_that_takes_longer_than_ever_has_a_small_part_of_it_left() -> None:
    known = past(took(loading=40, listing=2))
    assert known.eta(under_way(Stage.LOADING, since=0), 4000) == pytest.approx(4 + 2)


def test_a_stage_that_was_never_seen_has_what_is_left_of_a_whole_start() -> None:
    known = past(took(requested=50))
    assert known.eta(under_way(Stage.LOADING, since=10), 20) == 30
    assert known.eta(under_way(Stage.LOADING, since=10), 2000) == 5


def test_a_replaced_pod_begins_its_stage_anew() -> None:
    known = past(took(starting=10, loading=40))
    start = under_way(Stage.LOADING, since=10).moved(Progress(Stage.STARTING), 50)
    assert known.eta(start, 52) == 8 + 40


def test_the_newest_start_weighs_three_tenths() -> None:
    known = past(took(loading=100), took(loading=200))
    assert known.whole == 130
    assert known.eta(under_way(Stage.LOADING, since=0), 0) == 130


def test_a_stage_that_is_not_always_there_counts_by_its_share_before_it_and_whole_within_it() -> None:
    known = past(took(pulling=100, loading=10), took(loading=10))
    assert known.stages[Stage.PULLING] == StageMean(100, 0.7)
    assert known.eta(ColdStart.begun(0), 0) == 70 + 10
    assert known.eta(under_way(Stage.PULLING, since=0), 0) == 110


def test_the_first_token_is_a_matter_of_the_request() -> None:
    start = took(loading=40)
    assert past(start.over(Outcome.READY, 9000)) == past(start)


def test_what_is_ready_has_no_time_left() -> None:
    assert past(took(loading=40)).eta(took(loading=40), 50) == 0


@pytest.mark.parametrize(("whole", "seconds"), [(0.2, 1), (41.2, 42), (4000, 600)])
def test_asleep_the_wait_is_that_of_a_whole_start_within_bounds(whole: float, seconds: int) -> None:
    assert past(took(loading=whole)).retry_after(None, 0) == seconds


def test_a_stage_that_is_new_is_known_from_its_first_time_on() -> None:
    known = past(took(loading=10), took(pulling=100, loading=10))
    assert known.stages[Stage.PULLING] == StageMean(100, 0.3)
