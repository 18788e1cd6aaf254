"""What a scaling policy's object says of itself in its status: replicas, metrics, trail, conditions. Pure.

The rule: the status is read off what is, every time anew; of the status before, only the times are kept that say since
when something is so. Conditions have the reasons that HorizontalPodAutoscalers have, where those have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_chill.core.model_status import Condition, conditions_since
from vllm_chill.core.objects import Json
from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.decision import Asked, Decision, Limited
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.status_writes import told, without_nulls, write_after
from vllm_chill.core.target import Asleep, Draining, Failed, Queued, Target, Unknown, Waking

_FIGURE_PART = 0.1  # of a rule's target: what is less is within HPA's tolerance

# Their messages have figures in them.
_WORDY = ("ScalingLimited", "MetricsAvailable")
_STABILIZED = {
    Limited.STABILIZED: "recent recommendations were higher than the current one, and the highest of them holds",
    Limited.UP_STABILIZED: "recent recommendations were lower than the current one, and the lowest of them holds",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a policy's object.

    `problems` are those of its spec as it is now; `policy` is the last version that could be used, None if there was
    none. `absent` says why there is no target, `taken_by` who scales it instead. `fronted` and `observe_only` are as
    the autoscaler and the controller have them. `override` and `last_scale` are as objects say them; `last_scale` None
    for what is not known. `at` is the time on the clock of the decision.
    """

    problems: tuple[str, ...] = ()
    policy: Policy | None = None
    absent: str | None = None
    taken_by: str | None = None
    target: Target | None = None
    decision: Decision | None = None
    conflict: str | None = None
    override: Json | None = None
    last_scale: str | None = None
    fronted: bool = True
    observe_only: bool = False
    at: float = 0.0


def status_of(facts: Facts, before: Mapping[str, Any], generation: int, at: str) -> Json:
    """The status to be; `at` is the time of day. A key that is None is one that there is not to be."""
    decision, seen = facts.decision, facts.target.observed if facts.target is not None else None
    desired = decision.replicas if decision is not None else None
    return {
        "observedGeneration": generation,
        "currentReplicas": None if seen is None else seen.live,
        "desiredReplicas": desired if desired is not None or seen is None else seen.replicas,
        "lastScaleTime": facts.last_scale or before.get("lastScaleTime"),
        "metrics": [] if decision is None else [_metric(one, decision.at, facts.at) for one in decision.asked],
        "trail": [
            {"stage": said.stage, "replicas": said.replicas, "reason": said.reason}
            for said in (decision.trail if decision is not None else ())
        ],
        "override": facts.override,
        "conditions": conditions_since(conditions(facts), before.get("conditions") or (), generation, at),
    }


def write_after_seconds(before: Mapping[str, Any], after: Mapping[str, Any], polling_seconds: float) -> float | None:
    """How long after the last write a status is to be written; None if it says nothing new. Ages are nothing new."""
    return write_after(before, after, polling_seconds, core=_core, has_moved=_have_moved, said=_without_ages)


def conditions(facts: Facts) -> tuple[Condition, ...]:
    """What is so and what is not."""
    return _active(facts), _able(facts), _limited(facts), _metrics(facts), _conflict(facts)


def _active(facts: Facts) -> Condition:
    why_not = _why_not_active(facts)
    if why_not is not None:
        return Condition("Active", False, *why_not)
    if facts.problems:
        message = f"the earlier version is, as the spec is not accepted: {'; '.join(facts.problems)}"
        return Condition("Active", True, "EarlierSpecInForce", message)
    return Condition("Active", True, "InForce")


def _why_not_active(facts: Facts) -> tuple[str, str] | None:
    if facts.policy is None:
        return "SpecNotAccepted", "; ".join(facts.problems)
    if facts.taken_by is not None:
        return "TargetTaken", f"the target is scaled by {facts.taken_by}"
    if facts.absent is not None:
        return "TargetNotFound", facts.absent
    if facts.observe_only:
        return "RecommendOnly", "what is decided is only told, and nothing is written, as --mode is recommend"
    if facts.conflict is not None:
        return "Conflict", f"nothing is written, as {facts.conflict}"
    if facts.policy.paused:
        return "Paused", "the number of replicas stays as it is until the policy is no longer paused"
    if not facts.fronted and _replicas(facts.target) == 0:
        return "ScalingDisabled", "scaling is disabled since the replica count of the target is zero"
    return None


