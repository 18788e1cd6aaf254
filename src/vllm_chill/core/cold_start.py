"""A cold start as a value: when it began, how long it was in each stage, how it ended; and how to say that.

The rule: at every moment a start is in exactly one stage, so the seconds of its stages add up to its wall time. A
stage that is come to again, because a pod was replaced say, counts from anew for what is left of it, and what was
spent in it before stays counted.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from vllm_chill.core.target import Progress, Stage

_DETAIL_CHARACTERS = 200

STAGE_NAMES: dict[Stage, str] = {stage: stage.name.lower() for stage in Stage} | {Stage.ANSWERING: "first_token"}
"""What a stage is called in metrics, logs and JSON."""

STAGE_WORDS: dict[Stage, str] = {
    Stage.REQUESTED: "waiting for a replica",
    Stage.SCHEDULING: "waiting for a node",
    Stage.PULLING: "pulling the image",
    Stage.CREATING: "creating the container",
    Stage.STARTING: "starting the engine",
    Stage.LOADING: "loading the model",
    Stage.LISTING: "waiting for the model to be listed",
    Stage.ANSWERING: "waiting for the first token",
}
"""What a stage is called for people, after "waking: "."""


class Outcome(enum.Enum):
    """How a start ended."""

    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One start, under way or over. Times are seconds on the clock of the target's phases.

    It is in `stage` since `since`, and `spent` has the seconds of the visits before, indexed by stage. It is in
    ANSWERING from the moment the target is ready. `whole` says whether it was seen from the wish for a replica on: one
    that was found under way says nothing of how long a start takes. `ended`, `outcome` and `cause` are of a start that
    is over; it ends with the first byte of a first answer, or when it was ready if nobody waited for one.
    """

    began: float
    stage: Stage
    since: float
    detail: str = ""
    whole: bool = True
    spent: tuple[float, ...] = (0.0,) * len(Stage)
    ended: float | None = None
    outcome: Outcome | None = None
    cause: str | None = None

    @classmethod
    def begun(cls, now: float, *, whole: bool = True) -> ColdStart:
        """A start that begins now with the wish for a replica."""
        return cls(now, Stage.REQUESTED, now, whole=whole)

    @property
    def progress(self) -> Progress:
        """How far it is, or was when it ended."""
        return Progress(self.stage, self.detail)

    @property
    def is_ready(self) -> bool:
        """Whether the target has become ready."""
        return self.stage is Stage.ANSWERING

    def moved(self, progress: Progress, now: float) -> ColdStart:
        """The start once it is as far as `progress`, whether that is on or back."""
        if progress.stage is self.stage:
            return replace(self, detail=progress.detail)
        return replace(
            self, stage=progress.stage, since=now, detail=progress.detail, spent=self._with(now - self.since)
        )

    def over(self, outcome: Outcome, now: float, cause: str | None = None) -> ColdStart:
        """The start, ended now."""
        return replace(self, ended=now, outcome=outcome, cause=cause)

    def unanswered(self) -> ColdStart:
        """The start, ended when the target was ready: no answer belongs to it."""
        return self.over(Outcome.READY, self.since)

    def elapsed(self, now: float) -> float:
        """The seconds that it has taken."""
        return (now if self.ended is None else self.ended) - self.began

    def seconds(self, now: float) -> dict[Stage, float]:
        """The seconds of each stage that took time, in the order of the stages. They add up to `elapsed`."""
        spent = self._with((now if self.ended is None else self.ended) - self.since)
        return {stage: spent[stage] for stage in Stage if spent[stage] > 0}

    def _with(self, seconds: float) -> tuple[float, ...]:
        return tuple(
            spent + (seconds if stage is self.stage else 0.0) for stage, spent in zip(Stage, self.spent, strict=True)
        )


def describe(start: ColdStart, now: float, eta_seconds: float | None, position: int | None = None) -> str:
    """A start in one short line: `waking: loading the model, position 3, about 40s left`.

    Without `eta_seconds` it ends with the time that has gone: `32s so far`. `position` is the caller's place among
    those that wait, from 1.
    """
    time = f"{duration(start.elapsed(now))} so far" if eta_seconds is None else time_left(eta_seconds)
    return f"{with_position(f'waking: {doing(start.progress)}', position)}, {time}"


def with_position(words: str, position: int | None) -> str:
    """The words with a caller's place among those that wait, where it has one."""
    return words if position is None else f"{words}, position {position}"


def doing(progress: Progress) -> str:
    """What a start does at this moment, on one line: `waiting for a node (3 Insufficient nvidia.com/gpu)`."""
    words = STAGE_WORDS[progress.stage]
    detail = " ".join(progress.detail.split())
    if len(detail) > _DETAIL_CHARACTERS:
        detail = detail[: _DETAIL_CHARACTERS - 1] + "…"
    return f"{words} ({detail})" if detail else words


def time_left(seconds: float) -> str:
    """How long it will take yet: `about 40s left`."""
    return f"{about(seconds)} left"


def about(seconds: float) -> str:
    """A time that is expected, no finer than it can be known: `about 40s`."""
    grain = next(grain for bound, grain in ((10, 1), (60, 5), (600, 10), (math.inf, 60)) if seconds <= bound)
    return f"about {duration(max(1, math.ceil(seconds / grain) * grain))}"


def duration(seconds: float) -> str:
    """Whole seconds as people write them: `42s`, `3m10s`, `1h5m`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        parts = (f"{minutes}m" if minutes else "", f"{rest}s" if rest or not minutes else "")
    else:
        parts = (f"{minutes // 60}h", f"{minutes % 60}m" if minutes % 60 else "")
    return "".join(parts)
