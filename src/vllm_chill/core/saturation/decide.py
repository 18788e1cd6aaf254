"""One decision for the variants of a model: collect → analyze → steady → optimize → bound → zero, with its trail. Pure.

The rule: all that a decision rests on is in its arguments; what one leaves behind for the next is the Memory. What is
proposed is decided when it was `granted`, which the limiter may keep it from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllm_chill.core.saturation import one_step
from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.analyze import analyze
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.deal import dealt
from vllm_chill.core.saturation.decision import ModelDecision, Reason
from vllm_chill.core.saturation.draft import Draft
from vllm_chill.core.saturation.fleet import Fleet
from vllm_chill.core.saturation.idle import Watched, kept, lacking, use, watched
from vllm_chill.core.saturation.optimize import grow
from vllm_chill.core.saturation.pace import Change, change, left_up, recent
from vllm_chill.core.saturation.steady import State, steady
from vllm_chill.core.saturation.survey import number
from vllm_chill.core.saturation.transition import Decided, Place, adopted, place, untouched


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier decisions on a model leave behind: what was decided for each variant by its key, what came and went
    lately, what keeps the analysis steady, and since when the model is watched, None if it was not yet.
    """

    variants: Mapping[str, Decided] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    steady: State = field(default_factory=State)
    watched: Watched | None = None


def restored(memory: Memory, desired: Mapping[str, int], at: float) -> Memory:
    """The memory with what was decided before a restart, by the keys of the variants. It counts as decided `at`."""
    return replace(memory, variants={**memory.variants, **{key: Decided(n, None, at) for key, n in desired.items()}})


def propose(config: Config, fleet: Fleet, memory: Memory, now: float) -> tuple[ModelDecision, Memory]:
    """How many replicas each variant should have, if there are the GPUs for it, and the memory for `granted`."""
    places = _places(config, fleet, memory, now)
    seen = watched(memory.watched, fleet, now, starting=any(one.starting for one in places))
    changes = recent(config, memory.changes, now)
    if config.upstream:
        analysis, state, step = analyze(config, fleet.variants, _asked(fleet)), memory.steady, None
    else:
        analysis = analyze(config, fleet.variants, {one.variant.key: one.anticipated for one in places})
        analysis, state, step = steady(config, memory.steady, analysis, now)
    draft = _collected(config, fleet, places, analysis).told("analyze", analysis.reason)
    if step is not None:
        draft = draft.told(step.stage, step.text)
    if config.upstream:
        draft = _one_step(fleet, places, analysis, draft)
    else:
        draft = dealt(config, places, analysis, changes, draft, now)
    draft = _bounded(fleet, draft)
    draft = _woken(config, fleet, places, draft, left_up(config, changes, now))
    draft = _put_to_zero(fleet, draft, seen, now) if fleet.zero.enabled else _kept(fleet, draft)
    decided = {one.variant.key: one.decided for one in places}
    return draft.decision(fleet, analysis, now), Memory(decided, changes, state, seen)


def granted(memory: Memory, decision: ModelDecision, now: float) -> Memory:
    """The memory once that was really decided: what is proposed next is on top of it."""
    variants, moves = dict(memory.variants), []
    for key, one in decision.variants.items():
        before = variants.get(key, Decided(one.before, one.before, now))
        if one.replicas != before.replicas:
            variants[key] = replace(before, replicas=one.replicas, since=now)
            moves.append(one.replicas - before.replicas)
    changes = (*memory.changes, change(moves, now)) if moves else memory.changes
    return replace(memory, variants=variants, changes=changes)


def _places(config: Config, fleet: Fleet, memory: Memory, now: float) -> list[Place]:
    before = memory.variants
    if config.upstream:
        return [
            Place(one, untouched(one, before.get(one.key), now), arrived=one.ready == one.replicas, late=False)
            for one in fleet.variants
        ]
    places = [place(one, before.get(one.key), config.transition_timeout, now) for one in fleet.variants]
    if any(one.decided.replicas for one in places):
        return places
    # On its way to zero, which is decided anew each time: somebody may have come in the meantime.
    return [adopted(one, now) if one.variant.replicas else one for one in places]


def _asked(fleet: Fleet) -> dict[str, int]:
    return {variant.key: variant.replicas for variant in fleet.variants}


