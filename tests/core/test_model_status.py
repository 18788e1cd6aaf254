from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.catalogue import Clash
from vllm_chill.core.model_status import Condition, Facts, Memory, is_worth_writing, status_of
from vllm_chill.core.objects import Json
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Endpoint,
    Failed,
    Limits,
    Observation,
    Phase,
    Progress,
    Queued,
    Ready,
    SleepReason,
    Stage,
    Target,
    TargetRef,
    Unknown,
    Waking,
)

REF = TargetRef("ai-apps", "vllm-a")
LIMITS = Limits(idle_seconds=300, start_seconds=1800)
IN_PLACE = Condition("UpToDate", True, "Applied")
READY = Observation(1, 1, (Endpoint("10.0.0.1", 8000),))
AT, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def target(phase: Phase, observed: Observation | None = None, **more: Any) -> Target:
    return Target(REF, phase, observed=observed, **more)


def facts(of: Target | None = None, **more: Any) -> Facts:
    given: dict[str, Any] = {"problems": (), "runs": True, "deleting": False, "target": of, "workload": IN_PLACE}
    return Facts(**{**given, **more})


def told(of: Facts, before: Json | None = None) -> Json:
    return status_of(of, before or {}, 3, AT)


def conditions(status: Json) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


WAKING = Observation(1, 1, progress=Progress(Stage.SCHEDULING, "0/3 nodes are available"))


@pytest.mark.parametrize(
    ("of", "phase", "message", "available"),
    [
        pytest.param(None, "Unknown", "", ("Unknown", "NotSeenYet"), id="not looked at yet"),
        pytest.param(target(Unknown("it is away")), "Unknown", "it is away", ("Unknown", "NotSeenYet"), id="not seen"),
        pytest.param(target(Asleep(0)), "Asleep", "", ("False", "Asleep"), id="asleep"),
        pytest.param(
            target(Queued(0), held_back="b is awake"), "Queued", "b is awake", ("False", "Queued"), id="queued"
        ),
        pytest.param(
            target(Waking(0, confirmed=True), WAKING),
            "Waking",
            "waiting for a node (0/3 nodes are available)",
            ("False", "Waking"),
            id="waking",
        ),
        pytest.param(
            target(Waking(0, confirmed=False, trouble="a timeout")),
            "Waking",
            "waiting for a replica; the last trouble was: a timeout",
            ("False", "Waking"),
            id="waking with trouble",
        ),
        pytest.param(target(Ready(0, 0), READY), "Ready", "", ("True", "Ready"), id="ready"),
        pytest.param(
            target(Draining(0, SleepReason.SWITCHED, confirmed=False), READY),
            "Draining",
            "another model takes its GPUs",
            ("False", "Draining"),
            id="draining",
        ),
        pytest.param(
            target(Failed(0, "no such image.", 5, confirmed=False)),
            "Failed",
            "no such image",
            ("False", "Failed"),
            id="failed",
        ),
    ],
)
def test_the_phase_of_the_target_is_told(
    of: Target | None, phase: str, message: str, available: tuple[str, str]
) -> None:
    status = told(facts(of))
    assert (status["phase"], status["message"]) == (phase, message)
    assert conditions(status) == {
        "Valid": ("True", "SpecAccepted"),
        "UpToDate": ("True", "Applied"),
        "Available": available,
        "Clash": ("False", "NamesAreItsOwn"),
    }


def test_replicas_are_those_that_are_there() -> None:
    assert told(facts(target(Waking(0, confirmed=True), Observation(2, 1))))["replicas"] == 1
    assert told(facts())["replicas"] == 0


def test_every_problem_of_a_spec_is_told() -> None:
    status = told(facts(problems=("spec.a: bad", "spec.b: worse"), runs=False))
    assert status["phase"] == "Invalid"
    assert status["message"] == "its spec is not accepted: spec.a: bad; spec.b: worse"
    [valid] = [each for each in status["conditions"] if each["type"] == "Valid"]
    assert (valid["status"], valid["message"]) == ("False", "spec.a: bad; spec.b: worse")


def test_an_earlier_version_that_is_served_is_told_with_the_problems_of_the_new_one() -> None:
    status = told(facts(target(Ready(0, 0), READY), problems=("spec.a: bad",)))
    assert status["phase"] == "Ready"
    assert status["message"] == "its spec is not accepted; its earlier version is served: spec.a: bad"
    assert conditions(status)["Available"] == ("True", "Ready")


def test_a_workload_that_waits_is_told() -> None:
    waits = Condition("UpToDate", False, "WaitsForIdle", "it is replaced once nobody uses it")
    status = told(facts(target(Ready(0, 0), READY), workload=waits))
    assert (status["phase"], status["message"]) == ("Ready", "it is replaced once nobody uses it")
    assert conditions(status)["UpToDate"] == ("False", "WaitsForIdle")


