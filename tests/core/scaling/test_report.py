"""What a policy's object says of itself, and when that is worth a write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vllm_chill.core.scaling.decision import Asked, Decision, Limited, Said
from vllm_chill.core.scaling.policy import Policy, Rule
from vllm_chill.core.scaling.report import Facts, conditions, status_of, write_after_seconds
from vllm_chill.core.scaling.signals import Aggregation, Metric, Signal
from vllm_chill.core.target import Asleep, Failed, Observation, Ready, Target, TargetRef, Unknown, Waking

_REF = TargetRef("ai-apps", "vllm")
_AT, _LATER = "2026-03-02T12:00:00Z", "2026-03-02T12:10:00Z"
_RULE = Rule(Signal(Metric.QUEUE_LENGTH), 10, 10)
_LATENCY = Rule(Signal(Metric.LATENCY, Aggregation.TTFT, 95.0, 60.0), 1000, 800)
_POLICY = Policy("example", 1, 10, (_RULE, _LATENCY))
_DECISION = Decision(
    at=100.0,
    replicas=3,
    recommended=3,
    trail=(Said("recommend", 3, "queue_length is 25 over 1 replica"), Said("bound", 3, "the maximum is 3")),
    asked=(Asked(_RULE, 25.0, 2.4, 3), Asked(_LATENCY, None, None, None)),
)
_READY = Target(_REF, Ready(0, 0), observed=Observation(3, 2))
_FACTS = Facts(policy=_POLICY, target=_READY, decision=_DECISION, at=103.0)


def _status(before: dict[str, Any] | None = None, time: str = _AT, **changes: Any) -> dict[str, Any]:
    return status_of(replace(_FACTS, **changes), before or {}, 7, time)


def _of(kind: str, **changes: Any) -> tuple[bool | None, str]:
    [found] = [each for each in conditions(replace(_FACTS, **changes)) if each.type == kind]
    return found.status, found.reason


def test_it_says_replicas_metrics_and_the_trail() -> None:
    status = _status(last_scale="2026-03-02T11:59:00Z")
    status.pop("conditions")
    assert status == {
        "observedGeneration": 7,
        "currentReplicas": 2,
        "desiredReplicas": 3,
        "lastScaleTime": "2026-03-02T11:59:00Z",
        "metrics": [
            {"metric": "queue_length", "current": 25.0, "target": 10, "ageSeconds": 5, "replicas": 3},
            {"metric": "latency (ttft, p95)", "target": 800},
        ],
        "trail": [
            {"stage": "recommend", "replicas": 3, "reason": "queue_length is 25 over 1 replica"},
            {"stage": "bound", "replicas": 3, "reason": "the maximum is 3"},
        ],
        "override": None,
    }


def test_when_it_was_scaled_last_outlives_who_knew_it() -> None:
    assert _status({"lastScaleTime": _AT})["lastScaleTime"] == _AT


def _with(**changes: Any) -> Decision:
    return replace(_DECISION, **changes)


_NO_DATA = tuple(replace(one, value=None) for one in _DECISION.asked)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("Active", {}, (True, "InForce")),
        ("Active", {"problems": ("spec: wrong",)}, (True, "EarlierSpecInForce")),
        ("Active", {"problems": ("spec: wrong",), "policy": None}, (False, "SpecNotAccepted")),
        ("Active", {"taken_by": "another"}, (False, "TargetTaken")),
        ("Active", {"absent": "there is none"}, (False, "TargetNotFound")),
        ("Active", {"observe_only": True}, (False, "RecommendOnly")),
        ("Active", {"conflict": "KEDA scales it too"}, (False, "Conflict")),
        ("Active", {"policy": replace(_POLICY, paused=True)}, (False, "Paused")),
        (
            "Active",
            {"fronted": False, "target": Target(_REF, Asleep(0), observed=Observation(0, 0))},
            (False, "ScalingDisabled"),
        ),
        ("Active", {"target": Target(_REF, Asleep(0), observed=Observation(0, 0))}, (True, "InForce")),
        ("AbleToScale", {}, (True, "ReadyForNewScale")),
        ("AbleToScale", {"target": None}, (None, "NotSeenYet")),
        ("AbleToScale", {"target": Target(_REF)}, (None, "NotSeenYet")),
        ("AbleToScale", {"target": Target(_REF, Unknown("it may not"))}, (False, "FailedGetScale")),
        ("AbleToScale", {"target": Target(_REF, Failed(0, "no GPU", 9, confirmed=True))}, (False, "FailedStart")),
        (
            "AbleToScale",
            {"target": Target(_REF, Waking(0, confirmed=False, trouble="it may not"))},
            (False, "FailedUpdateScale"),
        ),
        ("AbleToScale", {"decision": _with(limited=Limited.STABILIZED)}, (True, "ScaleDownStabilized")),
        ("AbleToScale", {"decision": _with(limited=Limited.UP_STABILIZED)}, (True, "ScaleUpStabilized")),
        ("ScalingLimited", {}, (False, "DesiredWithinRange")),
        ("ScalingLimited", {"decision": _with(limited=Limited.MAX)}, (True, "TooManyReplicas")),
        ("ScalingLimited", {"decision": _with(limited=Limited.MIN)}, (True, "TooFewReplicas")),
        ("ScalingLimited", {"decision": _with(limited=Limited.UP)}, (True, "ScaleUpLimit")),
        ("ScalingLimited", {"decision": _with(limited=Limited.DOWN)}, (True, "ScaleDownLimit")),
        ("ScalingLimited", {"decision": _with(limited=Limited.STABILIZED)}, (False, "DesiredWithinRange")),
        ("ScalingLimited", {"decision": None}, (None, "NotDecidedYet")),
        ("ScalingLimited", {"decision": None, "target": Target(_REF, Asleep(0))}, (None, "Asleep")),
        ("MetricsAvailable", {}, (True, "SomeMetricsMissing")),
        ("MetricsAvailable", {"decision": _with(asked=_DECISION.asked[:1])}, (True, "ValidMetricFound")),
        ("MetricsAvailable", {"decision": _with(asked=_NO_DATA, measured=False)}, (False, "NoData")),
        (
            "MetricsAvailable",
            {"decision": _with(asked=_NO_DATA, measured=False, fallen_back=True)},
            (False, "FallenBack"),
        ),
        ("MetricsAvailable", {"decision": None}, (None, "NotDecidedYet")),
        ("Conflict", {}, (False, "NoOtherWriter")),
        ("Conflict", {"conflict": "KEDA scales it too"}, (True, "OtherWriter")),
        ("Conflict", {"taken_by": "another"}, (True, "TargetTaken")),
    ],
)
def test_each_condition_says_what_is_so(kind: str, changes: dict[str, Any], expected: tuple[bool | None, str]) -> None:
    assert _of(kind, **changes) == expected


def test_a_condition_has_been_so_since_it_came_to_be_so() -> None:
    before = _status()
    after = _status(before, _LATER, conflict="KEDA scales it too")
    since = {each["type"]: each["lastTransitionTime"] for each in after["conditions"]}
    assert (since["AbleToScale"], since["Conflict"], since["Active"]) == (_AT, _LATER, _LATER)
    assert {each["observedGeneration"] for each in after["conditions"]} == {7}


def test_the_limit_that_it_meets_is_told() -> None:
    [limited] = [
        c for c in conditions(replace(_FACTS, decision=_with(limited=Limited.MAX))) if c.status and "Lim" in c.type
    ]
    assert limited.message == "the maximum is 3"


_MORE = _with(asked=(replace(_DECISION.asked[0], value=27.0), _DECISION.asked[1]))


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"at": 500.0}, None, id="an age"),
        pytest.param({"decision": _with(at=500.0), "at": 500.0}, None, id="a decision that is the same"),
        pytest.param(
            {"decision": _with(asked=(replace(_DECISION.asked[0], value=25.5), _DECISION.asked[1]))}, 60, id="a little"
        ),
        pytest.param({"decision": _MORE}, 15, id="a figure that has moved"),
        pytest.param(
            {"decision": _with(trail=(Said("recommend", 3, "other words"), _DECISION.trail[1]))}, 60, id="words"
        ),
        pytest.param({"decision": _with(replicas=4)}, 1, id="another number of replicas"),
        pytest.param({"conflict": "KEDA scales it too"}, 1, id="a conflict"),
        pytest.param({"override": {"replicas": 4, "by": "alice", "expires": _AT}}, 1, id="an adjustment"),
        pytest.param({"problems": ("spec: wrong",)}, 1, id="a problem"),
        pytest.param({"decision": _with(asked=_NO_DATA)}, 1, id="a metric that is missing"),
        pytest.param({"decision": None}, 1, id="a sleep"),
    ],
)
def test_a_status_is_written_the_sooner_the_more_it_matters(changes: dict[str, Any], seconds: float | None) -> None:
    before = {key: value for key, value in _status().items() if value is not None}
    assert write_after_seconds(before, _status(before, _LATER, **changes), 15.0) == seconds


def test_the_first_status_is_written_at_once() -> None:
    assert write_after_seconds({}, _status(), 15.0) == 1