def _able(facts: Facts) -> Condition:
    decision = facts.decision
    match None if facts.target is None else facts.target.phase:
        case None:
            return Condition("AbleToScale", None, "NotSeenYet")
        case Unknown(cause=cause):
            return Condition(
                "AbleToScale", False if cause else None, "FailedGetScale" if cause else "NotSeenYet", cause or ""
            )
        case Failed(cause=cause):
            return Condition("AbleToScale", False, "FailedStart", cause.rstrip("."))
        case Waking(trouble=str(trouble)):
            return Condition("AbleToScale", False, "FailedUpdateScale", trouble)
        case _:
            pass
    if decision is not None and decision.limited in _STABILIZED:
        return Condition("AbleToScale", True, decision.limited.value, _STABILIZED[decision.limited])
    return Condition("AbleToScale", True, "ReadyForNewScale")


def _limited(facts: Facts) -> Condition:
    decision = facts.decision
    if decision is None:
        return Condition("ScalingLimited", None, *_undecided(facts))
    if decision.limited in (Limited.NOT, *_STABILIZED):
        return Condition("ScalingLimited", False, Limited.NOT.value, "the desired count is within the acceptable range")
    last = next((said.reason for said in reversed(decision.trail) if said.stage in ("bound", "pace")), "")
    return Condition("ScalingLimited", True, decision.limited.value, last)


def _metrics(facts: Facts) -> Condition:
    decision = facts.decision
    if decision is None:
        return Condition("MetricsAvailable", None, *_undecided(facts))
    missing = " and ".join(words.name(one.rule.signal) for one in decision.asked if one.value is None)
    if decision.fallen_back:
        return Condition("MetricsAvailable", False, "FallenBack", f"there is no data of {missing}")
    if not decision.measured:
        return Condition("MetricsAvailable", False, "NoData", f"there is no data of {missing}")
    if missing:
        message = f"there is no data of {missing}; without it nothing shrinks"
        return Condition("MetricsAvailable", True, "SomeMetricsMissing", message)
    return Condition("MetricsAvailable", True, "ValidMetricFound")


def _conflict(facts: Facts) -> Condition:
    if facts.taken_by is not None:
        return Condition("Conflict", True, "TargetTaken", f"the target is scaled by {facts.taken_by}")
    if facts.conflict is not None:
        return Condition(
            "Conflict", True, "OtherWriter", f"{facts.conflict}; nothing is written until it no longer does"
        )
    return Condition("Conflict", False, "NoOtherWriter")


def _undecided(facts: Facts) -> tuple[str, str]:
    phase = None if facts.target is None else facts.target.phase
    if isinstance(phase, Asleep | Draining | Queued):
        return "Asleep", "it is decided again once it is awake"
    return "NotDecidedYet", ""


def _replicas(target: Target | None) -> int | None:
    return None if target is None or target.observed is None else target.observed.replicas


def _metric(asked: Asked, decided_at: float, now: float) -> Json:
    age = None if asked.age_seconds is None else max(0, round(asked.age_seconds + now - decided_at))
    told = {
        "metric": words.name(asked.rule.signal),
        "current": None if asked.value is None else round(asked.value, 2),
        "target": asked.rule.target,
        "ageSeconds": age,
        "replicas": asked.replicas,
    }
    # In a list a null is not taken away, as it is in an object.
    return {key: value for key, value in told.items() if value is not None}


def _core(status: Mapping[str, Any]) -> Json:
    """What is told at once when it changes."""
    kept = without_nulls(status, "metrics", "trail", "conditions")
    metrics = [(one.get("metric"), one.get("target"), "current" in one) for one in status.get("metrics") or ()]
    trail = [(said.get("stage"), said.get("replicas")) for said in status.get("trail") or ()]
    return {**kept, "metrics": metrics, "trail": trail, "conditions": list(told(status, _WORDY))}


def _have_moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return any(map(_has_moved, before.get("metrics") or (), after["metrics"]))


def _has_moved(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if "current" not in now:
        return False
    moved: float = abs(now["current"] - was["current"])
    return moved > _FIGURE_PART * float(now["target"])


def _without_ages(status: Mapping[str, Any]) -> Json:
    metrics = [{key: value for key, value in one.items() if key != "ageSeconds"} for one in status.get("metrics") or ()]
    return {**without_nulls(status), "metrics": metrics}
