"""Stabilization: what was recommended lately holds a recommendation back, as HPA's stabilizationWindowSeconds. Pure.

The rule: a target grows to no more than the least that was recommended within the window up, and shrinks to no less
than the most within the window down.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_chill.core.cold_start import duration
from vllm_chill.core.scaling.decision import Said
from vllm_chill.core.scaling.policy import Policy


@dataclass(frozen=True, slots=True)
class Recommended:
    """So many replicas were recommended at `at`."""

    at: float
    replicas: int


def hold(
    policy: Policy, past: tuple[Recommended, ...], current: int, wanted: int, now: float
) -> tuple[int, Said | None]:
    """What is left of `wanted` after what was recommended before, and what there is to say if that is not all of it."""
    least = min([wanted, *_within(past, now - policy.up.stabilization_seconds)])
    most = max([wanted, *_within(past, now - policy.down.stabilization_seconds)])
    held = min(max(current, least), most)
    if held == wanted:
        return held, None
    if wanted > held:
        window, rest = policy.up.stabilization_seconds, f"at least {least} has been enough, so no more than {held} yet"
    else:
        window, rest = policy.down.stabilization_seconds, f"up to {most} were wanted, so no fewer than {held} yet"
    return held, Said("hold", held, f"within the last {duration(window)} {rest}")


def remember(policy: Policy, past: tuple[Recommended, ...], replicas: int, now: float) -> tuple[Recommended, ...]:
    """What was recommended, with one more. What no window will ask for is forgotten: all that is too old, and of each
    number all but the last time.
    """
    oldest = now - max(policy.up.stabilization_seconds, policy.down.stabilization_seconds)
    kept = (one for one in past if one.at > oldest and one.replicas != replicas)
    return (*kept, Recommended(now, replicas))


def _within(past: tuple[Recommended, ...], after: float) -> list[int]:
    return [one.replicas for one in past if one.at > after]
