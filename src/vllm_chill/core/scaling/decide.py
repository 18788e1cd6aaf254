"""One scaling decision: recommend → hold → pace → bound, with the trail of what each made of it. Pure.

The rule: all that a decision rests on is in its arguments; what one leaves behind for the next is the State.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from vllm_chill.core.scaling.bound import bound, crowded, overridden, paused
from vllm_chill.core.scaling.decision import Decision, Limited, Said
from vllm_chill.core.scaling.hold import Recommended, hold, remember
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.pace import Change, after_change, pace
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.recommend import recommend
from vllm_chill.core.scaling.signals import Readings


@dataclass(frozen=True, slots=True)
class State:
    """What earlier decisions leave behind: what they recommended, how replicas really changed, how many of them in a
    row had no data though replicas were ready, and the replicas at the last of them (None: there was none).
    """

    recommended: tuple[Recommended, ...] = ()
    changes: tuple[Change, ...] = ()
    missed: int = 0
    replicas: int | None = None


def decide(
    policy: Policy, state: State, readings: Readings, wall: datetime, override: Override | None = None
) -> tuple[Decision, State]:
    """How many replicas there should be, at least 1, and the state for the next decision. `wall` has a time zone."""
    now, current = readings.at, readings.replicas
    state = _adopted(policy, state, current, now)
    asks = recommend(policy, readings)
    missed = 0 if asks.measured else state.missed + asks.blind
    fallback = policy.fallback
    fallen = missed if fallback is not None and not asks.measured and missed >= fallback.failure_threshold else None
    trail, limited, replicas = list(asks.said), Limited.NOT, asks.replicas
    if current:  # from nothing it may go anywhere at once
        replicas, said = hold(policy, state.recommended, current, replicas, now)
        if said is not None:
            limited = Limited.UP_STABILIZED if replicas < asks.replicas else Limited.STABILIZED
            trail.append(said)
        wanted = replicas
        replicas, said = pace(policy, state.changes, current, wanted, now)
        if said is not None:
            limited = Limited.UP if wanted > current else Limited.DOWN
            trail.append(said)
    last: tuple[Said, ...]
    if override is not None and override.holds(now):
        last, limited = (overridden(policy, override, now),), Limited.NOT
    elif policy.paused:
        last, limited = (paused(current),), Limited.NOT
    else:
        replicas, last, by_bounds = bound(policy, replicas, wall, fallen)
        limited = limited if by_bounds is Limited.NOT else by_bounds
    if not policy.paused and (crowd := crowded(last[-1].replicas if last else replicas, readings.room)) is not None:
        last, limited = (*last, crowd), Limited.MAX
    trail += last
    decision = Decision(
        at=now,
        replicas=last[-1].replicas if last else replicas,
        recommended=asks.replicas,
        trail=tuple(trail),
        asked=asks.asked,
        limited=limited,
        measured=asks.measured,
        fallen_back=fallen is not None,
    )
    recommended = remember(policy, state.recommended, asks.replicas, now)
    return decision, replace(state, recommended=recommended, missed=missed, replicas=current)


def scaled(state: State, before: int, after: int, at: float) -> State:
    """The state once replicas were really changed, which the pace counts from. From and to 0 is the watchdog's."""
    if before == after or not before or not after:
        return state
    return replace(state, changes=after_change(state.changes, before, after, at))


def _adopted(policy: Policy, state: State, current: int, now: float) -> State:
    """The state with what is there taken for a recommendation: at the first decision, as HPA does, and where somebody
    else made it more. So a burst that woke it with nine replicas, or a person who scaled it up, is not undone before
    the window down has passed.
    """
    if state.replicas is not None and current <= state.replicas:
        return state
    oldest = now - policy.down.stabilization_seconds
    if any(one.replicas >= current and one.at > oldest for one in state.recommended):
        return state
    return replace(state, recommended=remember(policy, state.recommended, current, now))
