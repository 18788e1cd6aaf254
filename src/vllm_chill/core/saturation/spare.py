"""The analyzer `spare-capacity`: what the replicas have left of KV cache and queue, on average. Pure.

The rule: every replica counts, also one beyond its thresholds, whose spare is then below 0. Capacity is lacking when
either mean would be below its trigger over all that is there or on its way, and as much as brings both back to it.
Replicas may go while both means stay above the triggers, and `hysteresis` of the way to them is left besides, so that
noise does not bring back what went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_chill.core.saturation import upstream
from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.survey import (
    EPSILON,
    Survey,
    Told,
    above_zero,
    apart,
    capacity_for,
    number,
    of_variants,
    survey,
    unmeasured,
)


@dataclass(frozen=True, slots=True)
class _Signal:
    """One of the two that are looked at: `load` is the sum over the replicas, by their capacity."""

    name: str
    load: float
    threshold: float
    trigger: float

    @property
    def usable(self) -> float:
        """What a capacity of 1 takes on before its spare is at the trigger."""
        return self.threshold - self.trigger

    @property
    def needed(self) -> float:
        """The capacity over which its spare is at the trigger."""
        return capacity_for(self.load, self.usable)

    def left(self, capacity: float) -> float:
        """The mean spare if the load is spread over that capacity."""
        return self.threshold - self.load / capacity


def analyze(config: Config, variants: Sequence[Variant], anticipated: Mapping[str, int]) -> Analysis:
    """What is lacking on top of what is `anticipated` (replicas by the variant's key), and what could go."""
    found = survey(config, variants, anticipated)
    if not found.capacity_told:
        return unmeasured(variants, found)
    if config.upstream:
        return upstream.analyze(config, variants, anticipated, found)
    signals, part = _signals(config, found), 1.0 - config.hysteresis
    required = above_zero(max(one.needed for one in signals) - found.anticipated)
    needed = max(capacity_for(one.load, one.usable * part) for one in signals)
    spare = above_zero(found.staying - needed) if found.complete else 0.0
    return Analysis(
        required,
        spare,
        _reason(found, signals, part, required, spare),
        saturation=found.saturation,
        slack=above_zero(sum(one.capacity * one.left for one in found.told)),
        variants=of_variants(
            variants, found, overloaded=lambda one: one.saturated, underused=lambda one: _underused(config, one, part)
        ),
        complete=found.complete,
    )


def _signals(config: Config, found: Survey) -> list[_Signal]:
    kv, queue = _load(found, [one.kv for one in found.told]), _load(found, [one.queue for one in found.told])
    signals = []
    if kv is not None:
        signals.append(_Signal("KV spare", kv, config.kv_cache_threshold, config.kv_spare_trigger))
    if queue is not None:
        signals.append(_Signal("queue spare", queue, config.queue_length_threshold, config.queue_spare_trigger))
    return signals


def _load(found: Survey, values: Sequence[float | None]) -> float | None:
    """The sum by capacity, None if no replica has told this one. A replica that has told the other one only is taken
    for what those with this one have on average.
    """
    known = [(one.capacity, value) for one, value in zip(found.told, values, strict=True) if value is not None]
    capacity = sum(weight for weight, _ in known)
    return sum(weight * value for weight, value in known) / capacity * found.capacity_told if capacity else None


def _underused(config: Config, one: Told, part: float) -> bool:
    most_kv = (config.kv_cache_threshold - config.kv_spare_trigger) * part
    most_queue = (config.queue_length_threshold - config.queue_spare_trigger) * part
    return (one.kv or 0.0) < most_kv - EPSILON and (one.queue or 0.0) < most_queue - EPSILON


# --- words ---


def _reason(found: Survey, signals: Sequence[_Signal], part: float, required: float, spare: float) -> str:
    over = found.over(sum(one.saturated for one in found.told), "saturated")
    lacking = f", so a capacity of {number(required)} is lacking" if required else ""
    coming = number(found.anticipated - found.ready)
    left = " and ".join(f"{one.name} {one.left(found.ready):.2f}" for one in signals)
    below = [one for one in signals if above_zero(one.needed - found.ready)]
    if below:
        text = f"{' and '.join(_below(one, found) for one in below)} {over}"
        if not required:
            text += f"; a capacity of {coming} is on its way, which is enough"
        elif found.anticipated > found.ready:
            lacking += f" besides the {coming} that is on its way"
    elif required:
        triggers = " and ".join(f"{one.trigger:.2f}" for one in signals)
        text = f"{left} {over} will not stay above {triggers} once those on their way out are gone"
    elif spare:
        floors = " and ".join(f"{one.threshold - one.usable * part:.2f}" for one in signals)
        text = f"{left} {over}, so a capacity of {number(spare)} could go and leave {floors}"
    elif found.complete:
        text = f"{left} {over}, which is enough and leaves none to go"
    else:
        text = f"{left} {over}"
    return text + lacking + found.gaps(required)


def _below(one: _Signal, found: Survey) -> str:
    is_, trigger = apart(one.left(found.ready), one.trigger)
    return f"{one.name} {is_} is below {trigger}"
