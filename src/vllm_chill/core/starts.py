"""The starts of one target, read off what happens to it: the one under way, the last one, and the means of all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vllm_chill.core.cold_start import ColdStart, Outcome, describe, with_position
from vllm_chill.core.past_starts import PastStarts
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Failed,
    Phase,
    Progress,
    Queued,
    Ready,
    Stage,
    Target,
    Unknown,
    Waking,
)


@dataclass(frozen=True, slots=True)
class Starts:
    """Invariant: `current` is there while the target is waking, and from ready on until its first answer begins.

    `last` is the newest that is over, however it ended; `phase` the target's as it was last told.
    """

    current: ColdStart | None = None
    last: ColdStart | None = None
    past: PastStarts = field(default_factory=PastStarts)
    phase: Phase = field(default_factory=Unknown)

    @property
    def awaits_answer(self) -> bool:
        """Whether the first byte of an answer ends a start."""
        return self.current is not None and self.current.is_ready

    def eta(self, now: float) -> float | None:
        """The seconds until the start under way is ready; None without one, or while nothing is known."""
        return None if self.current is None else self.past.eta(self.current, now)

    def retry_after(self, now: float) -> int:
        """The seconds for the Retry-After of whoever is not held: 1 to 600."""
        return self.past.retry_after(self.current, now)

    def describe(self, now: float, position: int | None = None, held_back: str | None = None) -> str:
        """What a caller waits for, in one short line; `position` is its place among those that wait, from 1, and
        `held_back` why the target may not be woken now.
        """
        if self.current is None or self.current.is_ready:
            return with_position(_without_start(self.phase, held_back), position)
        return describe(self.current, now, self.eta(now), position)

    def changed(self, before: Target, after: Target, now: float) -> Starts:
        """The starts once the target's phase has changed."""
        told = replace(self, phase=after.phase)
        match after.phase:
            case Waking(confirmed=confirmed):
                # What was asleep is seen from its first replica on, whoever asked for that.
                whole = not confirmed or isinstance(before.phase, (Asleep, Queued))
                begun = replace(told._closed(after, now), current=ColdStart.begun(now, whole=whole))
                return begun.progressed(_progress(after), now) if confirmed else begun
            case Ready() if self.current is not None:
                return told._became_ready(self.current, after, now)
            case _:
                return told._closed(after, now)

    def progressed(self, progress: Progress | None, now: float) -> Starts:
        """The starts once the one under way is seen to be so far; whether it is ready, the phase tells."""
        if self.current is None or self.current.is_ready or progress is None or progress.stage is Stage.ANSWERING:
            return self
        return replace(self, current=self.current.moved(progress, now))

    def answered(self, now: float) -> Starts:
        """The starts once the first byte of an answer has come."""
        if self.current is None or not self.current.is_ready:
            return self
        return replace(self, current=None, last=self.current.over(Outcome.READY, now))

    def settled(self, target: Target) -> Starts:
        """The starts, given the target as it is: with nobody there to be answered, no answer is awaited.

        A caller that leaves tells no record of it, as every request would pay for that; so whoever reads asks this.
        """
        if self.current is None or not self.current.is_ready or target.waiting or target.in_flight:
            return self
        return replace(self, current=None, last=self.current.unanswered())

    def _became_ready(self, start: ColdStart, after: Target, now: float) -> Starts:
        ready = start.moved(Progress(Stage.ANSWERING), now)
        past = self.past.learned(ready) if ready.whole else self.past
        return replace(self, current=ready, past=past).settled(after)

    def _closed(self, after: Target, now: float) -> Starts:
        if self.current is None:
            return self
        if self.current.is_ready:
            return replace(self, current=None, last=self.current.unanswered())
        start = self.progressed(_progress(after), now).current
        assert start is not None
        match after.phase:
            case Failed(cause=cause):
                last = start.over(Outcome.FAILED, now, cause)
            case Draining(reason=reason):
                last = start.over(Outcome.STOPPED, now, reason.value)
            case _:
                last = start.over(Outcome.STOPPED, now)
        return replace(self, current=None, last=last)


def _progress(target: Target) -> Progress | None:
    return None if target.observed is None else target.observed.progress


def _without_start(phase: Phase, held_back: str | None) -> str:
    match phase:
        case Queued() if held_back is not None:
            return f"queued: {held_back}"
        case Unknown():
            return "waiting: how the target is, is not known yet"
        case Draining():
            return "draining: the target goes to sleep and is woken again then"
        case _:
            return type(phase).__name__.lower()
