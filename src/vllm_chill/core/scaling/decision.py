"""A decision on a number of replicas, with the trail of how it came about. Values.

The rule: each step of the trail says what it made of the number before and why, in the words that status, log, event
and `vllm-chill decide` show; nobody else phrases it again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vllm_chill.core.scaling.policy import Rule

_RECOMMEND = "recommend"


@dataclass(frozen=True, slots=True)
class Said:
    """One step of a trail: `stage` is recommend, hold, pace or bound; `reason` is a sentence without a full stop."""

    stage: str
    replicas: int
    reason: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What one rule asks for: `value` is the signal's, as the rule compares it, None if it is missing or stale;
    `age_seconds` that of the oldest sample in it; `replicas` None if the rule has nothing to say.
    """

    rule: Rule
    value: float | None
    age_seconds: float | None
    replicas: int | None


class Limited(enum.StrEnum):
    """Why a decision is not what was recommended: the reasons of the condition ScalingLimited, as HPA has them."""

    NOT = "DesiredWithinRange"
    MIN = "TooFewReplicas"
    MAX = "TooManyReplicas"
    UP = "ScaleUpLimit"
    DOWN = "ScaleDownLimit"
    STABILIZED = "ScaleDownStabilized"
    UP_STABILIZED = "ScaleUpStabilized"


@dataclass(frozen=True, slots=True)
class Decision:
    """So many replicas, and why. `recommended` is what the rules asked for before it was held, paced and bounded.

    `measured` says whether any rule had data; `fallen_back` that the policy's fallback stands in for it.
    """

    at: float
    replicas: int
    recommended: int
    trail: tuple[Said, ...]
    asked: tuple[Asked, ...]
    limited: Limited = Limited.NOT
    measured: bool = True
    fallen_back: bool = False

    @property
    def reason(self) -> str:
        """Why so many, in one line: the rule that asks for the most, and what was made of that last. What a person or
        a pause says stands alone.
        """
        after = [step.reason for step in self.trail if step.stage != _RECOMMEND][-1:]
        if after and self.limited is Limited.NOT:
            rule = []
        else:
            asks = (step for step in self.trail if step.stage == _RECOMMEND and step.replicas == self.recommended)
            rule = [step.reason for step in asks][:1]
        return " ".join("; ".join([*rule, *after]).split())