def test_a_model_whose_workload_is_somebody_elses_has_failed() -> None:
    status = told(facts(runs=False, workload=Condition("UpToDate", False, "Conflict", "it is not ours")))
    assert (status["phase"], status["message"]) == ("Failed", "it is not ours")
    assert conditions(status)["Available"] == ("False", "Failed")


def test_names_that_an_older_model_has_are_told() -> None:
    status = told(facts(clashes=(Clash("gpt", "b", "a"),)))
    assert conditions(status)["Clash"] == ("True", "NamesTaken")
    assert status["message"] == 'it is not served under every name: "gpt" is the name of a, which is older'


def test_one_that_is_being_deleted_says_so() -> None:
    status = told(facts(target(Draining(0, SleepReason.RETIRED, confirmed=False)), deleting=True))
    assert (status["phase"], status["message"]) == ("Deleting", "its model is gone")


def test_a_condition_keeps_its_time_while_its_status_is_the_same() -> None:
    before = told(facts(target(Asleep(0))))
    after = status_of(facts(target(Ready(0, 0), READY)), before, 4, LATER)
    times = {each["type"]: each["lastTransitionTime"] for each in after["conditions"]}
    assert times == {"Valid": AT, "UpToDate": AT, "Available": LATER, "Clash": AT}
    assert {each["observedGeneration"] for each in after["conditions"]} == {4}


def test_the_same_facts_are_not_worth_a_write_whenever_they_are_told() -> None:
    before = told(facts(target(Asleep(0)), last_used=AT))
    assert not is_worth_writing(before, status_of(facts(target(Asleep(9)), last_used=AT), before, 3, LATER))
    assert is_worth_writing({}, before)


@pytest.mark.parametrize(
    ("was", "used", "worth"),
    [
        (None, AT, True),
        (AT, "2026-01-01T00:00:59Z", False),
        (AT, LATER, True),
        (AT, None, False),
        ("nonsense", AT, True),
    ],
    ids=["first", "a little later", "a minute later", "not known any more", "unreadable"],
)
def test_a_last_use_is_worth_a_write_once_a_minute(was: str | None, used: str | None, worth: bool) -> None:
    before = told(facts(target(Asleep(0)), last_used=was))
    assert is_worth_writing(before, told(facts(target(Asleep(0)), last_used=used), before)) is worth


def remembered(*seen: tuple[float, Target]) -> Memory:
    memory = Memory()
    for now, at in seen:
        memory = memory.seen(at, LIMITS, now)
    return memory


def test_a_wake_is_timed_from_its_begin_to_ready() -> None:
    waking = target(Waking(10, confirmed=False))
    confirmed = target(Waking(10, confirmed=True))
    assert remembered((10, waking), (20, confirmed), (45, target(Ready(40, 40)))).last_wake_seconds == 30


def test_a_wake_that_was_found_under_way_is_not_timed() -> None:
    assert remembered((10, target(Waking(10, confirmed=True))), (20, target(Ready(20, 20)))).last_wake_seconds is None


def test_a_wake_that_failed_is_not_timed() -> None:
    failed = target(Failed(20, "no", 25, confirmed=True))
    ready = target(Ready(90, 90))
    assert remembered((10, target(Waking(10, confirmed=False))), (20, failed), (90, ready)).last_wake_seconds is None


def test_it_is_used_while_somebody_has_a_lease_and_until_the_last_one_ends() -> None:
    used = target(Ready(40, 40), in_flight=1)
    assert remembered((50, used)).last_used == 50
    assert remembered((50, used), (80, target(Ready(40, 70)))).last_used == 70


def test_a_use_that_nobody_saw_end_is_known_from_the_idle_timeout() -> None:
    idle = target(Draining(1000, SleepReason.IDLE, confirmed=False))
    assert remembered((50, target(Ready(40, 40))), (1000, idle)).last_used == 700


@given(
    st.lists(
        st.sampled_from(
            [
                Asleep(0),
                Waking(5, confirmed=False),
                Waking(5, confirmed=True),
                Ready(9, 9),
                Draining(9, SleepReason.IDLE, confirmed=True),
                Failed(9, "no", 10, confirmed=True),
                Unknown(),
            ]
        )
    )
)
def test_a_wake_never_took_less_than_no_time(phases: list[Phase]) -> None:
    memory = remembered(*((float(i), target(phase)) for i, phase in enumerate(phases)))
    assert memory.last_wake_seconds is None or memory.last_wake_seconds >= 0
