from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.cold_start import (
    STAGE_NAMES,
    STAGE_WORDS,
    ColdStart,
    Outcome,
    describe,
    doing,
    duration,
    time_left,
)
from vllm_chill.core.target import Progress, Stage

# Sixteenths of seconds, which floats add without rounding.
moments = st.integers(0, 16 * 3600).map(lambda sixteenths: sixteenths / 16)
moves = st.lists(st.tuples(moments, st.sampled_from(Stage)), max_size=20)


def moved(moves: list[tuple[float, Stage]], began: float = 100.0) -> tuple[ColdStart, float]:
    """A start after these moves, each so many seconds after the one before, and the time."""
    start, now = ColdStart.begun(began), began
    for seconds, stage in moves:
        now += seconds
        start = start.moved(Progress(stage), now)
    return start, now


@given(moves, moments)
def test_the_stages_of_a_start_add_up_to_its_wall_time(moves: list[tuple[float, Stage]], later: float) -> None:
    start, now = moved(moves)
    seconds = start.seconds(now + later)
    assert sum(seconds.values()) == start.elapsed(now + later) == now + later - start.began
    assert all(each > 0 for each in seconds.values())


@given(moves, moments, st.sampled_from(Outcome))
def test_what_is_over_takes_no_more_time(moves: list[tuple[float, Stage]], later: float, outcome: Outcome) -> None:
    start, now = moved(moves)
    over = start.over(outcome, now)
    assert over.seconds(now + later) == over.seconds(now) == start.seconds(now)
    assert over.elapsed(now + later) == start.elapsed(now)


def test_a_stage_that_takes_no_time_is_not_there() -> None:
    start, now = moved([(1, Stage.SCHEDULING), (0, Stage.CREATING), (2, Stage.STARTING), (3, Stage.LOADING)])
    assert start.seconds(now) == {Stage.REQUESTED: 1, Stage.CREATING: 2, Stage.STARTING: 3}


def test_a_stage_that_is_come_to_again_counts_anew_and_keeps_what_was_spent_in_it() -> None:
    start, now = moved([(1, Stage.PULLING), (60, Stage.LOADING), (5, Stage.PULLING)])
    assert start.since == now
    assert start.seconds(now + 7) == {Stage.REQUESTED: 1, Stage.PULLING: 67, Stage.LOADING: 5}


def test_the_same_stage_in_other_words_goes_on() -> None:
    start = ColdStart.begun(0).moved(Progress(Stage.SCHEDULING, "no node"), 1)
    start = start.moved(Progress(Stage.SCHEDULING, "a node is being added"), 31)
    assert (start.since, start.detail) == (1, "a node is being added")


def test_without_an_answer_it_ends_when_it_was_ready() -> None:
    start, _ = moved([(40, Stage.ANSWERING)], began=0)
    over = start.unanswered()
    assert (over.outcome, over.elapsed(900), over.seconds(900)) == (Outcome.READY, 40, {Stage.REQUESTED: 40})


def test_every_stage_has_a_name_and_words_of_its_own() -> None:
    assert list(STAGE_NAMES) == list(STAGE_WORDS) == list(Stage)
    assert list(STAGE_NAMES.values()) == [
        "requested", "scheduling", "pulling", "creating", "starting", "loading", "listing", "first_token",
    ]  # fmt: skip
    assert len(set(STAGE_WORDS.values())) == len(Stage)


def test_a_start_in_one_line() -> None:
    start = ColdStart.begun(0).moved(Progress(Stage.LOADING), 10)
    assert describe(start, 32, 38.2) == "waking: loading the model, about 40s left"
    assert describe(start, 32, 38.2, position=3) == "waking: loading the model, position 3, about 40s left"
    assert describe(start, 32, None) == "waking: loading the model, 32s so far"


@given(st.text())
def test_what_others_say_never_breaks_the_line(detail: str) -> None:
    line = doing(Progress(Stage.SCHEDULING, detail))
    assert line.splitlines() == [line]
    assert line.startswith("waiting for a node")
    assert len(line) < 250


def test_the_words_of_the_scheduler_are_in_the_line() -> None:
    detail = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    assert doing(Progress(Stage.SCHEDULING, detail)) == f"waiting for a node ({detail})"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "about 1s left"),
        (0.3, "about 1s left"),
        (9.2, "about 10s left"),
        (36, "about 40s left"),
        (59, "about 1m left"),
        (64, "about 1m10s left"),
        (600, "about 10m left"),
        (3700, "about 1h2m left"),
    ],
)
def test_the_time_left_is_no_finer_than_it_can_be_known(seconds: float, words: str) -> None:
    assert time_left(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (42, "42s"), (60, "1m"), (190.4, "3m10s"), (3600, "1h"), (3900, "1h5m")]
)
def test_a_duration_as_people_write_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words
