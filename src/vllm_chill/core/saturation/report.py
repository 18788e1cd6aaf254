"""What a variant's object says of itself in its status: what was decided and why, conditions. Pure.

The rule: the status is read off what is, every time anew; of the status before, only that is kept which nobody knows
any more: since when something is so, and what was decided last. Types, reasons and messages of conditions are llm-d's,
where it has them, and all of them are in the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_chill.core.model_status import Condition, conditions_since
from vllm_chill.core.objects import Json
from vllm_chill.core.saturation.decision import Reason, Step, VariantDecision
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.spec import VariantSpec
from vllm_chill.core.status_writes import told, without_nulls, write_after

TIMES_SECONDS = 300.0
"""How long after the last write a status is written of which only times are new: who looks sees that it is at work."""
NO_ACCELERATOR = "unknown"
"""What is said of an accelerator that nothing tells: llm-d's definition does not let it be left out."""
_SATURATION_STEP = 0.05

_FOUND = "Saturation metrics data is available for scaling decisions"
_MISSING = "No saturation metrics available - pods may not be ready or metrics not yet scraped"
# Their messages have figures in them.
_WORDY = ("MetricsAvailable", "OptimizationReady")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a variant's object.

    `problems` are those of its spec as it is now; `spec` is the last version that could be used, None if there was
    none. `resolved` says whether the target is there, None while that is not known; `trouble` why it is not, where
    there is more to say. `taken_by` is the variant that scales the target instead.

    `variant` is the target as it is, None if it is not there. `decision` is the last one, made at `decided`, a time as
    objects say it; `applied` says whether it was handed on. `source_failure` is why nothing could be measured last, and
    `failure` why nothing could be decided: clauses.
    """

    problems: tuple[str, ...] = ()
    spec: VariantSpec | None = None
    resolved: bool | None = None
    trouble: str = ""
    taken_by: str | None = None
    variant: Variant | None = None
    decision: VariantDecision | None = None
    decided: str | None = None
    applied: bool = False
    source_failure: str | None = None
    failure: str | None = None


def status_of(facts: Facts, before: Mapping[str, Any], generation: int, at: str) -> Json:
    """The status to be; `at` is the time of day. A key that is None is one that there is not to be."""
    decision, variant = facts.decision, facts.variant
    saturation = None if decision is None or variant is None else decision.saturation
    return {
        **_decided(facts, before),
        "currentReplicas": None if variant is None else variant.replicas,
        "saturation": None if saturation is None else round(saturation, 3),
        "observedGeneration": generation,
        "conditions": conditions_since(conditions(facts), before.get("conditions") or (), generation, at),
    }


def _decided(facts: Facts, before: Mapping[str, Any]) -> Json:
    decision = facts.decision
    if decision is None:
        return {key: before.get(key) for key in ("desiredOptimizedAlloc", "actuation", "decision")}
    known = before.get("desiredOptimizedAlloc") or {}
    accelerator = known.get("accelerator") if facts.variant is None else facts.variant.accelerator
    return {
        "desiredOptimizedAlloc": {
            "lastRunTime": facts.decided,
            "accelerator": accelerator or NO_ACCELERATOR,
            "numReplicas": decision.replicas,
        },
        "actuation": {"applied": facts.applied},
        "decision": {
            "time": facts.decided,
            "reason": decision.reason.value,
            "trail": [_step(step) for step in decision.trail],
        },
    }


def _step(step: Step) -> Json:
    # In a list a null is not taken away, as it is in an object.
    replicas = {} if step.replicas is None else {"replicas": step.replicas}
    return {"stage": step.stage, "text": step.text, **replicas}


# --- conditions ---


def conditions(facts: Facts) -> tuple[Condition, ...]:
    """What is so and what is not."""
    return _resolved(facts), _metrics(facts), _optimized(facts)


def _resolved(facts: Facts) -> Condition:
    name = "TargetResolved"
    if facts.spec is None:
        return Condition(name, None, "InvalidConfiguration", "The spec is not accepted, so no target is looked for")
    target = f"Scale target {facts.spec.target}"
    if facts.taken_by is not None:
        return Condition(name, False, "TargetTaken", f"{target} is scaled by the variant {facts.taken_by}")
    match facts.resolved:
        case None:
            return Condition(name, None, "NotSeenYet", facts.trouble)
        case True:
            return Condition(name, True, "TargetFound", f"{target} found")
        case _:
            why = f": {facts.trouble}" if facts.trouble else ""
            return Condition(name, False, "TargetNotFound", f"{target} not found{why}")


def _metrics(facts: Facts) -> Condition:
    name, variant, decision = "MetricsAvailable", facts.variant, facts.decision
    if variant is None:
        return Condition(name, None, "MetricsMissing", "There is no target that could be measured")
    fresh = sum(not load.stale for load in variant.loads)
    if fresh:
        lacking = variant.ready - fresh
        but = (
            f", but not of {lacking} of {variant.ready} replicas, and without it nothing shrinks" if lacking > 0 else ""
        )
        return Condition(name, True, "MetricsFound", _FOUND + but)
    cause = "" if facts.source_failure is None else f", as {facts.source_failure}"
    if variant.loads:
        message = f"Saturation metrics are too old to be relied on{cause}; nothing shrinks until there are newer ones"
        return Condition(name, False, "MetricsStale", message)
    if decision is not None and decision.reason is Reason.FROM_ZERO:
        return Condition(name, True, "ScaleFromZero", "Scaled from zero due to pending requests")
    if not variant.replicas:
        return Condition(name, None, "MetricsMissing", "The target has no replica that could be measured")
    if not variant.ready:
        return Condition(name, None, "MetricsMissing", "No replica is ready yet that could be measured")
    if cause:
        return Condition(name, False, "PrometheusError", f"No saturation metrics available{cause}")
    return Condition(name, False, "MetricsMissing", _MISSING)


def _optimized(facts: Facts) -> Condition:
    name, decision = "OptimizationReady", facts.decision
    if facts.problems:
        kept = "; the earlier version is in force" if facts.spec is not None else ""
        return Condition(name, False, "InvalidConfiguration", f"{'; '.join(facts.problems)}{kept}")
    if facts.taken_by is not None:
        return Condition(name, False, "SkippedProcessing", "Nothing is decided, as another variant scales the target")
    if facts.resolved is False:
        return Condition(name, False, "SkippedProcessing", "Nothing is decided until the target is there")
    if facts.failure is not None:
        return Condition(name, False, "OptimizationFailed", facts.failure)
    if decision is None:
        return Condition(name, None, "SkippedProcessing", "Nothing has been decided yet")
    if decision.reason is Reason.NO_METRICS:
        return Condition(name, False, "MetricsUnavailable", decision.words)
    reason = "ScaleFromZeroMode" if decision.reason is Reason.FROM_ZERO else "OptimizationSucceeded"
    target = f"{decision.replicas} {'replica' if decision.replicas == 1 else 'replicas'}"
    return Condition(name, True, reason, f"saturation decision: {decision.words} (target: {target})")


# --- when it is worth a write ---


def write_after_seconds(before: Mapping[str, Any], after: Mapping[str, Any], polling_seconds: float) -> float | None:
    """How long after the last write a status is to be written; None if it says nothing new."""
    found = write_after(before, after, polling_seconds, core=_core, has_moved=_has_moved, said=_without_times)
    if found is None and without_nulls(before) != without_nulls(after):
        return max(polling_seconds, TIMES_SECONDS)
    return found


def _core(status: Mapping[str, Any]) -> Json:
    """What is told at once when it changes."""
    decision = status.get("decision") or {}
    return {
        **without_nulls(_without_times(status), "saturation", "decision", "conditions"),
        "measured": status.get("saturation") is not None,
        "reason": decision.get("reason"),
        "trail": [(step.get("stage"), step.get("replicas")) for step in decision.get("trail") or ()],
        "conditions": list(told(status, _WORDY)),
    }


def _has_moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    was, now = before.get("saturation"), after.get("saturation")
    return was is not None and now is not None and abs(now - was) > _SATURATION_STEP


def _without_times(status: Mapping[str, Any]) -> Json:
    alloc, decision = status.get("desiredOptimizedAlloc") or {}, status.get("decision") or {}
    return {
        **without_nulls(status),
        "desiredOptimizedAlloc": without_nulls(alloc, "lastRunTime"),
        "decision": without_nulls(decision, "time"),
        "conditions": [without_nulls(one, "lastTransitionTime") for one in status.get("conditions") or ()],
    }
