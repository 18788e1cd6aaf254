"""Variants in one line, for the tests of analyzers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_chill.core.saturation.fleet import ReplicaLoad, Variant

UNTOLD = None
"""A replica that is ready and has told nothing."""

Load = tuple[float | None, float | None] | tuple[float | None, float | None, str]


def variant(*loads: Load | None, key: str = "a100", capacity: float = 1.0) -> Variant:
    """One replica for each (kv, queue), or (kv, queue, "stale"); `UNTOLD` for one that is ready and told nothing."""
    told = tuple(
        ReplicaLoad(f"{key}-{index}", kv=load[0], queue=load[1], stale=load[2:] == ("stale",))
        for index, load in enumerate(loads)
        if load is not None
    )
    return Variant(key, replicas=len(loads), ready=len(loads), capacity=capacity, loads=told)


def coming(variants: Sequence[Variant], more: int | Mapping[str, int]) -> dict[str, int]:
    """What is anticipated if so many replicas are on their way, or on their way out where it is below 0."""
    by = {variants[0].key: more} if isinstance(more, int) else more
    return {one.key: one.ready + by.get(one.key, 0) for one in variants}
