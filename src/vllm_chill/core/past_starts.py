"""What the starts of a target have taken so far, and what that says of the one under way.

The rule: means are weighted exponentially, the newest start with 0.3, so that a change of model or image shows after
a few starts and one odd start does not. Only starts that became ready and were seen whole are learned from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_chill.core.cold_start import STAGE_NAMES, ColdStart
from vllm_chill.core.target import Stage

_NEWEST_WEIGHT = 0.3
_SMALL_PART = 0.1
"""What is left at least of a stage that takes longer than expected, as a part of what was expected."""

_VERSION = 1
_LONGEST_SECONDS = 365 * 86400.0
_STAGES = tuple(stage for stage in Stage if stage < Stage.ANSWERING)

RETRY_AFTER_UNKNOWN_SECONDS = 10
RETRY_AFTER_MOST_SECONDS = 600


@dataclass(frozen=True, slots=True)
class StageMean:
    """One stage so far: its `seconds` in starts that had it, and the `share` of starts that had it, 0 to 1."""

    seconds: float = 0.0
    share: float = 0.0

    @property
    def expected(self) -> float:
        """The seconds to expect of it in a start that has not come to it."""
        return self.seconds * self.share


@dataclass(frozen=True, slots=True)
class PastStarts:
    """The means over a target's starts: `whole` from the wish to ready, None without any start, and each stage's.

    The first token is not among the stages: how long it takes is a matter of the request.
    """

    whole: float | None = None
    stages: tuple[StageMean, ...] = (StageMean(),) * len(_STAGES)

    def learned(self, start: ColdStart) -> PastStarts:
        """The means with one more start, which has become ready."""
        took = start.seconds(start.since)
        whole = sum(took.get(stage, 0.0) for stage in _STAGES)
        if self.whole is None:
            first = (StageMean(_rounded(took.get(s, 0.0)), float(s in took)) for s in _STAGES)
            return PastStarts(_rounded(whole), tuple(first))
        means = (_mean(mean, took.get(stage)) for stage, mean in zip(_STAGES, self.stages, strict=True))
        return PastStarts(_weighted(self.whole, whole), tuple(means))

    def eta(self, start: ColdStart, now: float) -> float | None:
        """The seconds until the start under way is ready, 0 or more; None while nothing is known."""
        if self.whole is None:
            return None
        if start.is_ready:
            return 0.0
        later = sum(mean.expected for stage, mean in zip(_STAGES, self.stages, strict=True) if stage > start.stage)
        mean = self.stages[start.stage]
        if not mean.share:
            return max(self.whole - start.elapsed(now), later, self.whole * _SMALL_PART)
        return max(mean.seconds - (now - start.since), mean.seconds * _SMALL_PART) + later

    def retry_after(self, start: ColdStart | None, now: float) -> int:
        """The seconds for a Retry-After, with the start under way or before the next one: 1 to 600."""
        eta = self.whole if start is None else self.eta(start, now)
        if eta is None:
            return RETRY_AFTER_UNKNOWN_SECONDS
        return min(max(1, math.ceil(eta)), RETRY_AFTER_MOST_SECONDS)

    def dump(self) -> str:
        """The means as a short text, for `parse`."""
        stages = {
            STAGE_NAMES[stage]: [mean.seconds, mean.share]
            for stage, mean in zip(_STAGES, self.stages, strict=True)
            if mean != StageMean()
        }
        return json.dumps({"version": _VERSION, "whole": self.whole, "stages": stages}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str | None) -> PastStarts:
        """What `dump` wrote; no starts if the text is anything else, such as a newer version's."""
        try:
            return cls(*_parsed(json.loads(text or "")))
        except (ValueError, RecursionError):
            return cls()


def _mean(mean: StageMean, seconds: float | None) -> StageMean:
    if seconds is None:
        return StageMean(mean.seconds, _weighted(mean.share, 0.0))
    return StageMean(_weighted(mean.seconds, seconds) if mean.share else _rounded(seconds), _weighted(mean.share, 1.0))


def _weighted(before: float, newest: float) -> float:
    return _rounded(before + _NEWEST_WEIGHT * (newest - before))


def _rounded(number: float) -> float:
    return round(number, 3)


def _parsed(found: object) -> tuple[float, tuple[StageMean, ...]]:
    match found:
        case {"version": 1, "whole": whole, "stages": dict() as stages}:
            return _number(whole, _LONGEST_SECONDS), tuple(_stage_means(stages))
        case _:
            raise ValueError("not what dump writes")


def _stage_means(stages: dict[str, object]) -> Iterator[StageMean]:
    for stage in _STAGES:
        match stages.get(STAGE_NAMES[stage], [0.0, 0.0]):
            case [seconds, share]:
                yield StageMean(_number(seconds, _LONGEST_SECONDS), _number(share, 1.0))
            case _:
                raise ValueError("not what dump writes")


def _number(value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"not a number from 0 to {most:g}")
    return float(value)
