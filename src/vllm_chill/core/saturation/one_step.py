"""How llm-d's autoscaler deals capacity out, exactly, for who sets `compat: upstream`: one replica at a time. Pure.

The rule: while any variant is not what was decided, or not all replicas of one are measured, the whole model is frozen.
Else one replica of the cheapest variant comes, or one of the dearest that has more than one goes. A variant at zero is
not looked at. `optimize` does all of that otherwise.
(llm-d-incubation/workload-variant-autoscaler, internal/saturation/analyzer.go, CalculateSaturationTargets)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.fleet import Variant


@dataclass(frozen=True, slots=True)
class Targets:
    """The replicas of every variant by its key, which of them was changed (None: none), and a clause that says why."""

    numbers: Mapping[str, int]
    changed: str | None
    why: str


def targets(variants: Sequence[Variant], decided: Mapping[str, int], analysis: Analysis) -> Targets:
    """Where the variants go; `decided` is what was decided last, by the variant's key."""
    active = sorted((variant for variant in variants if variant.replicas > 0), key=lambda variant: variant.key)
    numbers = {variant.key: variant.replicas for variant in variants}
    waits = [why for variant in active if (why := _unsettled(variant, decided[variant.key]))]
    if waits:
        frozen = {variant.key: decided[variant.key] or variant.replicas for variant in active}
        return Targets(numbers | frozen, None, f"the whole model is frozen: {waits[0]}")
    ready = [variant for variant in active if variant.ready >= variant.replicas]
    if analysis.required > 0 and ready:
        one = min(ready, key=lambda variant: (variant.cost, variant.key))
        why = f"1 more, for {one.key} is the cheapest at a cost of {one.cost:g}"
        return Targets(numbers | {one.key: one.replicas + 1}, one.key, why)
    several = [variant for variant in active if variant.replicas > 1]
    if analysis.spare > 0 and several:
        one = max(several, key=lambda variant: (variant.cost, variant.key))
        why = f"1 less, for {one.key} is the dearest at a cost of {one.cost:g}"
        return Targets(numbers | {one.key: one.replicas - 1}, one.key, why)
    return Targets(numbers, None, "nothing is to come or to go")


def _unsettled(variant: Variant, decided: int) -> str:
    if decided not in (0, variant.replicas):
        return f"{variant.key} was to have {decided}, and is asked to have {variant.replicas}"
    if len(variant.loads) != variant.replicas:
        return f"{len(variant.loads)} of {variant.replicas} replicas of {variant.key} are measured"
    return ""