def _collected(config: Config, fleet: Fleet, places: Sequence[Place], analysis: Analysis) -> Draft:
    blind = not analysis.measured and any(variant.ready for variant in fleet.variants)
    reasons = {
        one.variant.key: Reason.NO_METRICS if blind else Reason.STEADY if one.arrived else Reason.TRANSITION
        for one in places
    }
    draft = Draft.begun({one.variant.key: one.decided.replicas for one in places}, reasons)
    draft = draft.told("collect", _known(fleet))
    if config.upstream:
        return draft
    for one in places:
        if (step := one.step(config.transition_timeout)) is not None:
            draft = draft.said(one.variant.key, step)
    return draft


def _known(fleet: Fleet) -> str:
    ready = sum(variant.ready for variant in fleet.variants)
    loads = [load for variant in fleet.variants for load in variant.loads]
    if not ready:
        return "no replica is ready"
    if not loads:
        return f"{ready} ready and none has told its load"
    oldest = max(load.age_seconds for load in loads)
    stale = sum(load.stale for load in loads)
    old = f", {stale} of them too old to shrink by" if stale else ""
    return f"{len(loads)} of {ready} ready replicas have told their load, the oldest {oldest:.0f}s ago{old}"


def _one_step(fleet: Fleet, places: Sequence[Place], analysis: Analysis, draft: Draft) -> Draft:
    found = one_step.targets(fleet.variants, {one.variant.key: one.decided.replicas for one in places}, analysis)
    draft = replace(draft, numbers=found.numbers).told("optimize", found.why)
    if found.changed is None:
        return draft
    reason = Reason.SATURATED if analysis.required > 0 else Reason.SPARE
    return draft.moved(found.changed, found.numbers[found.changed], reason, "optimize", found.why)


def _bounded(fleet: Fleet, draft: Draft) -> Draft:
    for variant in fleet.variants:
        key, count = variant.key, draft.numbers[variant.key]
        most = variant.max_replicas
        if most is not None and count > most:
            draft = draft.moved(key, most, Reason.BOUNDS, "bound", f"no more than {most}, its maxReplicas")
        elif count < variant.min_replicas and (most is None or variant.min_replicas <= most):
            least = variant.min_replicas
            draft = draft.moved(key, least, Reason.BOUNDS, "bound", f"no fewer than {least}, its minReplicas")
    return draft


def _woken(config: Config, fleet: Fleet, places: Sequence[Place], draft: Draft, left: int) -> Draft:
    if any(variant.ready for variant in fleet.variants):
        return draft
    numbers = draft.numbers
    coming = sum(
        max(numbers[one.variant.key], one.variant.replicas) * one.variant.capacity for one in places if not one.late
    )
    required = lacking(config, fleet, coming)
    if not required:
        return draft if any(numbers.values()) else draft.told("zero", "it has no replica, and nobody is known to wait")
    able = [one.variant for one in places if not one.grows_last] if not coming else []
    able = able or [one.variant for one in places if not one.late]
    most = left if coming else max(1, left)  # the first one comes whatever came and went before
    added = grow(able, numbers, required, most)
    text = f"{fleet.held:g} held, for which a capacity of {number(required)}{' more' if coming else ''} is needed"
    for key, count in added.items():
        draft = draft.moved(key, numbers[key] + count, Reason.FROM_ZERO, "zero", text)
    return draft if added else draft.told("zero", f"{text}, and no variant may have more for now")


def _put_to_zero(fleet: Fleet, draft: Draft, seen: Watched, now: float) -> Draft:
    if not any(draft.numbers.values()):
        return draft
    found = use(fleet, seen, now)
    if not found.idle:
        return draft.told("zero", f"not idle: {found.why}")
    for variant in fleet.variants:
        if draft.numbers[variant.key] > variant.min_replicas:
            draft = draft.moved(variant.key, variant.min_replicas, Reason.IDLE, "zero", found.why)
    return draft


def _kept(fleet: Fleet, draft: Draft) -> Draft:
    one = kept(fleet, draft.numbers)
    if one is None:
        return draft
    return draft.moved(one.key, 1, Reason.BOUNDS, "zero", "one stays, for zero is not enabled and it is the cheapest")
