"""The starts of a target are followed here through its whole life: `step` says what happens, as in the controller."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_chill.core.cold_start import Outcome
from vllm_chill.core.events import Arrived, Event, Granted, Left, Lost, Observed, Released, StopAsked, Tick, WakeAsked
from vllm_chill.core.lifecycle import step
from vllm_chill.core.starts import Starts
from vllm_chill.core.target import (
    Endpoint,
    Limits,
    Observation,
    Progress,
    Ready,
    Stage,
    Target,
    TargetRef,
    Waking,
)

LIMITS = Limits(idle_seconds=300, start_seconds=1800)
HERE = (Endpoint("127.0.0.1", 8000),)
NONE = Observation(0, 0)
READY = Observation(1, 1, HERE)
STARTING = Observation(1, 1)
ENDING = Observation(0, 1)


def at(stage: Stage, detail: str = "") -> Observed:
    return Observed(Observation(1, 1, progress=Progress(stage, detail)))


class Followed:
    """A target, and its starts as they are told of it."""

    def __init__(self, *events: Event | float) -> None:
        self.target, self.starts, self.now = Target(TargetRef("ai-apps", "vllm")), Starts(), 0.0
        self.take(*events)

    def take(self, *events: Event | float) -> Starts:
        """A number moves the clock."""
        for event in events:
            if isinstance(event, int | float):
                self.now += event
            else:
                self._take(event)
        return self.starts

    def _take(self, event: Event) -> None:
        before = self.target
        self.target = after = step(before, event, self.now, LIMITS)
        if type(before.phase) is not type(after.phase):
            self.starts = self.starts.changed(before, after, self.now)
        if isinstance(event, Observed):
            self.starts = self.starts.progressed(event.observation.progress, self.now)

    def answer(self) -> Starts:
        self.starts = self.starts.answered(self.now)
        return self.starts


ASLEEP = (Observed(NONE),)
READY_AFTER_A_MINUTE = (*ASLEEP, Arrived(), 5, at(Stage.PULLING), 15, at(Stage.LOADING), 40, Observed(READY))


def test_from_the_wish_to_the_first_byte() -> None:
    life = Followed(*READY_AFTER_A_MINUTE)
    assert life.starts.awaits_answer
    life.take(Granted(), 0.5)
    starts = life.answer()
    assert starts.current is None
    assert not starts.awaits_answer
    last = starts.last
    assert last is not None
    assert (last.outcome, last.elapsed(999)) == (Outcome.READY, 60.5)
    assert last.seconds(999) == {Stage.REQUESTED: 5, Stage.PULLING: 15, Stage.LOADING: 40, Stage.ANSWERING: 0.5}


def test_it_is_learned_from_once_it_is_ready() -> None:
    starts = Followed(*READY_AFTER_A_MINUTE).starts
    assert starts.past.whole == 60
    assert starts.eta(60) == 0


def test_the_next_start_has_a_time_left() -> None:
    life = Followed(*READY_AFTER_A_MINUTE, Granted())
    life.answer()
    starts = life.take(Released(), 300, Tick(), Observed(ENDING), Observed(NONE), Arrived(), 5, at(Stage.LOADING), 10)
    assert starts.eta(life.now) == 30
    assert starts.describe(life.now, position=2) == "waking: loading the model, position 2, about 30s left"


def test_only_the_first_answer_counts() -> None:
    life = Followed(*READY_AFTER_A_MINUTE, Granted())
    last = life.answer().last
    life.take(7)
    assert life.answer().last is last


def test_before_it_is_ready_no_byte_is_an_answer() -> None:
    life = Followed(*ASLEEP, Arrived(), at(Stage.LISTING))
    assert life.answer().current is not None


def test_a_start_that_nobody_waits_for_ends_when_it_is_ready() -> None:
    starts = Followed(*ASLEEP, WakeAsked(), 60, Observed(READY)).starts
    assert starts.current is None
    assert starts.last is not None
    assert starts.last.elapsed(999) == 60


def test_an_answer_that_nobody_is_there_to_get_is_not_awaited() -> None:
    life = Followed(*READY_AFTER_A_MINUTE, Granted(), 1)
    assert life.starts.settled(life.target) is life.starts
    life.take(Released(), 100)
    settled = life.starts.settled(life.target)
    assert settled.current is None
    assert settled.last is not None
    assert settled.last.elapsed(999) == 60


def test_a_start_whose_callers_have_left_ends_at_the_latest_with_its_phase() -> None:
    life = Followed(*READY_AFTER_A_MINUTE, Left(), 300, Tick())
    assert life.starts.current is None
    assert life.starts.last is not None
    assert (life.starts.last.outcome, life.starts.last.elapsed(999)) == (Outcome.READY, 60)


def test_a_failed_start_says_where_and_why_and_teaches_nothing() -> None:
    failed = Observation(0, 0, failure="no such image", progress=Progress(Stage.PULLING, "ImagePullBackOff"))
    starts = Followed(*ASLEEP, Arrived(), 5, at(Stage.SCHEDULING), 5, Observed(failed)).starts
    assert starts.current is None
    last = starts.last
    assert last is not None
    assert (last.outcome, last.cause, last.progress) == (Outcome.FAILED, "no such image", failed.progress)
    assert last.elapsed(999) == 10
    assert starts.past.whole is None


def test_a_start_that_is_stopped_is_no_failure() -> None:
    starts = Followed(*ASLEEP, WakeAsked(), 5, StopAsked()).starts
    assert starts.last is not None
    assert (starts.last.outcome, starts.last.elapsed(999)) == (Outcome.STOPPED, 5)
    assert starts.past.whole is None


@pytest.mark.parametrize(
    "found",
    [
        pytest.param((at(Stage.LOADING),), id="found under way when the proxy began"),
        pytest.param((Observed(READY), Observed(STARTING), at(Stage.LOADING)), id="lost while ready"),
    ],
)
def test_what_was_not_seen_from_its_beginning_teaches_nothing(found: tuple[Event, ...]) -> None:
    life = Followed(*found, 40)
    assert life.starts.current is not None
    assert life.starts.current.stage is Stage.LOADING
    life.take(Observed(READY))
    assert life.starts.last is not None
    assert life.starts.last.elapsed(999) == 40
    assert life.starts.past.whole is None


def test_a_start_by_someone_else_is_seen_from_its_beginning() -> None:
    starts = Followed(*ASLEEP, at(Stage.SCHEDULING), 40, Observed(READY)).starts
    assert starts.past.whole == 40


def test_ready_is_what_the_phase_says_and_not_what_a_replica_says() -> None:
    starts = Followed(*ASLEEP, Arrived(), 5, at(Stage.LISTING), 5, at(Stage.ANSWERING)).starts
    assert starts.current is not None
    assert starts.current.stage is Stage.LISTING
    assert not starts.awaits_answer


@pytest.mark.parametrize(
    ("events", "words"),
    [
        pytest.param((), "waiting: how the target is, is not known yet", id="unknown"),
        pytest.param(ASLEEP, "asleep", id="asleep"),
        pytest.param(
            (Observed(READY), StopAsked()), "draining: the target goes to sleep and is woken again then", id="draining"
        ),
        pytest.param(READY_AFTER_A_MINUTE, "ready", id="ready"),
    ],
)
def test_without_a_start_under_way_a_caller_is_told_the_phase(events: tuple[Event | float, ...], words: str) -> None:
    life = Followed(*events)
    assert life.starts.describe(life.now) == words
    assert life.starts.describe(life.now, position=1) == f"{words}, position 1"


class Life(RuleBasedStateMachine):
    """Anything happens to a target, at any time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Followed()

    @rule(seconds=st.integers(1, 16 * 2000).map(lambda n: n / 16))
    def time_passes(self, seconds: float) -> None:
        self.life.take(seconds, Tick())

    @rule(
        seen=st.builds(
            Observation,
            st.integers(0, 2),
            st.integers(0, 2),
            st.sampled_from([(), HERE]),
            st.none() | st.just("it broke"),
            progress=st.none() | st.builds(Progress, st.sampled_from(Stage), st.sampled_from(["", "words"])),
        )
    )
    def is_seen(self, seen: Observation) -> None:
        self.life.take(Observed(seen))

    @rule(event=st.sampled_from([Arrived(), WakeAsked(), StopAsked(), Lost("away")]))
    def somebody_asks(self, event: Event) -> None:
        self.life.take(event)

    @precondition(lambda self: self.life.target.waiting)
    @rule()
    def a_caller_leaves(self) -> None:
        self.life.take(Left())

    @precondition(lambda self: self.life.target.waiting and isinstance(self.life.target.phase, Ready))
    @rule(answered=st.booleans())
    def a_caller_is_served(self, answered: bool) -> None:
        self.life.take(Granted(), 1)
        if answered:
            self.life.answer()
        self.life.take(Released())

    @invariant()
    def a_start_is_under_way_while_it_wakes_and_no_longer_than_it_is_ready(self) -> None:
        starts, phase = self.life.starts, self.life.target.phase
        if isinstance(phase, Waking):
            assert starts.current is not None
            assert not starts.awaits_answer
        elif starts.current is not None:
            assert isinstance(phase, Ready)
            assert starts.awaits_answer

    @invariant()
    def the_stages_add_up(self) -> None:
        for start in (self.life.starts.current, self.life.starts.last):
            if start is not None:
                seconds = start.seconds(self.life.now)
                assert sum(seconds.values()) == start.elapsed(self.life.now)
                assert all(each > 0 for each in seconds.values())

    @invariant()
    def the_time_left_is_never_negative(self) -> None:
        eta = self.life.starts.eta(self.life.now)
        assert eta is None or eta >= 0
        assert 1 <= self.life.starts.retry_after(self.life.now) <= 600

    @invariant()
    def what_is_over_says_how(self) -> None:
        last = self.life.starts.last
        assert last is None or (last.outcome is not None and last.ended is not None)


TestLife = Life.TestCase
