from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_chill.core.events import (
    Arrived,
    Event,
    Granted,
    HeldBack,
    Left,
    Lost,
    Observed,
    PeersTold,
    Recommended,
    Released,
    Scaled,
    ScaleFailed,
    ScaleStarted,
    StopAsked,
    Tick,
    Used,
    WakeAsked,
    WakeRefused,
    WayGiven,
)
from vllm_chill.core.lifecycle import Refuse, Serve, Wait, admits, desired_replicas, next_deadline, step, taken_down
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Endpoint,
    Failed,
    Limits,
    Observation,
    Queued,
    Ready,
    Shared,
    SleepReason,
    Target,
    TargetRef,
    Unknown,
    Waking,
)

LIMITS = Limits(idle_seconds=300, start_seconds=1800)
GIVING_UP = Limits(idle_seconds=300, start_seconds=1800, keep_abandoned=False)
REF = TargetRef("ai-apps", "vllm")
HERE = (Endpoint("127.0.0.1", 8000),)
NONE = Observation(0, 0)
STARTING = Observation(1, 1)
READY = Observation(1, 1, HERE)
ENDING = Observation(0, 1)
DEAD = Observation(0, 0, failure="it exited with status 1")


def life(*events: Event | float, start: Target | None = None) -> Target:
    """The target after these events; a number moves the clock, which begins at 0."""
    target, now = start or Target(REF), 0.0
    for event in events:
        if isinstance(event, int | float):
            now += event
        else:
            target = step(target, event, now, LIMITS)
    return target


ASLEEP = life(Observed(NONE))
WOKEN = life(Observed(NONE), Arrived(), ScaleStarted(1), Observed(STARTING), Scaled(1))
AWAKE = life(Observed(READY))


