"""What a variant's object says of itself, and when that is worth a write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.api.resource import without_nulls
from vllm_chill.core.saturation.decision import Reason, Step, VariantDecision
from vllm_chill.core.saturation.fleet import ReplicaLoad, Variant
from vllm_chill.core.saturation.report import Facts, conditions, status_of, write_after_seconds
from vllm_chill.core.saturation.spec import VariantSpec, VariantTarget

Json = dict[str, Any]
_AT, _LATER = "2026-03-02T12:00:00Z", "2026-03-02T12:10:00Z"
_DECIDED, _DECIDED_LATER = "2026-03-02T11:59:30Z", "2026-03-02T12:00:30Z"
_SPEC = VariantSpec("ai-apps", "a", VariantTarget("apps/v1", "Deployment", "vllm"), "org/small")
_LOADS = tuple(ReplicaLoad(f"vllm-{i}", kv=0.9, queue=6.0) for i in range(2))
_STALE = tuple(replace(load, stale=True, age_seconds=90.0) for load in _LOADS)
_VARIANT = Variant("a", accelerator="H100", replicas=2, ready=2, loads=_LOADS)
_DECISION = VariantDecision(
    "a",
    at=100.0,
    before=2,
    replicas=3,
    reason=Reason.SATURATED,
    trail=(
        Step("analyze", "the mean saturation of 2 replicas is 0.912"),
        Step("optimize", "it is the cheapest, and gets 1 replica more", 3),
    ),
    saturation=0.91234,
)
_FACTS = Facts(spec=_SPEC, resolved=True, variant=_VARIANT, decision=_DECISION, decided=_DECIDED, applied=True)


def _status(before: Json | None = None, time: str = _AT, **changes: Any) -> Json:
    return status_of(replace(_FACTS, **changes), before or {}, 7, time)


def _as_kept(status: Json) -> Json:
    kept: Json = without_nulls(status)
    return kept


def _of(kind: str, **changes: Any) -> tuple[bool | None, str, str]:
    [found] = [each for each in conditions(replace(_FACTS, **changes)) if each.type == kind]
    return found.status, found.reason, found.message


def _with(**changes: Any) -> VariantDecision:
    return replace(_DECISION, **changes)


def test_it_says_what_was_decided_and_how_it_came_about() -> None:
    status = _status()
    status.pop("conditions")
    assert status == {
        "desiredOptimizedAlloc": {"lastRunTime": _DECIDED, "accelerator": "H100", "numReplicas": 3},
        "actuation": {"applied": True},
        "currentReplicas": 2,
        "saturation": 0.912,
        "observedGeneration": 7,
        "decision": {
            "time": _DECIDED,
            "reason": "Saturated",
            "trail": [
                {"stage": "analyze", "text": "the mean saturation of 2 replicas is 0.912"},
                {"stage": "optimize", "text": "it is the cheapest, and gets 1 replica more", "replicas": 3},
            ],
        },
    }


def test_an_accelerator_that_nothing_tells_is_said_to_be_unknown() -> None:
    assert _status(variant=replace(_VARIANT, accelerator=""))["desiredOptimizedAlloc"]["accelerator"] == "unknown"


def test_what_was_decided_outlives_who_decided_it() -> None:
    before = _status()
    after = _status(before, decision=None, decided=None, applied=False)
    for key in ("desiredOptimizedAlloc", "actuation", "decision"):
        assert after[key] == before[key]
    assert after["saturation"] is None


def test_of_a_target_that_is_gone_nothing_is_said_as_if_it_were_there() -> None:
    before = _status()
    after = _status(before, resolved=False, variant=None)
    assert (after["currentReplicas"], after["saturation"]) == (None, None)
    assert after["desiredOptimizedAlloc"] == before["desiredOptimizedAlloc"]


def test_before_anything_is_known_nothing_is_claimed() -> None:
    status = status_of(Facts(spec=_SPEC), {}, 1, _AT)
    assert {key for key, value in status.items() if value is not None} == {"observedGeneration", "conditions"}
    assert {each["status"] for each in status["conditions"]} == {"Unknown"}


_FOUND = "Saturation metrics data is available for scaling decisions"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, (True, "TargetFound", "Scale target Deployment vllm found"), id="there"),
        pytest.param(
            {"resolved": False, "variant": None},
            (False, "TargetNotFound", "Scale target Deployment vllm not found"),
            id="deleted",
        ),
        pytest.param(
            {"resolved": False, "variant": None, "trouble": "no LeaderWorkerSet is known"},
            (False, "TargetNotFound", "Scale target Deployment vllm not found: no LeaderWorkerSet is known"),
            id="a kind that there is not",
        ),
        pytest.param({"resolved": None}, (None, "NotSeenYet", ""), id="not looked yet"),
        pytest.param(
            {"taken_by": "older"},
            (False, "TargetTaken", "Scale target Deployment vllm is scaled by the variant older"),
            id="taken",
        ),
        pytest.param(
            {"spec": None, "problems": ("spec: wrong",)},
            (None, "InvalidConfiguration", "The spec is not accepted, so no target is looked for"),
            id="a spec that was never good",
        ),
    ],
)
def test_of_its_target_it_says(changes: Json, expected: tuple[bool | None, str, str]) -> None:
    assert _of("TargetResolved", **changes) == expected


@pytest.mark.parametrize(
    ("variant", "more", "expected"),
    [
        pytest.param({}, {}, (True, "MetricsFound", _FOUND), id="all replicas have told something"),
        pytest.param(
            {"loads": (_LOADS[0], _STALE[1])},
            {},
            (
                True,
                "MetricsFound",
                f"{_FOUND}, but not of 1 of 2 replicas, and without it nothing shrinks",
            ),
            id="what one has told is old",
        ),
        pytest.param(
            {"ready": 3},
            {},
            (True, "MetricsFound", f"{_FOUND}, but not of 1 of 3 replicas, and without it nothing shrinks"),
            id="one has told nothing",
        ),
        pytest.param({"ready": 1}, {}, (True, "MetricsFound", _FOUND), id="one is not ready any more"),
        pytest.param(
            {"loads": _STALE},
            {},
            (
                False,
                "MetricsStale",
                "Saturation metrics are too old to be relied on; nothing shrinks until there are newer ones",
            ),
            id="all of it is old",
        ),
        pytest.param(
            {"loads": _STALE},
            {"source_failure": "Prometheus cannot be reached"},
            (
                False,
                "MetricsStale",
                "Saturation metrics are too old to be relied on, as Prometheus cannot be reached; nothing shrinks "
                "until there are newer ones",
            ),
            id="all of it is old, and why",
        ),
        pytest.param(
            {"loads": ()},
            {"source_failure": "Prometheus cannot be reached"},
            (False, "PrometheusError", "No saturation metrics available, as Prometheus cannot be reached"),
            id="the source has been away for long",
        ),
        pytest.param(
            {"loads": ()},
            {},
            (
                False,
                "MetricsMissing",
                "No saturation metrics available - pods may not be ready or metrics not yet scraped",
            ),
            id="nothing is told",
        ),
        pytest.param(
            {"loads": (), "ready": 0, "replicas": 0},
            {},
            (None, "MetricsMissing", "The target has no replica that could be measured"),
            id="at zero",
        ),
        pytest.param(
            {"loads": (), "ready": 0, "replicas": 0},
            {"decision": _with(reason=Reason.FROM_ZERO)},
            (True, "ScaleFromZero", "Scaled from zero due to pending requests"),
            id="woken",
        ),
        pytest.param(
            {},
            {"decision": _with(reason=Reason.FROM_ZERO)},
            (True, "MetricsFound", _FOUND),
            id="woken and measured",
        ),
    ],
)
def test_of_its_metrics_it_says(variant: Json, more: Json, expected: tuple[bool | None, str, str]) -> None:
    assert _of("MetricsAvailable", variant=replace(_VARIANT, **variant), **more) == expected


def test_without_a_target_there_is_nothing_to_measure() -> None:
    assert _of("MetricsAvailable", variant=None)[:2] == (None, "MetricsMissing")


_TEXT = "it is the cheapest, and gets 1 replica more"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {}, (True, "OptimizationSucceeded", f"saturation decision: {_TEXT} (target: 3 replicas)"), id="decided"
        ),
        pytest.param(
            {"decision": _with(replicas=1, reason=Reason.FROM_ZERO)},
            (True, "ScaleFromZeroMode", f"saturation decision: {_TEXT} (target: 1 replica)"),
            id="woken",
        ),
        pytest.param(
            {"decision": _with(reason=Reason.NO_METRICS, trail=(Step("collect", "nothing is known"),))},
            (False, "MetricsUnavailable", "nothing is known"),
            id="nothing to decide by",
        ),
        pytest.param(
            {"decision": None}, (None, "SkippedProcessing", "Nothing has been decided yet"), id="not decided yet"
        ),
        pytest.param({"failure": "it broke"}, (False, "OptimizationFailed", "it broke"), id="failed"),
        pytest.param(
            {"resolved": False, "variant": None},
            (False, "SkippedProcessing", "Nothing is decided until the target is there"),
            id="no target",
        ),
        pytest.param(
            {"taken_by": "older"},
            (False, "SkippedProcessing", "Nothing is decided, as another variant scales the target"),
            id="taken",
        ),
        pytest.param(
            {"problems": ("spec.a: wrong", "spec.b: wrong too"), "spec": None},
            (False, "InvalidConfiguration", "spec.a: wrong; spec.b: wrong too"),
            id="a spec that was never good",
        ),
        pytest.param(
            {"problems": ("spec.a: wrong",)},
            (False, "InvalidConfiguration", "spec.a: wrong; the earlier version is in force"),
            id="a spec that was good",
        ),
    ],
)
def test_of_its_decision_it_says(changes: Json, expected: tuple[bool | None, str, str]) -> None:
    assert _of("OptimizationReady", **changes) == expected


def test_a_condition_has_been_so_since_it_came_to_be_so() -> None:
    before = _status()
    after = _status(before, _LATER, variant=replace(_VARIANT, loads=_STALE), decision=_with(replicas=4))
    since = {each["type"]: each["lastTransitionTime"] for each in after["conditions"]}
    assert since == {"TargetResolved": _AT, "MetricsAvailable": _LATER, "OptimizationReady": _AT}
    assert {each["observedGeneration"] for each in after["conditions"]} == {7}


_LITTLE, _MUCH = _with(saturation=0.93), _with(saturation=0.99)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"decided": _DECIDED_LATER}, 300, id="the same decided again"),
        pytest.param({"decision": _LITTLE, "decided": _DECIDED_LATER}, 60, id="a little"),
        pytest.param({"decision": _MUCH, "decided": _DECIDED_LATER}, 30, id="a figure that has moved"),
        pytest.param({"decision": _with(trail=(Step("analyze", "other words"), _DECISION.trail[1]))}, 60, id="words"),
        pytest.param({"decision": _with(replicas=4)}, 1, id="another number of replicas"),
        pytest.param({"decision": _with(reason=Reason.LIMITED)}, 1, id="another reason"),
        pytest.param({"decision": _with(saturation=None)}, 1, id="a saturation that is not known"),
        pytest.param({"applied": False}, 1, id="not handed on"),
        pytest.param({"variant": replace(_VARIANT, replicas=3)}, 1, id="replicas that have come"),
        pytest.param({"variant": replace(_VARIANT, loads=_STALE)}, 1, id="metrics that are old"),
        pytest.param({"resolved": False, "variant": None}, 1, id="a target that is gone"),
        pytest.param({"problems": ("spec: wrong",)}, 1, id="a problem"),
    ],
)
def test_a_status_is_written_the_sooner_the_more_it_matters(changes: Json, seconds: float | None) -> None:
    before = _as_kept(_status())
    assert write_after_seconds(before, _status(before, _LATER, **changes), 30.0) == seconds


def test_the_first_status_is_written_at_once() -> None:
    assert write_after_seconds({}, _status(), 30.0) == 1


_ANY = st.builds(
    Facts,
    problems=st.sampled_from([(), ("spec: wrong",)]),
    spec=st.sampled_from([None, _SPEC]),
    resolved=st.sampled_from([None, True, False]),
    trouble=st.sampled_from(["", "it may not be seen"]),
    taken_by=st.sampled_from([None, "older"]),
    variant=st.none()
    | st.builds(
        Variant,
        key=st.just("a"),
        replicas=st.integers(0, 3),
        ready=st.integers(0, 3),
        loads=st.lists(st.sampled_from([*_LOADS, *_STALE]), max_size=3).map(tuple),
    ),
    decision=st.none() | st.builds(_with, reason=st.sampled_from(Reason), replicas=st.integers(0, 3)),
    decided=st.sampled_from([_DECIDED, _DECIDED_LATER]),
    source_failure=st.sampled_from([None, "it is away"]),
    failure=st.sampled_from([None, "it broke"]),
)


@given(_ANY, _ANY)
def test_a_status_is_whole_and_once_written_says_nothing_new(first: Facts, second: Facts) -> None:
    before = _as_kept(status_of(first, {}, 1, _AT))
    after = status_of(second, before, 2, _LATER)
    assert [one["type"] for one in after["conditions"]] == ["TargetResolved", "MetricsAvailable", "OptimizationReady"]
    assert all(one["reason"] for one in after["conditions"])
    assert write_after_seconds(before, after, 30.0) == 1
    assert write_after_seconds(_as_kept(after), status_of(second, after, 2, _LATER), 30.0) is None
