"""The last word on a decision: a policy's bounds, its schedules, a manual adjustment, the fallback, a pause. Pure.

The rule: a paused policy changes nothing; a manual adjustment beats all that was measured and every schedule; and
nothing leaves the policy's minimum and maximum, of which the maximum wins. The minimum is never below 1: between 0 and
1 the idle watchdog decides.
"""

from __future__ import annotations

from datetime import datetime

from vllm_chill.core.cold_start import duration
from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.decision import Limited, Said
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.schedules import is_active, next_change

_STAGE = "bound"


def least(policy: Policy, wall_min: int = 0) -> int:
    """The fewest replicas while it is awake. `wall_min` is what the schedules ask for at this time of day."""
    return min(max(1, policy.min_replicas, wall_min), most(policy))


def most(policy: Policy) -> int:
    """The most replicas that there may ever be."""
    return max(1, policy.max_replicas)


def scheduled(policy: Policy, wall: datetime) -> int:
    """The fewest replicas that the policy's schedules ask for at `wall`; 0 if none asks for any."""
    return max((one.min_replicas for one in policy.schedules if is_active(one, wall)), default=0)


def bound(policy: Policy, replicas: int, wall: datetime, missed: int | None) -> tuple[int, tuple[Said, ...], Limited]:
    """The replicas within all that bounds them, what there is to say of it, and by what they were limited.

    `missed` is the number of decisions in a row without any data, if the fallback is to stand in for it.
    """
    said: list[Said] = []
    if policy.fallback is not None and missed is not None and policy.fallback.replicas > replicas:
        replicas = policy.fallback.replicas
        said.append(
            Said(_STAGE, replicas, f"there was no data for {missed} decisions in a row, so it falls back to {replicas}")
        )
    if replicas > most(policy):
        replicas = most(policy)
        said.append(Said(_STAGE, replicas, f"the maximum is {replicas}"))
        return replicas, tuple(said), Limited.MAX
    lowest = least(policy, scheduled(policy, wall))
    if replicas < lowest:
        said.append(Said(_STAGE, lowest, _why_so_many(policy, lowest, wall)))
        return lowest, tuple(said), Limited.MIN
    return replicas, tuple(said), Limited.NOT


def overridden(policy: Policy, override: Override, now: float) -> Said:
    """What a manual adjustment makes of it. It was made within the bounds, which may have changed since."""
    replicas = min(max(override.replicas, least(policy)), most(policy))
    by = f" by {override.by}" if override.by else ""
    for_yet = f"for another {duration(override.until - now)}"
    if replicas == override.replicas:
        return Said(_STAGE, replicas, f"it was set to {replicas}{by}, {for_yet}")
    bounds = f"{least(policy)} to {most(policy)}"
    return Said(_STAGE, replicas, f"it was set to {override.replicas}{by}, {for_yet}, and the bounds are {bounds}")


def crowded(replicas: int, room: int | None) -> Said | None:
    """What the room for it makes of so many replicas; None if there is enough. One may always be there."""
    if room is None or replicas <= max(1, room):
        return None
    room = max(1, room)
    return Said(_STAGE, room, f"the GPU budget has room for {words.replicas(room)} beside other models")


def paused(current: int) -> Said:
    """What a pause makes of it."""
    return Said(_STAGE, current, f"the policy is paused, so it stays at {current}")


def _why_so_many(policy: Policy, lowest: int, wall: datetime) -> str:
    if lowest == least(policy):
        return "between 0 and 1 the idle timeout decides" if policy.min_replicas < 1 else f"the minimum is {lowest}"
    schedule = max((one for one in policy.schedules if is_active(one, wall)), key=lambda one: one.min_replicas)
    ends = next_change(schedule, wall)
    until = "" if ends is None else f" until {ends:%Y-%m-%d %H:%M} {schedule.timezone}"
    return f"the schedule asks for at least {words.replicas(lowest)}{until}"
