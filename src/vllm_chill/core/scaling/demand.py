"""How many replicas the requests that are held in the proxy ask for, before anything was measured. Pure."""

from __future__ import annotations

from vllm_chill.core.scaling.bound import least, most
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.recommend import from_nothing
from vllm_chill.core.scaling.signals import Metric

_OF_HELD = frozenset({Metric.QUEUE_LENGTH, Metric.HELD_REQUESTS})


def demand(policy: Policy, held: int, wall_min: int) -> int:
    """The replicas that so many held requests ask for alone: at least 1, within the policy's bounds, and no fewer than
    `wall_min`, which is what the schedules ask for at this time of day (`bound.scheduled`).

    Nothing paces it, so that a burst at zero goes straight to as many as it needs. A paused policy asks for its least.
    """
    lowest = least(policy, wall_min)
    if policy.paused:
        return lowest
    asks = (from_nothing(rule, held) for rule in policy.rules if rule.signal.metric in _OF_HELD)
    return min(max(lowest, max(asks, default=1)), most(policy))
