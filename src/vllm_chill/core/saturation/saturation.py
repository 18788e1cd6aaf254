"""The analyzer `saturation`: how full the replicas are on average, and how much capacity would do. Pure.

The rule: the load is what each replica's saturation takes of its capacity. Capacity is lacking when the load would be
above `scale_up_threshold` of all that is there or on its way. Replicas may go until the rest is at
`scale_down_boundary`, and not merely because the mean is below it: those that stay take over the load of those that go,
so a mean below the boundary can be above the threshold one replica later, and that replica would come back at once.
Between threshold and boundary nothing changes, and noise has to cross all of it before anything does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.survey import (
    EPSILON,
    Survey,
    above_zero,
    apart,
    capacity_for,
    number,
    of_variants,
    survey,
    unmeasured,
)


def analyze(config: Config, variants: Sequence[Variant], anticipated: Mapping[str, int]) -> Analysis:
    """What is lacking on top of what is `anticipated` (replicas by the variant's key), and what could go."""
    found = survey(config, variants, anticipated)
    if not found.capacity_told:
        return unmeasured(variants, found)
    load = sum(one.saturation * one.capacity for one in found.told)
    required = above_zero(capacity_for(load, config.scale_up_threshold) - found.anticipated)
    spare = above_zero(found.staying - capacity_for(load, config.scale_down_boundary))
    if required or not found.complete:
        spare = 0.0
    each = of_variants(
        variants,
        found,
        overloaded=lambda one: one.saturation > config.scale_up_threshold + EPSILON,
        underused=lambda one: one.saturation < config.scale_down_boundary - EPSILON,
    )
    overloaded = sum(len(one.overloaded) for one in each.values())
    return Analysis(
        required,
        spare,
        _reason(config, found, load / found.ready, overloaded, required, spare),
        saturation=found.saturation,
        slack=above_zero(found.capacity_told - load),
        variants=each,
        complete=found.complete,
    )


def _reason(config: Config, found: Survey, mean: float, overloaded: int, required: float, spare: float) -> str:
    up, down = config.scale_up_threshold, config.scale_down_boundary
    over = found.over(overloaded, "overloaded")
    if above_zero(capacity_for(mean, up) - 1.0):
        is_, limit = apart(mean, up)
        text = f"saturation {is_} is above {limit} {over}"
        if not required:
            text += f"; a capacity of {number(found.anticipated - found.ready)} is on its way, which is enough"
    elif required:
        is_, limit = apart(mean, up)
        text = f"saturation {is_} {over} will be above {limit} once those on their way out are gone"
    elif mean < down - EPSILON:
        is_, limit = apart(mean, down)
        text = f"saturation {is_} is below {limit} {over}"
    else:
        text = f"saturation {mean:.2f} is between {down:.2f} and {up:.2f} {over}"
    if required:
        text += f", so a capacity of {number(required)} is lacking"
        if found.anticipated > found.ready:
            text += f" besides the {number(found.anticipated - found.ready)} that is on its way"
    elif spare:
        text += f", so a capacity of {number(spare)} could go"
    return text + found.gaps(required)