class TestTransitions:
    def test_what_is_awake_at_the_start_is_adopted(self) -> None:
        assert life(Observed(READY)).phase == Ready(since=0, idle_since=0)

    def test_what_is_starting_at_the_start_is_adopted(self) -> None:
        assert life(Observed(STARTING)).phase == Waking(0, confirmed=True)

    def test_a_caller_before_the_first_observation_waits_and_wakes_then(self) -> None:
        target = life(Arrived())
        assert admits(target, 0) == Wait()
        assert desired_replicas(life(Observed(NONE), start=target)) == 1

    def test_a_caller_is_told_why_nothing_is_known_of_the_target(self) -> None:
        assert admits(life(Lost("connection refused")), 0) == Refuse("connection refused", 5)

    def test_a_caller_at_zero_wakes_it(self) -> None:
        target = life(Arrived(), start=ASLEEP)
        assert target.phase == Waking(0, confirmed=False, for_callers=True)
        assert desired_replicas(target) == 1

    def test_five_hundred_callers_want_one_replica(self) -> None:
        assert desired_replicas(life(*[Arrived()] * 500, start=ASLEEP)) == 1

    def test_ready_admits_with_the_endpoints_seen(self) -> None:
        assert admits(life(Observed(READY), start=WOKEN), 0) == Serve(HERE)

    def test_the_last_callers_leaving_does_not_stop_the_wake(self) -> None:
        target = life(Left(), start=WOKEN)
        assert isinstance(target.phase, Waking)
        assert desired_replicas(target) == 1

    def test_where_it_is_to_be_given_up_the_last_callers_leaving_stops_the_wake(self) -> None:
        target = step(step(WOKEN, Arrived(), 0, GIVING_UP), Left(), 0, GIVING_UP)
        assert isinstance(target.phase, Waking)
        target = step(target, Left(), 0, GIVING_UP)
        assert target.phase == Draining(0, SleepReason.ABANDONED, confirmed=False)
        assert desired_replicas(target) == 0
        assert isinstance(step(target, Arrived(), 0, GIVING_UP).phase, Waking)

    @pytest.mark.parametrize("asked", ["before", "within"])
    def test_a_wake_that_an_operator_wants_is_never_given_up(self, asked: str) -> None:
        events: list[Event] = (
            [WakeAsked(), Arrived(), Left()] if asked == "before" else [Arrived(), WakeAsked(), Left()]
        )
        target = ASLEEP
        for event in events:
            target = step(target, event, 0, GIVING_UP)
        assert isinstance(target.phase, Waking)

    def test_idle_counts_from_the_end_of_the_last_lease(self) -> None:
        target = life(Arrived(), Granted(), 1000, Released(), start=AWAKE)
        assert next_deadline(target, LIMITS) == 1300

    def test_a_lease_has_no_deadline(self) -> None:
        assert next_deadline(life(Arrived(), Granted(), start=AWAKE), LIMITS) is None

    def test_idle_for_the_whole_timeout_is_put_to_sleep(self) -> None:
        target = life(300, Tick(), start=AWAKE)
        assert target.phase == Draining(300, SleepReason.IDLE, confirmed=False)
        assert desired_replicas(target) == 0

    def test_a_tick_too_early_changes_nothing(self) -> None:
        assert life(299.9, Tick(), start=AWAKE) == AWAKE

    def test_a_caller_between_the_decision_and_the_write_keeps_it_awake(self) -> None:
        target = life(300, Tick(), Arrived(), start=AWAKE)
        assert isinstance(target.phase, Ready)

    def test_a_caller_after_the_write_wakes_it_again_once_it_is_down(self) -> None:
        target = life(300, Tick(), ScaleStarted(0), Arrived(), start=AWAKE)
        assert isinstance(target.phase, Draining)
        target = life(Observed(ENDING), Scaled(0), start=target)
        assert isinstance(target.phase, Draining)
        assert isinstance(life(Observed(NONE), start=target).phase, Waking)

    def test_a_write_that_fails_while_a_caller_waits_serves_the_caller(self) -> None:
        target = life(300, Tick(), ScaleStarted(0), Arrived(), ScaleFailed(0, "timeout", False), start=AWAKE)
        assert isinstance(target.phase, Ready)

    def test_a_target_that_may_not_be_scaled_down_stays_ready(self) -> None:
        target = life(300, Tick(), ScaleStarted(0), ScaleFailed(0, "forbidden", True), start=AWAKE)
        assert target.phase == Ready(300, 300) or isinstance(target.phase, Ready)
        assert next_deadline(target, LIMITS) is not None

    def test_scaled_up_by_someone_else_is_adopted(self) -> None:
        assert isinstance(life(Observed(STARTING), start=ASLEEP).phase, Waking)
        assert isinstance(life(Observed(READY), start=ASLEEP).phase, Ready)

    def test_scaled_down_by_someone_else_is_respected(self) -> None:
        target = life(Observed(ENDING), start=AWAKE)
        assert isinstance(target.phase, Draining)
        assert desired_replicas(target) == 0
        assert life(Observed(NONE), start=target).phase == Asleep(0)

    def test_scaled_down_under_a_lease_is_left_alone_and_a_new_caller_wakes_it(self) -> None:
        target = life(Arrived(), Granted(), Observed(ENDING), Observed(NONE), start=AWAKE)
        assert isinstance(target.phase, Draining)
        assert desired_replicas(target) is None
        assert isinstance(life(Arrived(), start=target).phase, Waking)
        assert isinstance(life(Released(), start=target).phase, Asleep)

    def test_scaled_down_by_someone_else_during_the_wake_tells_the_callers_and_does_not_fight(self) -> None:
        target = life(Observed(NONE), start=WOKEN)
        assert isinstance(target.phase, Failed)
        assert "someone else" in target.phase.cause
        assert desired_replicas(target) == 0
        assert isinstance(life(Arrived(), start=target).phase, Waking)

    def test_an_old_zero_seen_while_the_write_is_on_its_way_is_not_someone_elses(self) -> None:
        target = life(Arrived(), ScaleStarted(1), Observed(NONE), start=ASLEEP)
        assert isinstance(target.phase, Waking)

    def test_a_start_that_failed_fails_its_callers_and_backs_off(self) -> None:
        target = life(Observed(DEAD), start=WOKEN)
        assert admits(target, 0) == Refuse("it exited with status 1", 5)
        assert isinstance(life(4.9, Arrived(), start=target).phase, Failed)
        assert isinstance(life(5, Arrived(), start=target).phase, Waking)

    def test_a_process_that_dies_before_its_scale_call_returns_has_failed(self) -> None:
        target = life(Arrived(), ScaleStarted(1), Observed(STARTING), Observed(DEAD), Scaled(1), start=ASLEEP)
        assert isinstance(target.phase, Failed)

    def test_a_zero_of_our_own_that_lands_during_a_new_wake_is_not_someone_elses(self) -> None:
        failed = life(Observed(replace(READY, endpoints=(), failure="it broke")), start=WOKEN)
        target = life(ScaleStarted(0), WakeAsked(), Arrived(), Observed(READY), Observed(NONE), start=failed)
        assert isinstance(target.phase, Waking)
        target = life(Scaled(0), start=target)
        assert isinstance(target.phase, Waking)
        assert desired_replicas(target) == 1

    def test_the_back_off_doubles_up_to_its_bound_and_ends_with_a_success(self) -> None:
        target, pauses, now = ASLEEP, [], 0.0
        for _ in range(8):
            for event in (Arrived(), ScaleStarted(1), Observed(STARTING), Scaled(1), Observed(DEAD), Left()):
                target = step(target, event, now, LIMITS)
            assert isinstance(target.phase, Failed)
            pauses.append(target.phase.retry_at - now)
            now = target.phase.retry_at
        assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]
        assert life(Observed(READY), start=WOKEN).failures == 0

    def test_a_ready_target_that_dies_is_woken_by_the_next_caller_at_once(self) -> None:
        target = life(Observed(DEAD), start=AWAKE)
        assert isinstance(target.phase, Failed)
        assert isinstance(life(Arrived(), start=target).phase, Waking)

    def test_a_failed_target_gives_its_gpu_back(self) -> None:
        target = life(Observed(replace(STARTING, failure="ImagePullBackOff")), start=WOKEN)
        assert isinstance(target.phase, Failed)
        assert desired_replicas(target) == 0
        target = life(ScaleStarted(0), Observed(NONE), Scaled(0), start=target)
        assert isinstance(target.phase, Failed)
        assert isinstance(life(Observed(STARTING), start=target).phase, Waking)

    def test_a_start_that_takes_too_long_has_failed_with_its_last_trouble(self) -> None:
        target = life(Arrived(), ScaleStarted(1), ScaleFailed(1, "the API server is away", False), start=ASLEEP)
        target = life(1800, Tick(), start=target)
        assert isinstance(target.phase, Failed)
        assert "the API server is away" in target.phase.cause

    def test_a_scale_that_is_refused_fails_the_wake(self) -> None:
        target = life(Arrived(), ScaleStarted(1), ScaleFailed(1, "forbidden", True), start=ASLEEP)
        assert admits(target, 0) == Refuse("forbidden", 5)

    def test_readiness_lost_is_waited_for(self) -> None:
        target = life(Observed(STARTING), start=AWAKE)
        assert isinstance(target.phase, Waking)
        assert isinstance(life(Observed(READY), start=target).phase, Ready)

    def test_stop_lets_leases_end_first(self) -> None:
        target = life(Arrived(), Granted(), StopAsked(), start=AWAKE)
        assert desired_replicas(target) is None
        assert admits(target, 0) == Wait()
        assert desired_replicas(life(Released(), start=target)) == 0

    def test_a_caller_does_not_undo_a_stop_but_wakes_it_afterwards(self) -> None:
        target = life(StopAsked(), Arrived(), start=AWAKE)
        assert desired_replicas(target) == 0
        target = life(ScaleStarted(0), Observed(NONE), Scaled(0), start=target)
        assert isinstance(target.phase, Waking)

    def test_a_stop_during_the_wake_tells_the_callers(self) -> None:
        target = life(StopAsked(), start=WOKEN)
        assert isinstance(target.phase, Failed)
        assert "operator" in target.phase.cause

    def test_a_stop_while_the_scale_up_is_on_its_way_is_not_lost(self) -> None:
        target = life(Arrived(), ScaleStarted(1), Left(), StopAsked(), Observed(STARTING), Scaled(1), start=ASLEEP)
        assert isinstance(target.phase, Draining)
        assert desired_replicas(target) == 0

    def test_an_operators_wake_needs_no_caller_and_no_back_off(self) -> None:
        assert desired_replicas(life(WakeAsked(), start=ASLEEP)) == 1
        failed = life(Observed(DEAD), start=WOKEN)
        assert isinstance(life(WakeAsked(), start=failed).phase, Waking)

    def test_an_operators_wake_during_the_drain_wakes_it_right_after(self) -> None:
        target = life(300, Tick(), ScaleStarted(0), WakeAsked(), Observed(NONE), Scaled(0), start=AWAKE)
        assert isinstance(target.phase, Waking)

    def test_what_is_held_back_wants_no_replica_and_its_callers_wait(self) -> None:
        target = life(HeldBack("llama has its GPUs"), Arrived(), start=ASLEEP)
        assert target.phase == Queued(0, for_callers=True)
        assert admits(target, 0) == Wait()
        assert desired_replicas(target) == 0
        assert next_deadline(target, LIMITS) is None

    def test_what_is_let_go_is_woken_and_its_start_counts_from_then(self) -> None:
        target = life(HeldBack("llama has its GPUs"), Arrived(), 900, HeldBack(None), start=ASLEEP)
        assert target.phase == Waking(900, confirmed=False, for_callers=True)

    def test_what_nobody_waits_for_any_more_gives_up_its_place(self) -> None:
        assert isinstance(life(HeldBack("x"), Arrived(), Left(), start=ASLEEP).phase, Asleep)
        assert isinstance(life(HeldBack("x"), WakeAsked(), Arrived(), Left(), start=ASLEEP).phase, Queued)

    def test_what_runs_goes_on_though_it_is_held_back(self) -> None:
        assert isinstance(life(HeldBack("x"), Arrived(), Granted(), Released(), start=AWAKE).phase, Ready)
        assert isinstance(life(HeldBack("x"), Observed(READY), start=WOKEN).phase, Ready)

    def test_scaled_up_by_someone_else_it_is_adopted_though_it_is_held_back(self) -> None:
        target = life(HeldBack("x"), Arrived(), Observed(STARTING), start=ASLEEP)
        assert target.phase == Waking(0, confirmed=True)

    def test_who_gives_way_lets_its_leases_end_and_queues_for_those_who_came_meanwhile(self) -> None:
        target = life(HeldBack("x"), Arrived(), Granted(), WayGiven(SleepReason.SWITCHED), Arrived(), start=AWAKE)
        assert target.phase == Draining(0, SleepReason.SWITCHED, confirmed=False)
        assert desired_replicas(target) is None
        target = life(Released(), ScaleStarted(0), Observed(NONE), Scaled(0), start=target)
        assert isinstance(target.phase, Queued)

    def test_who_never_gets_a_turn_is_told_why(self) -> None:
        target = life(HeldBack("x"), Arrived(), WakeRefused("it needs 8 GPUs"), start=ASLEEP)
        assert admits(target, 0) == Refuse("it needs 8 GPUs", 5)

    def test_what_is_always_on_needs_no_caller_and_never_idles(self) -> None:
        limits = Limits(math.inf, 1800, always_on=True)
        target = step(Target(REF), Observed(NONE), 0, limits)
        assert isinstance(target.phase, Waking)
        target = step(target, Observed(READY), 0, limits)
        assert next_deadline(target, limits) is None
        failed = step(target, Observed(DEAD), 0, limits)
        assert isinstance(failed.phase, Failed)
        due = next_deadline(failed, limits)
        assert due is not None
        assert isinstance(step(failed, Tick(), due, limits).phase, Waking)

    def test_a_wake_that_was_given_up_and_is_wanted_by_an_operator_is_the_operators(self) -> None:
        target = Target(REF)
        for event in (Arrived(), Observed(NONE), Observed(Observation(2, 2)), Left(), WakeAsked()):
            target = step(target, event, 0, GIVING_UP)
        assert target.phase == Waking(0, confirmed=True)

    @pytest.mark.parametrize("ended", [Left(), StopAsked()], ids=str)
    def test_a_wake_given_up_before_it_began_waits_for_the_leases_of_before(self, ended: Event) -> None:
        target = life(HeldBack("x"), Arrived(), Granted(), StopAsked(), Observed(NONE), start=AWAKE)
        target = life(WakeAsked() if ended == StopAsked() else Arrived(), ended, start=target)
        assert desired_replicas(target) != 0
        assert isinstance(life(Released(), Observed(NONE), start=target).phase, Asleep)

    def test_awake_it_has_as_many_replicas_as_are_recommended(self) -> None:
        assert desired_replicas(life(Recommended(3), start=AWAKE)) == 3
        assert desired_replicas(life(Recommended(3), start=WOKEN)) == 3
        assert desired_replicas(life(Recommended(3), Observed(Observation(5, 5, HERE)), start=AWAKE)) == 3

    def test_without_a_recommendation_it_has_what_somebody_gave_it(self) -> None:
        target = life(Recommended(3), Recommended(None), Observed(Observation(5, 5, HERE)), start=AWAKE)
        assert desired_replicas(target) == 5

    def test_asleep_a_recommendation_wakes_nobody(self) -> None:
        target = life(Recommended(3), start=ASLEEP)
        assert isinstance(target.phase, Asleep)
        assert desired_replicas(target) == 0

    def test_a_wake_begins_with_one_replica_whatever_was_recommended_before(self) -> None:
        assert desired_replicas(life(Recommended(3), Arrived(), start=ASLEEP)) == 1

    def test_engines_that_are_busy_past_the_proxy_are_not_idle(self) -> None:
        target = life(299.0, Used(), 2.0, Tick(), start=AWAKE)
        assert target.phase == Ready(since=0, idle_since=299.0)

    @pytest.mark.parametrize(
        ("target", "event"),
        [
            pytest.param(ASLEEP, Left(), id="nobody waits"),
            pytest.param(ASLEEP, Released(), id="nobody has a lease"),
            pytest.param(WOKEN, Granted(), id="a grant before it is ready"),
            pytest.param(AWAKE, Recommended(0), id="a recommendation to sleep"),
        ],
    )
    def test_an_event_that_cannot_happen_is_refused(self, target: Target, event: Event) -> None:
        with pytest.raises(ValueError, match=r"nobody|granted|recommendation"):
            step(target, event, 0, LIMITS)


