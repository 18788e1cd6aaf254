"""The GPUs that there are, dealt out to what is to grow. Pure.

The rule: nothing grows by more than the GPUs that are free, in whole replicas, and what replicas that were asked for
will take is not free. What is left over when a model did not get all is not given to one of a lower priority, which
could keep it from ever getting any. Shrinking always may be, and what it frees counts when it is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_chill.core.saturation.decision import Direction, ModelDecision, Reason, Step, VariantDecision
from vllm_chill.core.saturation.fleet import Fleet, Variant


@dataclass(frozen=True, slots=True)
class _Wish:
    model: int
    variant: Variant
    decision: VariantDecision
    turn: tuple[int, float, float, str, str, str]

    @property
    def more(self) -> int:
        return self.decision.replicas - self.decision.before


def limit(decisions: Sequence[tuple[Fleet, ModelDecision]], free: Mapping[str, int]) -> tuple[ModelDecision, ...]:
    """The decisions with no more growth than there are GPUs free of each accelerator, in the same order.

    Models of a lower `priority` number come first, then those with the least slack, then the cheapest variant, then
    the first by key. A variant is not limited whose accelerator is not known or not counted in `free`.
    """
    limited = [dict(decision.variants) for _, decision in decisions]
    left = {accelerator: max(0, count) for accelerator, count in free.items()}
    for fleet, _ in decisions:
        for variant in fleet.variants:
            if variant.accelerator in left:
                left[variant.accelerator] = max(0, left[variant.accelerator] - variant.unplaced * variant.gpus)
    short: dict[str, int] = {}  # the priority of whoever did not get all, by accelerator
    for wish in sorted(_wishes(decisions), key=lambda wish: wish.turn):
        variant, decision = wish.variant, wish.decision
        accelerator, key = variant.accelerator, variant.key
        if variant.gpus <= 0:
            continue
        if accelerator not in left:
            limited[wish.model][key] = _unlimited(decision, accelerator)
            continue
        priority = wish.turn[0]
        kept = accelerator in short and short[accelerator] < priority
        granted = 0 if kept else min(wish.more, left[accelerator] // variant.gpus)
        if granted < wish.more:
            limited[wish.model][key] = _limited(wish, granted, left[accelerator], kept)
            short.setdefault(accelerator, priority)
        left[accelerator] -= granted * variant.gpus
    return tuple(
        replace(decision, variants=variants) for (_, decision), variants in zip(decisions, limited, strict=True)
    )


def _wishes(decisions: Sequence[tuple[Fleet, ModelDecision]]) -> Iterable[_Wish]:
    for index, (fleet, model) in enumerate(decisions):
        for variant in fleet.variants:
            decision = model.variants.get(variant.key)
            if decision is not None and decision.direction is Direction.UP:
                place = (fleet.namespace, fleet.model_id, variant.key)
                yield _Wish(index, variant, decision, (fleet.priority, model.analysis.slack, variant.cost, *place))


def _limited(wish: _Wish, granted: int, left: int, kept: bool) -> VariantDecision:
    decision, variant = wish.decision, wish.variant
    replicas = decision.before + granted
    each = f"{variant.gpus} for each replica"
    if kept:
        why = f"the {left} {variant.accelerator} that are free are kept for a model of a higher priority"
    elif left:
        why = f"{left} {variant.accelerator} are free and it needs {each}"
    else:
        why = f"no {variant.accelerator} is free and it needs {each}"
    step = Step("limit", f"{granted} of {wish.more} more replicas, for {why}", replicas)
    return replace(decision, replicas=replicas, reason=Reason.LIMITED, trail=(*decision.trail, step))


def _unlimited(decision: VariantDecision, accelerator: str) -> VariantDecision:
    what = f"no node has a {accelerator} that is counted" if accelerator else "its accelerator is not known"
    step = Step("limit", f"not limited, for {what}")
    return replace(decision, trail=(*decision.trail, step))
