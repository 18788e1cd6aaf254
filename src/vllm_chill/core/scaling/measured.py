"""What one rule finds in the readings: the fresh samples, and what there is none of. Pure.

The rule: a sample that is too old, that is no number, or that is from before its replica was ready is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.signals import Metric, Readings, Sample, Signal

_YOUNGEST_STALE_SECONDS = 30.0
_STALE_POLLS = 3
WHOLE = frozenset({Metric.LATENCY, Metric.PROMQL})
"""What is measured of a target as a whole."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One signal at one moment.

    `values` are those of the ready replicas that have a fresh sample, or the one of the target as a whole; `missing`
    is the number of ready replicas without one; `starting` that of the replicas that are not ready, are asked for and
    not there, or were last measured before they were ready. `ready` counts the ready ones, whatever was measured of
    them. `held` is what waits in the proxy, where the signal counts it. `age_seconds` is that of the oldest sample.
    """

    values: tuple[float, ...]
    missing: int
    starting: int
    ready: int
    held: int
    age_seconds: float | None


def stale_seconds(policy: Policy) -> float:
    """The age above which a sample is none."""
    return max(_STALE_POLLS * policy.polling_seconds, _YOUNGEST_STALE_SECONDS)


def measured(policy: Policy, readings: Readings, signal: Signal) -> Measured:
    """What the readings have of a signal."""
    ready = sum(member.ready_since is not None for member in readings.members)
    absent = max(0, readings.replicas - len(readings.members))
    starting = len(readings.members) - ready + absent
    if signal.metric is Metric.HELD_REQUESTS:
        return Measured((float(readings.held),), 0, starting, ready, 0, 0.0)
    oldest = readings.at - stale_seconds(policy)
    if signal.metric in WHOLE:
        found = [sample for sample in (_fresh(readings.target.get(signal), oldest),) if sample is not None]
        return Measured(tuple(one.value for one in found), 1 - len(found), starting, ready, 0, _age(found, readings.at))
    found, unready = [], 0
    for member in readings.members:
        sample = _fresh(member.samples.get(signal), oldest)
        if member.ready_since is None or sample is None:
            continue
        if sample.at < member.ready_since:
            unready += 1
        else:
            found.append(sample)
    held = readings.held if signal.metric is Metric.QUEUE_LENGTH else 0
    missing = ready - unready - len(found)
    values = tuple(sample.value for sample in found)
    return Measured(values, missing, starting + unready, ready, held, _age(found, readings.at))


def _fresh(sample: Sample | None, oldest: float) -> Sample | None:
    return sample if sample is not None and sample.at >= oldest and math.isfinite(sample.value) else None


def _age(samples: list[Sample], now: float) -> float | None:
    return max(0.0, now - min(sample.at for sample in samples)) if samples else None
