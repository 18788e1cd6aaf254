"""How fast a target may grow or shrink: HPA's scaling policies, by Pods, Percent and period. Pure.

The rule: a step counts from the replicas there were when its period began, which is told by the changes since. Percents
are of whole replicas, rounded so that there is always one to change.
(k8s.io/kubernetes, pkg/controller/podautoscaler/horizontal.go, calculateScaleUpLimitWithScalingRules and
calculateScaleDownLimitWithBehaviors)
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_chill.core.cold_start import duration
from vllm_chill.core.scaling.decision import Said
from vllm_chill.core.scaling.policy import Pace, Policy, Select, Step, Unit

_LONGEST_PERIOD_SECONDS = 1800.0  # of a step, as HPA allows


@dataclass(frozen=True, slots=True)
class Change:
    """So many replicas came, or went where `by` is below 0, at `at`."""

    at: float
    by: int


def pace(policy: Policy, changes: tuple[Change, ...], current: int, wanted: int, now: float) -> tuple[int, Said | None]:
    """How far towards `wanted` it may go now, and what there is to say if that is not all the way."""
    up = wanted > current
    rules = policy.up if up else policy.down
    if wanted == current or (not rules.steps and rules.select is not Select.DISABLED):
        return wanted, None
    limit = up_limit(rules, changes, current, now) if up else down_limit(rules, changes, current, now)
    paced = min(wanted, max(limit, current)) if up else max(wanted, min(limit, current))
    if paced == wanted:
        return paced, None
    return paced, Said("pace", paced, _reason(rules, up, paced))


def up_limit(rules: Pace, changes: tuple[Change, ...], current: int, now: float) -> int:
    """The most replicas that there may be now. It may be below `current`, if more came than may come by now."""
    if rules.select is Select.DISABLED:
        return current
    starts = ((step, current - _since(changes, now - step.period_seconds)) for step in rules.steps)
    limits = [
        start + step.value if step.unit is Unit.PODS else -(-start * (100 + step.value) // 100)
        for step, start in starts
    ]
    return min(limits) if rules.select is Select.MIN else max(limits)


def down_limit(rules: Pace, changes: tuple[Change, ...], current: int, now: float) -> int:
    """The fewest replicas that there may be now. It may be above `current`, if more went than may go by now."""
    if rules.select is Select.DISABLED:
        return current
    starts = ((step, current - _since(changes, now - step.period_seconds)) for step in rules.steps)
    limits = [
        start - step.value if step.unit is Unit.PODS else start * (100 - step.value) // 100 for step, start in starts
    ]
    return max(limits) if rules.select is Select.MIN else min(limits)


def after_change(changes: tuple[Change, ...], before: int, after: int, at: float) -> tuple[Change, ...]:
    """The changes with one more; those that no period reaches back to are forgotten."""
    return (*(one for one in changes if one.at > at - _LONGEST_PERIOD_SECONDS), Change(at, after - before))


def _since(changes: tuple[Change, ...], after: float) -> int:
    return sum(one.by for one in changes if one.at > after)


def _reason(rules: Pace, up: bool, paced: int) -> str:
    if rules.select is Select.DISABLED:
        return f"{'growing' if up else 'shrinking'} is disabled, so it stays at {paced}"
    joint = " and " if rules.select is Select.MIN else " or "
    steps = joint.join(_words(step) for step in rules.steps)
    return f"it may {'grow' if up else 'shrink'} by {steps}, so {paced} for now"


def _words(step: Step) -> str:
    what = f"{step.value}%" if step.unit is Unit.PERCENT else str(step.value)
    return f"{what} in {duration(step.period_seconds)}"