FOLLOWS = PeersTold(Shared(leads=False, agreed=False))
LEADS = PeersTold(Shared(agreed=False))


class TestSharedWithOtherProxies:
    def test_a_follower_wakes_it(self) -> None:
        assert desired_replicas(life(FOLLOWS, Arrived(), start=ASLEEP)) == 1
        assert desired_replicas(life(FOLLOWS, Arrived(), Recommended(3), start=ASLEEP)) == 3

    def test_a_follower_never_puts_it_to_sleep(self) -> None:
        follower = life(FOLLOWS, start=AWAKE)
        assert next_deadline(follower, LIMITS) is None
        assert life(10_000, Tick(), start=follower) == follower
        assert desired_replicas(life(StopAsked(), start=follower)) is None
        assert desired_replicas(life(FOLLOWS, Observed(DEAD), start=WOKEN)) is None

    def test_a_follower_writes_no_other_number(self) -> None:
        assert desired_replicas(life(FOLLOWS, Recommended(3), start=AWAKE)) == 1

    def test_the_leader_waits_until_all_have_agreed(self) -> None:
        target = life(LEADS, 300, Tick(), start=AWAKE)
        assert target.phase == Draining(300, SleepReason.IDLE, confirmed=False)
        assert desired_replicas(target) is None
        assert taken_down(target) is SleepReason.IDLE
        assert desired_replicas(life(PeersTold(Shared()), start=target)) == 0

    @pytest.mark.parametrize(
        "shared", [Shared(told=False), Shared(in_use=True), Shared(leads=False)], ids=["not told", "in use", "follows"]
    )
    def test_what_may_be_used_elsewhere_is_not_idle(self, shared: Shared) -> None:
        target = life(PeersTold(shared), 10_000, Tick(), start=AWAKE)
        assert isinstance(target.phase, Ready)
        assert next_deadline(target, LIMITS) is None

    def test_idle_counts_from_its_last_use_anywhere(self) -> None:
        assert next_deadline(life(400, PeersTold(Shared(), used_at=100), start=AWAKE), LIMITS) == 400

    @pytest.mark.parametrize(
        "shared",
        [Shared(in_use=True, waiting=1), Shared(in_use=True), Shared(leads=False)],
        ids=["somebody waits at a peer", "somebody is answered at a peer", "another leads by now"],
    )
    def test_a_use_elsewhere_before_the_write_keeps_it_awake(self, shared: Shared) -> None:
        assert isinstance(life(LEADS, 300, Tick(), PeersTold(shared), start=AWAKE).phase, Ready)

    def test_a_stop_waits_for_the_leases_of_others(self) -> None:
        target = life(LEADS, StopAsked(), PeersTold(Shared(in_use=True, agreed=False)), start=AWAKE)
        assert target.phase == Draining(0, SleepReason.STOPPED, confirmed=False)
        assert desired_replicas(target) is None

    def test_while_another_takes_it_down_nobody_is_let_in(self) -> None:
        yields = PeersTold(Shared(leads=False, yields=SleepReason.IDLE))
        target = life(yields, start=AWAKE)
        assert isinstance(target.phase, Ready)
        assert admits(target, 0) == Wait()
        assert admits(life(FOLLOWS, start=target), 0) == Serve(HERE)

    def test_who_waited_while_another_took_it_down_wakes_it_again(self) -> None:
        yields = PeersTold(Shared(leads=False, yields=SleepReason.IDLE))
        target = life(yields, Arrived(), Observed(ENDING), start=AWAKE)
        assert target.phase == Draining(0, SleepReason.IDLE, confirmed=True)
        assert desired_replicas(life(Observed(NONE), start=target)) == 1

    def test_who_waited_for_a_wake_that_another_stopped_is_told_so(self) -> None:
        yields = PeersTold(Shared(leads=False, yields=SleepReason.STOPPED))
        target = life(yields, Observed(NONE), start=WOKEN)
        assert isinstance(target.phase, Failed)
        assert "operator" in target.phase.cause

    def test_the_leader_wakes_it_for_those_who_wait_elsewhere(self) -> None:
        waits = PeersTold(Shared(in_use=True, waiting=2))
        assert desired_replicas(life(waits, start=ASLEEP)) == 1
        queued = life(HeldBack("x"), waits, start=ASLEEP)
        assert isinstance(queued.phase, Queued)
        assert isinstance(life(PeersTold(Shared()), start=queued).phase, Asleep)

    def test_a_failed_start_is_given_back_once_all_have_agreed(self) -> None:
        target = life(LEADS, Observed(replace(STARTING, failure="it broke")), start=WOKEN)
        assert isinstance(target.phase, Failed)
        assert desired_replicas(target) is None
        assert taken_down(target) is SleepReason.GIVEN_UP
        assert desired_replicas(life(PeersTold(Shared()), start=target)) == 0


