"""What the replicas of a model have told, and the capacity that they are, as every analyzer looks at it. Pure.

The rule: what is missing is not 0. A replica that has told one of KV use and queue is judged by that one. One that has
told neither is capacity that is there: it takes its share of the load that is known and adds none, as HPA has it when
growing. While there is one of either kind, or one whose figures are stale, nothing may go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_chill.core.saturation.analysis import Analysis, VariantAnalysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import ReplicaLoad, Variant

EPSILON = 1e-9  # what floats make of equal decimal fractions differs by less
_DECIMALS = 9
_LONGEST_QUEUE = 1e9  # more is no queue but a mistake, and sums are to stay finite


@dataclass(frozen=True, slots=True)
class Told:
    """One ready replica that has told its KV use (0 to 1), its queue (requests), or both."""

    name: str
    variant: str
    capacity: float
    kv: float | None
    queue: float | None
    saturation: float
    """The greater of its KV use and the part of `max_queue_length` that waits, 0 to 1."""
    saturated: bool
    """Whether it has come to `kv_cache_threshold` or to `queue_length_threshold`."""
    left: float
    """What part of the way to the nearer one of them is left, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The ready replicas of a model, and its capacity: `ready` of those that are, `anticipated` with those on their
    way and without those on their way out, and `staying` the ready one less what is on its way out.
    """

    told: tuple[Told, ...]
    replicas: int
    ready: float
    anticipated: float
    staying: float
    untold: int = 0
    partial: int = 0
    stale: int = 0

    @property
    def complete(self) -> bool:
        """Whether every ready replica has told all, and not too long ago."""
        return not (self.untold or self.partial or self.stale)

    @property
    def capacity_told(self) -> float:
        """That of the replicas that have told anything."""
        return sum(one.capacity for one in self.told)

    @property
    def saturation(self) -> float:
        """The mean over what has told anything, by capacity; there must be some."""
        return round(sum(one.saturation * one.capacity for one in self.told) / self.capacity_told, _DECIMALS)

    def over(self, most: int, what: str) -> str:
        """The replicas as a clause tells them, with how many of them are `what`."""
        counted = f"over {self.replicas} replica{'s' if self.replicas != 1 else ''}"
        if not most:
            return counted
        if self.replicas == 1:
            return f"{counted}, which is {what}"
        return f"{counted}, {'all' if most == self.replicas else most} of them {what}"

    def gaps(self, required: float) -> str:
        """What was not told, as a clause that follows another; "" if nothing is missing."""
        counts = ((self.untold, "nothing"), (self.partial, "only a part"), (self.stale, "nothing lately"))
        told = ", ".join(f"{count} told {what}" for count, what in counts if count)
        return f"; {told}{'' if required else ', so none may go'}" if told else ""


def survey(config: Config, variants: Sequence[Variant], anticipated: Mapping[str, int]) -> Survey:
    """What there is of all variants. `anticipated` is how many replicas each has or soon will have, by its key; one
    that is not named has those that are ready.
    """
    told: list[Told] = []
    replicas, ready, expected, staying, partial, stale = 0, 0.0, 0.0, 0.0, 0, 0
    for variant in variants:
        capacity, there = max(0.0, variant.capacity), max(variant.ready, len(variant.loads))
        coming = max(0, anticipated.get(variant.key, there))
        replicas += there
        ready += there * capacity
        expected += coming * capacity
        staying += min(there, coming) * capacity
        for load in variant.loads:
            one = _told(config, variant, capacity, load)
            if one is None:
                continue
            told.append(one)
            if one.kv is None or one.queue is None:
                partial += 1
            elif load.stale:
                stale += 1
    return Survey(tuple(told), replicas, ready, expected, staying, replicas - len(told), partial, stale)


def unmeasured(variants: Sequence[Variant], found: Survey) -> Analysis:
    """What is said while no replica is ready, or none of those that are has told anything."""
    if not found.replicas:
        reason = "no replica is ready"
    elif found.replicas == 1:
        reason = "the one replica that is ready has told nothing"
    else:
        reason = f"none of the {found.replicas} replicas that are ready has told anything"
    each = {variant.key: VariantAnalysis() for variant in variants}
    return Analysis(0.0, 0.0, reason, variants=each, measured=False, complete=not found.replicas)


def of_variants(
    variants: Sequence[Variant], found: Survey, overloaded: Callable[[Told], bool], underused: Callable[[Told], bool]
) -> dict[str, VariantAnalysis]:
    """Each variant by its key, also one that has nothing to tell."""
    told: dict[str, list[Told]] = {variant.key: [] for variant in variants}
    for one in found.told:
        told[one.variant].append(one)
    return {
        key: VariantAnalysis(
            round(sum(one.saturation for one in ones) / len(ones), _DECIMALS) if ones else None,
            tuple(one.name for one in ones if overloaded(one)),
            tuple(one.name for one in ones if underused(one)),
        )
        for key, ones in told.items()
    }


def capacity_for(load: float, share: float) -> float:
    """How much capacity a load needs if one of 1 takes a load of `share`."""
    return load / max(share, EPSILON)


def above_zero(capacity: float) -> float:
    """A capacity without the noise of floats: 3.0000000000000004 replicas are not 4."""
    return max(0.0, round(capacity, _DECIMALS))


# --- words ---


def number(value: float) -> str:
    """A number with at most two decimals, and enough to tell that it is not 0: `3`, `1.29`, `0.004`."""
    if not value:
        return "0"
    decimals = max(2, math.ceil(-math.log10(abs(value)))) if abs(value) < 1 else 2
    text = f"{value:.{min(decimals, _DECIMALS)}f}"
    return text.rstrip("0").rstrip(".")


def apart(value: float, limit: float) -> tuple[str, str]:
    """Two numbers with two decimals, or with as many as show that they are not equal."""
    decimals = 2
    while decimals < _DECIMALS and f"{value:.{decimals}f}" == f"{limit:.{decimals}f}" and abs(value - limit) > EPSILON:
        decimals += 1
    return f"{value:.{decimals}f}", f"{limit:.{decimals}f}"


def _told(config: Config, variant: Variant, capacity: float, load: ReplicaLoad) -> Told | None:
    kv, queue = _between(load.kv, 1.0), _between(load.queue, _LONGEST_QUEUE)
    if kv is None and queue is None:
        return None
    saturated = (kv is not None and kv >= config.kv_cache_threshold - EPSILON) or (
        queue is not None and queue >= config.queue_length_threshold - EPSILON
    )
    full = max(_part(kv, config.kv_cache_threshold), _part(queue, config.queue_length_threshold))
    return Told(
        *(load.name, variant.key, capacity, kv, queue),
        saturation=max(kv or 0.0, _part(queue, config.max_queue_length)),
        saturated=saturated,
        left=0.0 if saturated else 1.0 - full,
    )


def _part(load: float | None, whole: float) -> float:
    return 0.0 if load is None else min(1.0, capacity_for(load, whole))


def _between(value: float | None, most: float) -> float | None:
    return None if value is None or not math.isfinite(value) else min(max(value, 0.0), most)
