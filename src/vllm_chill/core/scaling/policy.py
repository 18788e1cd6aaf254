"""What a vLLMScalingPolicy, or a target's annotations, ask for: values. Durations are in seconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vllm_chill.core.scaling.signals import Signal


@dataclass(frozen=True, slots=True)
class Rule:
    """Scale by one signal: up once it is above `threshold`, and in either direction so that it comes to `target` per
    replica. They are the same where a policy gives but a threshold; a lower target leaves a band in which nothing
    happens.
    """

    signal: Signal
    threshold: float
    target: float


class Unit(enum.StrEnum):
    """What a step counts."""

    PODS = "Pods"
    PERCENT = "Percent"


class Select(enum.StrEnum):
    """Which of several steps counts."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class Step:
    """How much may change within a period, as HPA's HPAScalingPolicy."""

    unit: Unit
    value: int
    period_seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one direction may go, as HPA's HPAScalingRules; without steps, as fast as it wants to."""

    stabilization_seconds: float
    steps: tuple[Step, ...]
    select: Select = Select.MAX


# HPA's own defaults.
UP = Pace(0.0, (Step(Unit.PERCENT, 100, 15.0), Step(Unit.PODS, 4, 15.0)))
DOWN = Pace(300.0, (Step(Unit.PERCENT, 100, 15.0),))


@dataclass(frozen=True, slots=True)
class Fallback:
    """How many replicas to have after so many decisions in a row without any data."""

    replicas: int
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True)
class Schedule:
    """At least so many replicas between two times: `start` and `end` are cron expressions, in an IANA time zone."""

    start: str
    end: str
    timezone: str
    min_replicas: int


@dataclass(frozen=True, slots=True)
class Policy:
    """How one target is scaled. `min_replicas` of 0: the idle watchdog decides between 0 and 1, and this from 1 on.

    `idle_seconds` None: as the proxy's settings, or its model, have it. `name` is for people.
    """

    name: str
    min_replicas: int
    max_replicas: int
    rules: tuple[Rule, ...] = ()
    up: Pace = UP
    down: Pace = DOWN
    tolerance: float = 0.1
    polling_seconds: float = 15.0
    idle_seconds: float | None = None
    fallback: Fallback | None = None
    schedules: tuple[Schedule, ...] = field(default=())
    paused: bool = False
