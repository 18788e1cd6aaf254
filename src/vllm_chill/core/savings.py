"""How long a target has had GPUs, how long it has not, and how long callers waited for that. Pure.

The rule: how much time has passed is told by a steady clock, and only the day that it counts for by the wall clock. So
a wall clock that is set can give time to another day, and never makes any, nor takes any away. Days are UTC.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from vllm_chill.core.lifecycle import replicas_held
from vllm_chill.core.target import Phase, Ready, Target, Unknown

DAY_SECONDS = 86400
_FIRST_DAY = date(1970, 1, 1).toordinal()
LAST_SECONDS = float((date.max.toordinal() - _FIRST_DAY) * DAY_SECONDS)
"""The latest moment that there is a day for."""
_LEAST_WAIT_SECONDS = 0.01
"""Who is answered sooner than that has not waited, but was told at once that waiting is of no use."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What is counted of a target: GPU-seconds `asleep` and `awake`, the seconds that callers `waited` for it to wake,
    how many `callers` did, and how often it was woken. Neither is ever negative.
    """

    asleep: float = 0.0
    awake: float = 0.0
    waited: float = 0.0
    callers: int = 0
    wakes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.asleep + other.asleep,
            self.awake + other.awake,
            self.waited + other.waited,
            self.callers + other.callers,
            self.wakes + other.wakes,
        )


NOTHING = Tally()
Days = Mapping[date, Tally]


def added(days: Days, more: Days) -> Days:
    """Both together, day by day."""
    return {**days, **{day: days.get(day, NOTHING) + tally for day, tally in more.items()}}


def total(days: Days) -> Tally:
    """All days together."""
    return sum(days.values(), NOTHING)


def day_of(wall: float) -> date:
    """The UTC day of a moment, in seconds since 1970; what lies beyond the calendar is its first or last day."""
    return date.fromordinal(_FIRST_DAY + math.floor(_within(wall) / DAY_SECONDS))


def parts(seconds: float, wall: float) -> Iterator[tuple[date, float]]:
    """So many seconds that end at `wall`, in the part of each day, the last day first. They add up to `seconds`."""
    end, left = _within(wall), max(0.0, seconds)
    while left > 0:
        midnight = float((math.ceil(end / DAY_SECONDS) - 1) * DAY_SECONDS)
        part = left if midnight <= 0 else min(left, end - midnight)
        yield day_of(max(midnight, 0.0)), part
        left -= part
        end = midnight


def _within(wall: float) -> float:
    return min(max(wall, 0.0), LAST_SECONDS) if math.isfinite(wall) else 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """How a target is from `since` on, by the steady clock: so many replicas with `gpus` each. `replicas` is None while
    that is not known, or is for another proxy to count.
    """

    since: float
    replicas: int | None = None
    gpus: int = 1

    def spent(self, until: float, wall: float) -> Days:
        """What is counted of it until a moment, which is `wall` by the wall clock. Asleep it would have had one replica
        if nobody had put it to sleep.
        """
        if self.replicas is None:
            return {}
        asleep, awake = (self.gpus, 0) if self.replicas == 0 else (0, self.replicas * self.gpus)
        of_days = parts(until - self.since, wall)
        return {day: Tally(asleep=seconds * asleep, awake=seconds * awake) for day, seconds in of_days}

    def is_woken(self, replicas: int | None) -> bool:
        """Whether it is woken if it has so many replicas next."""
        return self.replicas == 0 and bool(replicas)


def counted_replicas(target: Target) -> int | None:
    """How many replicas have GPUs; None if that is not known, or is for the proxy that leads to count."""
    if isinstance(target.phase, Unknown) or not target.shared.leads:
        return None
    return replicas_held(target)


def waited(phase: Phase, seconds: float, now: float) -> float:
    """How long of a hold that ends now was for the target to wake; 0 for none of it. Who comes to a target that is
    ready and waits for a place does not wait for that.
    """
    seconds = max(0.0, seconds)
    if isinstance(phase, Ready):
        seconds = min(seconds, max(0.0, phase.since - (now - seconds)))
    return seconds if seconds >= _LEAST_WAIT_SECONDS else 0.0
