"""What zero means: when a model may have no replica at all, and when it gets one back. Pure.

The rule: what is not known is never idle. A model without replicas stays so until somebody waits for it, and one that
may not be without keeps one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_chill.core.cold_start import duration
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.fleet import Fleet, Variant
from vllm_chill.core.saturation.optimize import cheapest


@dataclass(frozen=True, slots=True)
class Watched:
    """Since when a model is watched, and when it was last seen with replicas on their way and none that was ready, None
    if it never was.
    """

    since: float
    starting_at: float | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """Whether a model is idle, and the clause that says why."""

    idle: bool
    why: str


def watched(before: Watched | None, fleet: Fleet, now: float, *, starting: bool) -> Watched:
    """What is to be remembered of it, once it was looked at. `starting`: replicas are on their way."""
    before = before or Watched(now)
    if not starting or any(variant.ready for variant in fleet.variants):
        return before
    return Watched(before.since, now)


def use(fleet: Fleet, watched: Watched, now: float) -> Use:
    """Whether nobody has used the model for as long as its replicas are kept, and all of that is known."""
    busy = _waiting(fleet) or _running(fleet.variants)
    if busy is not None:
        return Use(False, busy)
    kept = fleet.zero.retention_seconds
    unused = max(0.0, now - _last_used(fleet, watched))
    if unused < kept:
        return Use(False, f"it was used {duration(unused)} ago, or came then, and is kept for {duration(kept)}")
    return Use(True, f"nobody has used it for {duration(unused)}")


def lacking(config: Config, fleet: Fleet, coming: float) -> float:
    """The capacity that requests which are held ask for while no replica is ready, on top of what is `coming`."""
    if not fleet.held or not math.isfinite(fleet.held):
        return 0.0
    each = config.queue_length_threshold if config.queue_length_threshold > 0 else 1.0
    return max(0.0, fleet.held / each - coming)


def kept(fleet: Fleet, numbers: Mapping[str, int]) -> Variant | None:
    """The variant that is to keep one replica: the model has some, and would have none. None if nothing is to."""
    if any(numbers.values()) or not fleet.replicas:
        return None
    return cheapest(fleet.variants)


def _waiting(fleet: Fleet) -> str | None:
    if fleet.held is None or not math.isfinite(fleet.held):
        return "nobody can tell whether requests wait for it"
    return f"{_counted(fleet.held, 'request')} before its replicas" if fleet.held > 0 else None


def _running(variants: Sequence[Variant]) -> str | None:
    untold = sum(variant.untold for variant in variants)
    if untold:
        return f"{_counted(untold, 'ready replica')} told nothing"
    loads = [load for variant in variants for load in variant.loads]
    if any(load.stale for load in loads):
        return "what a replica told is too old"
    counts = [count for load in loads for count in (load.running, load.queue)]
    known = [count for count in counts if count is not None and math.isfinite(count)]
    if len(known) < len(counts):
        return "a replica does not tell how many requests it has"
    at_work = sum(max(0.0, count) for count in known)
    return f"{_counted(at_work, 'request')} at its replicas" if at_work else None


def _last_used(fleet: Fleet, watched: Watched) -> float:
    times = [
        watched.since if fleet.active_at is None else fleet.active_at,
        *(time for time in (fleet.woken_at, watched.starting_at) if time is not None),
    ]
    return max(times)


def _counted(count: float, what: str) -> str:
    return f"{count:g} {what}" if count == 1 else f"{count:g} {what}s"
