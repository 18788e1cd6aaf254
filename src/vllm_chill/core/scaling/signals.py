"""What policies scale by: signals, and the readings of them at one moment, each with its age. Pure.

The rule: what was not measured is missing, never 0. Times are seconds on the clock of the phases (core.target).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Metric(enum.StrEnum):
    """What a rule looks at, by the names that policies use."""

    QUEUE_LENGTH = "queue_length"
    """Requests that wait in the engines, and those that are held in the proxy."""
    LATENCY = "latency"
    """Milliseconds, of one kind of latency, at a percentile, over a window."""
    GPU_UTILIZATION = "gpu_utilization"
    """Percent, of a replica's GPUs."""
    KV_CACHE_USAGE = "kv_cache_usage"
    """Percent, of a replica's KV cache blocks."""
    RUNNING_REQUESTS = "running_requests"
    """Requests that the engines work on."""
    HELD_REQUESTS = "held_requests"
    """Requests that are held in the proxy."""
    TOKENS_PER_SECOND = "tokens_per_second"
    """Tokens that a replica generates, over a window."""
    PROMQL = "promql"
    """What a Prometheus answers to an expression, for the target as a whole."""


class Aggregation(enum.StrEnum):
    """How one number comes of many: of several replicas; of a latency, which kind it is."""

    AVERAGE = "average"
    MAX = "max"
    SUM = "sum"
    TTFT = "ttft"
    """Time to first token."""
    E2E = "e2e"
    """A request's whole time in the engine."""
    ITL = "itl"
    """Time between two tokens."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing to measure. `percentile` (0 to 100) is that of a latency, `window_seconds` that of a latency or a
    rate, `query` the expression of PROMQL; each is None where it has no meaning.
    """

    metric: Metric
    aggregation: Aggregation = Aggregation.AVERAGE
    percentile: float | None = None
    window_seconds: float | None = None
    query: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A number, and when it was measured."""

    value: float
    at: float


@dataclass(frozen=True, slots=True)
class ReplicaReading:
    """One replica that exists and is not terminating. `ready_since` is None while it is not ready.

    `samples` has what was measured of it; QUEUE_LENGTH is the engine's own queue.
    """

    name: str
    ready_since: float | None
    samples: Mapping[Signal, Sample] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """All that a decision rests on, at `at`. `replicas` is the number that is asked for now (spec.replicas).

    `target` has what is measured of the target as a whole: LATENCY over the requests of all replicas, and PROMQL.
    `held` are the requests that are held in the proxy. `room` is how many replicas there are GPUs for, None where that
    is not bounded.
    """

    at: float
    replicas: int
    members: tuple[ReplicaReading, ...] = ()
    target: Mapping[Signal, Sample] = field(default_factory=dict)
    held: int = 0
    room: int | None = None
