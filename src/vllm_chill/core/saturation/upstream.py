"""llm-d's percentage-based analyzer exactly as it is, for who sets `compat: upstream`. Pure.

The rule: replicas that are saturated count for nothing, neither in the mean of what the others have left nor in the
simulation of one replica less; one replica comes or one goes; a number that is missing is 0; and while a replica
without figures is there or on its way, the whole model is frozen. `spare` says all of that otherwise.
(llm-d-incubation/workload-variant-autoscaler, internal/saturation/analyzer.go)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.survey import EPSILON, Survey, Told, above_zero, apart, of_variants


def analyze(config: Config, variants: Sequence[Variant], anticipated: Mapping[str, int], found: Survey) -> Analysis:
    """What is lacking or could go: the least capacity of a replica, so that it is one replica whichever it is, or 0.

    Its capacities have no weight here. Nothing goes by figures that are stale, or known in part.
    """
    counted = [one for one in found.told if not one.saturated]
    kv, queue = _spares(config, counted)
    frozen = _frozen(variants, anticipated, found)
    short = kv < config.kv_spare_trigger - EPSILON, queue < config.queue_spare_trigger - EPSILON
    up = any(short) and not frozen
    down = not up and not frozen and found.complete and _one_less_is_safe(config, len(counted), kv, queue)
    one = min(variant.capacity for variant in variants)
    each = of_variants(
        variants, found, overloaded=lambda one: one.saturated, underused=lambda one: _has_spare(config, one)
    )
    saturated = len(found.told) - len(counted)
    text = _found(config, kv, queue, *short) + f" {found.over(saturated, 'saturated and not counted')}"
    if frozen:
        text += f"; {frozen}, so nothing changes"
    elif up:
        text += ", so one replica is lacking"
    elif down:
        text += ", so one replica could go"
    return Analysis(
        one if up else 0.0,
        one if down else 0.0,
        text if frozen else text + found.gaps(up),
        saturation=found.saturation,
        slack=above_zero(sum(one.capacity * one.left for one in found.told)),
        variants=each,
        complete=found.complete,
    )


def _spares(config: Config, counted: Sequence[Told]) -> tuple[float, float]:
    """The mean of what is left of KV cache and of queue; none if all are saturated."""
    if not counted:
        return 0.0, 0.0
    kv = sum(config.kv_cache_threshold - (one.kv or 0.0) for one in counted)
    queue = sum(config.queue_length_threshold - (one.queue or 0.0) for one in counted)
    return kv / len(counted), queue / len(counted)


def _one_less_is_safe(config: Config, count: int, kv: float, queue: float) -> bool:
    if count < 2:
        return False
    more = count / (count - 1)
    kv_then = config.kv_cache_threshold - (config.kv_cache_threshold - kv) * more
    queue_then = config.queue_length_threshold - (config.queue_length_threshold - queue) * more
    return kv_then >= config.kv_spare_trigger - EPSILON and queue_then >= config.queue_spare_trigger - EPSILON


def _has_spare(config: Config, one: Told) -> bool:
    kv, queue = _spares(config, [one])
    return kv >= config.kv_spare_trigger - EPSILON and queue >= config.queue_spare_trigger - EPSILON


def _frozen(variants: Sequence[Variant], anticipated: Mapping[str, int], found: Survey) -> str:
    """Why the model is frozen, "" if it is not."""
    told = Counter(one.variant for one in found.told)
    for variant in variants:
        expected = max(0, anticipated.get(variant.key, max(variant.ready, len(variant.loads))))
        if told[variant.key] != expected:
            return f"{variant.key} is to have {expected} and has figures of {told[variant.key]}"
    return ""


def _found(config: Config, kv: float, queue: float, kv_short: bool, queue_short: bool) -> str:
    parts = []
    if kv_short:
        parts.append("KV spare {} is below {}".format(*apart(kv, config.kv_spare_trigger)))
    if queue_short:
        parts.append("queue spare {} is below {}".format(*apart(queue, config.queue_spare_trigger)))
    return " and ".join(parts) or f"KV spare {kv:.2f} and queue spare {queue:.2f}"
