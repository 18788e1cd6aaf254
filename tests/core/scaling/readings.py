"""Readings in one line, for the tests of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from vllm_chill.core.scaling.policy import Policy, Rule
from vllm_chill.core.scaling.signals import Metric, Readings, ReplicaReading, Sample, Signal

QUEUE = Signal(Metric.QUEUE_LENGTH)
GPU = Signal(Metric.GPU_UTILIZATION)
RUNNING = Signal(Metric.RUNNING_REQUESTS)
HELD = Signal(Metric.HELD_REQUESTS)
LATENCY = Signal(Metric.LATENCY)
PROMQL = Signal(Metric.PROMQL, query="sum(rate(x[1m]))")

WALL = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
LONG_AGO = -1e6
NOW = 1000.0

STARTING = "starting"
"""A replica that is not ready."""
MISSING = None
"""A replica that is ready and was not measured."""

Value = float | str | None


def rule(signal: Signal, target: float, threshold: float | None = None) -> Rule:
    return Rule(signal, target if threshold is None else threshold, target)


def policy(*rules: Rule, least: int = 1, most: int = 1000) -> Policy:
    return Policy("chat", least, most, rules or (rule(QUEUE, 10),))


def readings(
    values: Sequence[Value],
    *,
    signal: Signal = QUEUE,
    replicas: int | None = None,
    held: int = 0,
    target: Mapping[Signal, float] | None = None,
    at: float = NOW,
    age: float = 0.0,
) -> Readings:
    """A replica for each value, of which as many are asked for unless `replicas` says otherwise."""
    members = tuple(
        ReplicaReading(
            f"chat-{index}",
            None if value == STARTING else LONG_AGO,
            {signal: Sample(float(value), at - age)} if isinstance(value, int | float) else {},
        )
        for index, value in enumerate(values)
    )
    whole = {one: Sample(value, at - age) for one, value in (target or {}).items()}
    return Readings(at, len(members) if replicas is None else replicas, members, whole, held)
