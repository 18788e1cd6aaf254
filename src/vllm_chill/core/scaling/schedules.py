"""When a schedule's minimum holds: from each time that `start` names until the next that `end` names. Pure.

The rule: times are those of a clock on the wall in the schedule's time zone. One that the change to summer time leaves
out is the first after the gap, and one that comes twice in autumn is the first of the two, as Debian's cron has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from vllm_chill.core.scaling.policy import Schedule

_FIELDS = 5
# CronSim walks along the clock on the wall, which in some hour is ahead of or behind the time that has gone by. So a
# walk begins this long before or after the moment it is for, which is more than any zone turns its clock by.
_TURN = timedelta(hours=3)
_MOST_CHANGES = 100
_EXAMPLE = 'give a cron expression of 5 fields, such as "0 8 * * MON-FRI"'


def check_schedule(start: str, end: str, timezone: str) -> str | None:
    """What is wrong with a schedule, as a sentence that says what to give; None if it is good."""
    try:
        zone = ZoneInfo(timezone)
    except (ValueError, OSError, LookupError):
        return f'the time zone "{timezone}" is not known; give one such as Europe/Berlin'
    for which, expression in (("start", start), ("end", end)):
        if not _occurs(expression, zone):
            return f'{which}: "{expression}" is not accepted; {_EXAMPLE}'
    if start.upper().split() == end.upper().split():
        return f'start and end are both "{start}"; give an end at another time'
    return None


def is_active(schedule: Schedule, wall: datetime) -> bool:
    """Whether the schedule's minimum holds at `wall`, which has a time zone: it began more lately than it ended."""
    began = _last(schedule.start, schedule.timezone, wall)
    ended = _last(schedule.end, schedule.timezone, wall)
    return began is not None and (ended is None or ended <= began)


def next_change(schedule: Schedule, wall: datetime) -> datetime | None:
    """When, after `wall`, the minimum begins to hold, or ceases to; None if it never will. In the schedule's zone."""
    active = is_active(schedule, wall)
    times = _after(schedule.end if active else schedule.start, schedule.timezone, wall)
    return next((time for time in islice(times, _MOST_CHANGES) if is_active(schedule, time) is not active), None)


def _occurs(expression: str, zone: ZoneInfo) -> bool:
    if len(expression.split()) != _FIELDS:
        return False
    try:
        next(CronSim(expression, datetime(2024, 1, 1, tzinfo=zone)))
    except (CronSimError, StopIteration, ValueError, AssertionError):
        return False
    return True


def _last(expression: str, timezone: str, wall: datetime) -> datetime | None:
    """The last time of an expression that is not after `wall`."""
    late = (wall + _TURN).astimezone(ZoneInfo(timezone))
    times = CronSim(expression, late, reverse=True)
    return next((time for time in times if _at(time) <= _at(wall)), None)


def _after(expression: str, timezone: str, wall: datetime) -> Iterator[datetime]:
    """The times of an expression that are after `wall`, in their order."""
    early = (wall - _TURN).astimezone(ZoneInfo(timezone))
    return (time for time in CronSim(expression, early) if _at(time) > _at(wall))


def _at(time: datetime) -> float:
    # Times of one zone compare by what the clock shows, not by when that is.
    return time.timestamp()
