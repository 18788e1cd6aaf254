"""The short steps and the long ones lead to the same target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vllm_chill.core import warm
from vllm_chill.core.events import Arrived, Granted, Released
from vllm_chill.core.lifecycle import desired_replicas, step
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Endpoint,
    Failed,
    Limits,
    Observation,
    Phase,
    Ready,
    Shared,
    SleepReason,
    Target,
    TargetRef,
    Unknown,
    Waking,
)

LIMITS = Limits(idle_seconds=300, start_seconds=1800)
times = st.floats(0, 1000)
counts = st.integers(0, 3)
phases: st.SearchStrategy[Phase] = st.one_of(
    st.builds(Ready, times, times),
    st.just(Unknown()),
    st.builds(Asleep, times),
    st.builds(Waking, times, st.booleans()),
    st.builds(Draining, times, st.sampled_from(SleepReason), st.booleans()),
    st.builds(Failed, times, st.just("no room"), times, st.booleans()),
)
endpoints = st.sampled_from([(), (Endpoint("a", 1),), (Endpoint("a", 1), Endpoint("b", 2))])
observations = st.builds(Observation, counts, counts, endpoints, st.sampled_from([None, "it exited"]))
targets = st.builds(
    Target,
    st.just(TargetRef("n", "t")),
    phases,
    counts,
    counts,
    st.none() | observations,
    st.none() | counts,
    counts,
    shared=st.builds(Shared, yields=st.none() | st.sampled_from(SleepReason)),
)
READY = Target(TargetRef("n", "t"), Ready(1, 2), observed=Observation(1, 1, (Endpoint("a", 1),)))


@given(targets, times)
def test_a_short_lease_is_the_long_one(target: Target, now: float) -> None:
    after = warm.leased(target)
    if after is not None:
        assert after == step(step(target, Arrived(), now, LIMITS), Granted(), now, LIMITS)
        assert after.phase is target.phase
        assert desired_replicas(after) == desired_replicas(target)


@given(targets, times)
def test_a_short_release_is_the_long_one(target: Target, now: float) -> None:
    after = warm.released(target, now)
    if after is not None:
        assert after == step(target, Released(), now, LIMITS)
        assert type(after.phase) is type(target.phase)
        assert desired_replicas(after) == desired_replicas(target)


def test_a_target_that_is_ready_takes_the_short_way() -> None:
    leased = warm.leased(READY)
    assert leased == replace(READY, in_flight=1)
    assert warm.released(leased, 9) == replace(READY, phase=Ready(1, 9))
    assert warm.released(replace(READY, in_flight=2), 9) == replace(READY, in_flight=1)


@pytest.mark.parametrize(
    "target",
    [
        replace(READY, phase=Asleep(0)),
        replace(READY, waiting=1),
        replace(READY, observed=None),
        replace(READY, observed=Observation(0, 0)),
        replace(READY, observed=Observation(1, 1, (Endpoint("a", 1),), failure="it exited")),
        replace(READY, shared=Shared(yields=SleepReason.IDLE)),
    ],
    ids=["asleep", "somebody waits", "not seen", "scaled down", "failed", "another proxy takes it down"],
)
def test_anything_else_takes_the_long_way(target: Target) -> None:
    assert warm.leased(target) is None
    assert warm.released(replace(target, in_flight=1), 9) is None


def test_a_release_without_a_lease_takes_the_long_way_which_says_so() -> None:
    assert warm.released(READY, 9) is None


def test_it_makes_whole_targets() -> None:
    assert list(Target.__struct_fields__) == [
        *["ref", "phase", "waiting", "in_flight", "observed", "sent", "failures", "held_back", "recommended"],
        "shared",
    ]
    said = {"sent": 2, "failures": 3, "held_back": "x", "recommended": 4, "shared": Shared(leads=False)}
    assert warm.leased(replace(READY, **said)) == replace(READY, in_flight=1, **said)