observations = st.builds(
    Observation,
    replicas=st.integers(0, 3),
    live=st.integers(0, 3),
    endpoints=st.sampled_from([(), HERE]),
    failure=st.sampled_from([None, None, None, "it broke"]),
)


class Life(RuleBasedStateMachine):
    """Random histories of one target: what callers, operators, the backend and the clock can do to it."""

    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.target = Target(REF)

    def apply(self, event: Event) -> None:
        self.target = step(self.target, event, self.now, self.limits)

    @rule(seconds=st.sampled_from([0.001, 1.0, 5.0, 299.0, 300.0, 1800.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.apply(Tick())

    @rule(
        event=st.sampled_from(
            [
                Arrived(),
                WakeAsked(),
                StopAsked(),
                Tick(),
                Lost("away"),
                WayGiven(SleepReason.SWITCHED),
                HeldBack("another has its GPUs"),
                HeldBack(None),
                WakeRefused("it never fits"),
                Recommended(None),
                Recommended(1),
                Recommended(4),
                Used(),
            ]
        )
    )
    def something_happens(self, event: Event) -> None:
        self.apply(event)

    @precondition(lambda self: self.target.waiting)
    @rule()
    def a_caller_leaves(self) -> None:
        self.apply(Left())

    @precondition(lambda self: self.target.waiting and isinstance(self.target.phase, Ready))
    @rule()
    def a_lease_is_granted(self) -> None:
        self.apply(Granted())

    @precondition(lambda self: self.target.in_flight)
    @rule()
    def a_lease_ends(self) -> None:
        self.apply(Released())

    @rule(observation=observations)
    def the_backend_tells(self, observation: Observation) -> None:
        self.apply(Observed(observation))

    @precondition(lambda self: self.target.sent is None and desired_replicas(self.target) is not None)
    @rule()
    def a_write_begins(self) -> None:
        desired = desired_replicas(self.target)
        assert desired is not None
        self.apply(ScaleStarted(desired))

    @precondition(lambda self: self.target.sent is not None)
    @rule(final=st.sampled_from([None, True, False]))
    def a_write_ends(self, final: bool | None) -> None:
        assert self.target.sent is not None
        sent = self.target.sent
        self.apply(Scaled(sent) if final is None else ScaleFailed(sent, "no", final))

    @invariant()
    def counts_are_never_negative(self) -> None:
        assert self.target.waiting >= 0
        assert self.target.in_flight >= 0
        assert self.target.failures >= 0

    @invariant()
    def desired_is_within_bounds(self) -> None:
        desired = desired_replicas(self.target)
        seen = self.target.observed.replicas if self.target.observed else 0
        assert desired is None or 0 <= desired <= max(1, seen, self.target.recommended or 1)
        if not self.target.shared.leads:
            assert desired is None or desired >= seen
        elif isinstance(self.target.phase, Waking | Ready) and self.target.recommended is not None:
            assert desired == self.target.recommended

    @invariant()
    def a_target_with_a_lease_never_desires_zero(self) -> None:
        assert not (self.target.in_flight and desired_replicas(self.target) == 0)

    @invariant()
    def nobody_waits_on_a_sleeping_target(self) -> None:
        assert not (self.target.waiting and isinstance(self.target.phase, Asleep))

    @invariant()
    def time_moves_on(self) -> None:
        deadline = next_deadline(self.target, self.limits)
        if deadline is not None:
            after = next_deadline(step(self.target, Tick(), max(self.now, deadline), self.limits), self.limits)
            assert after is None or after > deadline

    @invariant()
    def only_a_target_with_an_endpoint_serves(self) -> None:
        admission = admits(self.target, self.now)
        assert not isinstance(admission, Serve) or admission.endpoints

    @invariant()
    def it_has_settled(self) -> None:
        assert step(self.target, Lost("x"), self.now, self.limits) == self.target or isinstance(
            self.target.phase, Unknown
        )


class LifeOfTheShared(Life):
    """The same, with other proxies."""

    @rule(
        shared=st.builds(
            Shared,
            *[st.booleans()] * 3,
            waiting=st.integers(0, 2),
            agreed=st.booleans(),
            yields=st.sampled_from([None, None, SleepReason.IDLE, SleepReason.STOPPED]),
        ),
        used_ago=st.none() | st.floats(0, 1000),
    )
    def the_peers_tell(self, shared: Shared, used_ago: float | None) -> None:
        self.apply(PeersTold(shared, None if used_ago is None else self.now - used_ago))

    @precondition(lambda self: self.target.waiting and isinstance(admits(self.target, self.now), Serve))
    @rule()
    def a_lease_is_granted(self) -> None:
        self.apply(Granted())

    @invariant()
    def zero_is_wanted_by_all_or_not_at_all(self) -> None:
        shared, desired = self.target.shared, desired_replicas(self.target)
        if self.target.observed and self.target.observed.replicas and not (shared.leads and shared.agreed):
            assert desired != 0

    @invariant()
    def nobody_is_let_in_while_another_takes_it_down(self) -> None:
        assert self.target.shared.yields is None or not isinstance(admits(self.target, self.now), Serve)


class LifeOfTheAbandoned(Life):
    """The same, where a wake that nobody waits for is given up."""

    limits = GIVING_UP

    @invariant()
    def no_wake_of_callers_goes_on_without_one(self) -> None:
        phase = self.target.phase
        assert not (isinstance(phase, Waking) and phase.for_callers and not self.target.waiting)


class LifeOfTheAlwaysOn(Life):
    """The same, of a target that is to be awake whoever asks."""

    limits = Limits(math.inf, 1800, always_on=True)

    @invariant()
    def it_never_just_sleeps(self) -> None:
        assert not isinstance(self.target.phase, Asleep)


LifeOfTheShared.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLifeOfTheShared = LifeOfTheShared.TestCase
LifeOfTheAlwaysOn.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLifeOfTheAlwaysOn = LifeOfTheAlwaysOn.TestCase
LifeOfTheAbandoned.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLifeOfTheAbandoned = LifeOfTheAbandoned.TestCase
Life.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


@given(st.lists(st.sampled_from([NONE, STARTING, READY, ENDING]), min_size=1, max_size=6), st.integers(1, 3))
def test_with_a_backend_that_obeys_every_caller_is_served(seen: list[Observation], callers: int) -> None:
    target = Target(REF)
    for observation in seen:
        target = step(target, Observed(observation), 0, LIMITS)
    for _ in range(callers):
        target = step(target, Arrived(), 1000, LIMITS)
    for _ in range(4):  # the backend does what is desired, and reports it
        desired = desired_replicas(target)
        assert desired is not None
        if target.observed is None or desired != target.observed.replicas:
            target = step(target, ScaleStarted(desired), 1000, LIMITS)
            target = step(target, Observed(READY if desired else NONE), 1000, LIMITS)
            target = step(target, Scaled(desired), 1000, LIMITS)
        elif desired and not target.observed.endpoints:
            target = step(target, Observed(READY), 1000, LIMITS)
        elif not desired:
            target = step(target, Observed(NONE), 1000, LIMITS)
    for _ in range(callers):
        assert isinstance(admits(target, 1000), Serve)
        target = step(target, Granted(), 1000, LIMITS)
    assert target.in_flight == callers
