"""What was decided for the variants of a model, with the trail of how it came about. Values.

The rule: each step of a trail says what it made of the numbers before and why, in the words that status, log, event
and `vllm-chill explain variant` show; nobody else phrases it again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_chill.core.saturation.analysis import Analysis


class Direction(enum.StrEnum):
    """Where a decision goes: the label `direction` of wva_replica_scaling_total."""

    UP = "up"
    DOWN = "down"
    NONE = "none"


class Reason(enum.StrEnum):
    """Why, in one word: the label `reason` of wva_replica_scaling_total, and that of conditions and events."""

    SATURATED = "Saturated"
    SPARE = "SpareCapacity"
    STEADY = "Steady"
    IDLE = "Idle"
    FROM_ZERO = "ScaleFromZero"
    BOUNDS = "Bounds"
    NO_METRICS = "MetricsUnavailable"
    TRANSITION = "InTransition"
    LIMITED = "LimitedByGPUs"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a trail: `stage` is collect, analyze, steady, optimize, bound, limit or zero; `text` is a sentence
    without a full stop, and `replicas` is the number after it, None for a step that is about the model as a whole.
    """

    stage: str
    text: str
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class VariantDecision:
    """So many replicas for one variant that has `before` by now; `saturation` is the variant's own."""

    key: str
    at: float
    before: int
    replicas: int
    reason: Reason
    trail: tuple[Step, ...]
    saturation: float | None = None

    @property
    def direction(self) -> Direction:
        """Where it goes."""
        if self.replicas == self.before:
            return Direction.NONE
        return Direction.UP if self.replicas > self.before else Direction.DOWN

    @property
    def words(self) -> str:
        """Why, in one line: the last step that has something to say of this variant."""
        own = [step.text for step in self.trail if step.replicas is not None]
        return own[-1] if own else (self.trail[-1].text if self.trail else "")


@dataclass(frozen=True, slots=True)
class ModelDecision:
    """What was decided for all variants of a model, by their key."""

    namespace: str
    model_id: str
    analysis: Analysis
    variants: Mapping[str, VariantDecision]
