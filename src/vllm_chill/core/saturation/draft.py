"""A decision while it is made: the numbers so far, and the trail of each variant. A value.

The rule: a step either changes a variant's number and says so in that variant's trail, or is about the model and is
in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.decision import ModelDecision, Reason, Step, VariantDecision
from vllm_chill.core.saturation.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Draft:
    """The replicas, the reason and the trail of every variant, by its key."""

    numbers: Mapping[str, int]
    reasons: Mapping[str, Reason]
    trails: Mapping[str, tuple[Step, ...]]

    @classmethod
    def begun(cls, numbers: Mapping[str, int], reasons: Mapping[str, Reason]) -> Draft:
        """A draft with nothing in its trails."""
        return cls(numbers, reasons, dict.fromkeys(numbers, ()))

    def told(self, stage: str, *texts: str) -> Draft:
        """With a step about the model for each of the texts."""
        steps = tuple(Step(stage, text) for text in texts)
        return replace(self, trails={key: (*trail, *steps) for key, trail in self.trails.items()})

    def said(self, key: str, step: Step) -> Draft:
        """With a step about one variant, whose number stays."""
        return replace(self, trails={**self.trails, key: (*self.trails[key], step)})

    def moved(self, key: str, replicas: int, reason: Reason, stage: str, text: str) -> Draft:
        """With another number for one variant, and the step that says why."""
        draft = self.said(key, Step(stage, text, replicas))
        return replace(draft, numbers={**self.numbers, key: replicas}, reasons={**self.reasons, key: reason})

    def decision(self, fleet: Fleet, analysis: Analysis, now: float) -> ModelDecision:
        """What it has come to."""
        return ModelDecision(
            fleet.namespace,
            fleet.model_id,
            analysis,
            {variant.key: self._of(variant.key, variant.replicas, analysis, now) for variant in fleet.variants},
        )

    def _of(self, key: str, before: int, analysis: Analysis, now: float) -> VariantDecision:
        found = analysis.variants.get(key)
        return VariantDecision(
            key,
            now,
            before,
            self.numbers[key],
            self.reasons[key],
            self.trails[key],
            None if found is None else found.saturation,
        )


def listed(counts: Mapping[str, int], what: str) -> str:
    """Replicas of several variants in a sentence: `2 more of a100 and 1 more of h100`."""
    parts: Sequence[str] = [f"{count} {what} of {key}" for key, count in sorted(counts.items())]
    return " and ".join(parts)
