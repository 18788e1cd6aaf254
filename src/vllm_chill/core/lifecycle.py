"""One target's life: `step` makes the next value, and what to do is read off it.

The rule: a transition depends on what is (the counts, the last observation, how far our own write has come),
never on which event came last. So `step` first takes the event's plain facts over and then lets the phase
settle. Nothing is remembered outside the value, and acting on it twice is harmless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from msgspec.structs import replace as changed

from vllm_chill.core.events import (
    Arrived,
    Event,
    Granted,
    HeldBack,
    Left,
    Lost,
    Observed,
    PeersTold,
    Recommended,
    Released,
    Scaled,
    ScaleFailed,
    ScaleStarted,
    StopAsked,
    Tick,
    Used,
    WakeAsked,
    WakeRefused,
    WayGiven,
)
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Endpoint,
    Failed,
    Limits,
    Observation,
    Phase,
    Queued,
    Ready,
    SleepReason,
    Target,
    Unknown,
    Waking,
)


@dataclass(frozen=True, slots=True)
class Serve:
    """A lease can be had now, on one of these endpoints."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """The target is on its way."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Waiting is of no use; a new request may succeed after `retry_after_seconds`."""

    cause: str
    retry_after_seconds: float


Admission = Serve | Wait | Refuse

_UNKNOWN_RETRY_SECONDS = 5.0
_PUT_OFF = frozenset({SleepReason.IDLE, SleepReason.ABANDONED})
"""Reasons to sleep that a caller who comes in time does away with."""


def admits(target: Target, now: float) -> Admission:
    """What a caller that wants a lease can do at `now`."""
    match target.phase:
        case Ready() if target.shared.yields is None:
            assert target.observed is not None
            return Serve(target.observed.endpoints)
        case Failed(cause=cause, retry_at=retry_at):
            return Refuse(cause, max(0.0, retry_at - now))
        case Unknown(cause=str(cause)):
            return Refuse(cause, _UNKNOWN_RETRY_SECONDS)
        case _:
            return Wait()


def desired_replicas(target: Target) -> int | None:
    """The number of replicas that the backend should be asked for; None to leave it as it is."""
    seen, shared = target.observed.replicas if target.observed is not None else 0, target.shared
    match target.phase:
        case Unknown():
            return None
        case Waking() | Ready() if not shared.leads:
            return seen or target.recommended or 1
        case Waking() | Ready():
            return max(1, seen) if target.recommended is None else target.recommended
        case Draining() | Failed() | Queued():
            return 0 if not target.in_flight and shared.leads and shared.agreed else None
        case Asleep():
            return 0


def replicas_held(target: Target) -> int:
    """How many replicas have GPUs, or are about to: those that are asked for, and those that are there."""
    seen = target.observed
    there = max(seen.replicas, seen.live + seen.terminating) if seen is not None else 0
    return max(there, target.sent or 0, desired_replicas(target) or 0)


def taken_down(target: Target) -> SleepReason | None:
    """Why it is to be at zero, once those who are let in have left; None if it is not, or is there already."""
    seen = target.observed
    if seen is None or not (seen.replicas or target.sent):
        return None
    match target.phase:
        case Draining(reason=reason, confirmed=False):
            return reason
        case Failed(confirmed=False):
            return SleepReason.GIVEN_UP
        case _:
            return None


def next_deadline(target: Target, limits: Limits) -> float | None:
    """When a Tick will change the target if nothing else happens before; None if it never will."""
    match target.phase:
        case Ready(idle_since=idle_since) if _may_idle(target) and limits.idle_seconds < math.inf:
            return idle_since + limits.idle_seconds
        case Failed(retry_at=retry_at, confirmed=True) if limits.always_on:
            return retry_at
        case Waking(since=since):
            return since + limits.start_seconds
        case _:
            return None


def step(target: Target, event: Event, now: float, limits: Limits) -> Target:
    """The target after `event` at `now`.

    Raises ValueError for an event that cannot happen to this target: a grant that nobody waits for or while
    the target is not ready, a release without a lease.
    """
    return _settle(_take(target, event, now, limits), now, limits)


def _take(target: Target, event: Event, now: float, limits: Limits) -> Target:
    match event:
        case Arrived():
            return _arrived(target, now)
        case Granted():
            return _granted(target)
        case Left():
            return _left(_waiting(target, -1), now, limits)
        case Released():
            return _idle_from(_in_flight(target, -1), now)
        case Observed(observation):
            return changed(target, observed=observation)
        case Lost(cause):
            return changed(target, phase=Unknown(cause)) if isinstance(target.phase, Unknown) else target
        case WakeAsked():
            return _wake_asked(target, now)
        case StopAsked():
            return _stop_asked(target, now)
        case WayGiven(reason):
            return _way_given(target, reason, now)
        case HeldBack(cause):
            return changed(target, held_back=cause)
        case WakeRefused(cause):
            return _fail_wake(target, cause, now, limits) if isinstance(target.phase, Queued) else target
        case Recommended(replicas):
            return _recommended(target, replicas)
        case Used():
            return _idle_from(target, now)
        case PeersTold():
            return _peers_told(target, event, now)
        case Tick():
            return _ticked(target, now, limits)
        case ScaleStarted(replicas):
            return changed(target, sent=replicas)
        case Scaled(replicas):
            return _scaled(target, replicas)
        case ScaleFailed():
            return _scale_failed(target, event, now, limits)


def _waiting(target: Target, change: int) -> Target:
    if target.waiting + change < 0:
        raise ValueError("nobody waits for this target")
    return changed(target, waiting=target.waiting + change)


def _in_flight(target: Target, change: int) -> Target:
    if target.in_flight + change < 0:
        raise ValueError("nobody has a lease on this target")
    return changed(target, in_flight=target.in_flight + change)


def _arrived(target: Target, now: float) -> Target:
    target = _waiting(target, +1)
    if isinstance(target.phase, Failed) and now >= target.phase.retry_at:
        return _wake(target, now, for_callers=True)
    return target


def _granted(target: Target) -> Target:
    if not isinstance(target.phase, Ready):
        raise ValueError("a lease is granted by a target that is ready")  # noqa: TRY004 - a state, not a type
    return _in_flight(_waiting(target, -1), +1)


def _left(target: Target, now: float, limits: Limits) -> Target:
    if _is_unwanted(target):
        return _given_up(target, SleepReason.ABANDONED, now)
    abandoned = isinstance(target.phase, Waking) and target.phase.for_callers and not target.waiting
    if abandoned and not limits.keep_abandoned:
        return changed(target, phase=Draining(now, SleepReason.ABANDONED, confirmed=False))
    return _idle_from(target, now)


def _idle_from(target: Target, now: float) -> Target:
    if isinstance(target.phase, Ready) and _unused(target):
        return changed(target, phase=Ready(target.phase.since, now))
    return target


def _unused(target: Target) -> bool:
    return not target.waiting and not target.in_flight


def _may_idle(target: Target) -> bool:
    """Whether it can be put to sleep for being idle: by this proxy, and used by none."""
    shared = target.shared
    return _unused(target) and shared.leads and shared.told and not shared.in_use


def _is_unwanted(target: Target) -> bool:
    """Whether it waits for its turn for callers, and none is left."""
    phase = target.phase
    return isinstance(phase, Queued) and phase.for_callers and not (target.waiting or target.shared.waiting)


def _peers_told(target: Target, told: PeersTold, now: float) -> Target:
    target = changed(target, shared=told.shared)
    if _is_unwanted(target):
        return _given_up(target, SleepReason.ABANDONED, now)
    match target.phase:
        case Ready(since=since, idle_since=idle_since) if told.used_at is not None and told.used_at > idle_since:
            return changed(target, phase=Ready(since, min(told.used_at, now)))
        case _:
            return target


def _wake_asked(target: Target, now: float) -> Target:
    match target.phase:
        case Asleep() | Failed():
            return _wake(target, now)
        case Draining() as draining:
            return changed(target, phase=replace(draining, wake_again=True))
        case (Queued() | Waking()) as coming:
            return changed(target, phase=replace(coming, for_callers=False))
        case _:
            return _idle_from(target, now)


def _way_given(target: Target, reason: SleepReason, now: float) -> Target:
    match target.phase:
        case Ready() | Waking():
            return changed(target, phase=Draining(now, reason, confirmed=False))
        case Draining() as draining if draining.reason in _PUT_OFF:
            return changed(target, phase=replace(draining, reason=reason))
        case _:
            return target


def _recommended(target: Target, replicas: int | None) -> Target:
    if replicas is not None and replicas < 1:
        raise ValueError("no replica at all is not for a recommendation to say")
    return target if replicas == target.recommended else changed(target, recommended=replicas)


def _stop_asked(target: Target, now: float) -> Target:
    match target.phase:
        case Ready():
            return changed(target, phase=Draining(now, SleepReason.STOPPED, confirmed=False))
        case Draining() as draining:
            return changed(target, phase=replace(draining, reason=SleepReason.STOPPED, wake_again=False))
        case Queued() | Waking() if target.waiting:
            return _fail(target, _WHILE_WAKING[SleepReason.STOPPED], now, now)
        case Queued():
            return _given_up(target, SleepReason.STOPPED, now)
        case Waking():
            return changed(target, phase=Draining(now, SleepReason.STOPPED, confirmed=False))
        case _:
            return target


def _given_up(target: Target, reason: SleepReason, now: float) -> Target:
    """After a wake that has not begun is given up: that costs nothing. Leases of before may still have to end."""
    return _to(target, Draining(now, reason, confirmed=True) if target.in_flight else Asleep(now))


def _ticked(target: Target, now: float, limits: Limits) -> Target:
    deadline = next_deadline(target, limits)
    if deadline is None or now < deadline:
        return target
    match target.phase:
        case Ready():
            return changed(target, phase=Draining(now, SleepReason.IDLE, confirmed=False))
        case Waking(trouble=trouble):
            why = f"; the last trouble was: {trouble}" if trouble else ""
            cause = f"it was not ready {_seconds(limits.start_seconds)} after it was started{why}"
            return _fail_wake(target, cause, now, limits)
        case Failed():
            return _wake(target, now)
        case _:
            return target


def _scaled(target: Target, replicas: int) -> Target:
    target = changed(target, sent=None)
    match target.phase:
        case Waking() as phase if replicas > 0:
            return _to(target, replace(phase, confirmed=True))
        case Draining() | Failed() as phase if replicas == 0:
            return _to(target, replace(phase, confirmed=True))
        case _:
            return target


def _scale_failed(target: Target, event: ScaleFailed, now: float, limits: Limits) -> Target:
    target = changed(target, sent=None)
    match target.phase:
        case Waking() if event.replicas and event.final:
            return _fail_wake(target, event.cause, now, limits)
        case Waking() as phase if event.replicas:
            return changed(target, phase=replace(phase, trouble=event.cause))
        case Draining() if event.final and not event.replicas and _serves(target):
            return changed(target, phase=Ready(since=now, idle_since=now))
        case _:
            return target


def _wake(target: Target, now: float, *, for_callers: bool = False) -> Target:
    # What failed before belongs to the start before.
    seen = replace(target.observed, failure=None) if target.observed is not None else None
    phase: Phase = Waking(now, confirmed=False, for_callers=for_callers)
    if target.held_back is not None:
        phase = Queued(now, for_callers)
    return changed(target, phase=phase, observed=seen, recommended=None)


def _fail(target: Target, cause: str, now: float, retry_at: float) -> Target:
    return changed(target, phase=Failed(now, cause, retry_at, confirmed=False))


def _fail_wake(target: Target, cause: str, now: float, limits: Limits) -> Target:
    pause = min(limits.retry_first_seconds * 2 ** min(target.failures, 30), limits.retry_most_seconds)
    return _fail(changed(target, failures=target.failures + 1), cause, now, now + pause)


def _settle(target: Target, now: float, limits: Limits) -> Target:
    while (settled := _settle_once(target, now, limits)) is not target:
        target = settled
    return target


def _settle_once(target: Target, now: float, limits: Limits) -> Target:
    if target.observed is None:
        return target
    match target.phase:
        case Unknown():
            return _first_seen(target, target.observed, now)
        case Asleep():
            return _settle_asleep(target, target.observed, now, limits)
        case Queued() as phase:
            return _settle_queued(target, phase, target.observed, now)
        case Waking() as phase:
            return _settle_waking(target, phase, target.observed, now, limits)
        case Ready():
            return _settle_ready(target, target.observed, now)
        case Draining() as phase:
            return _settle_draining(target, phase, target.observed, now)
        case Failed() as phase:
            return _settle_failed(target, phase, target.observed, now)


def _to(target: Target, phase: Phase) -> Target:
    return changed(target, phase=phase)


def _serves(target: Target) -> bool:
    seen = target.observed
    return seen is not None and seen.replicas > 0 and bool(seen.endpoints)


def _first_seen(target: Target, seen: Observation, now: float) -> Target:
    if seen.replicas:
        return _to(target, Waking(now, confirmed=True))
    if seen.live:
        return _to(target, Draining(now, SleepReason.ELSEWHERE, confirmed=True))
    return _to(target, Asleep(now))


def _settle_asleep(target: Target, seen: Observation, now: float, limits: Limits) -> Target:
    if seen.replicas:
        return _to(target, Waking(now, confirmed=True))
    if limits.always_on:
        return _wake(target, now)
    return _wake(target, now, for_callers=True) if _is_wanted(target) else target


def _is_wanted(target: Target) -> bool:
    """Whether callers wait for it; those at other proxies are for the one that leads."""
    shared = target.shared
    return target.waiting > 0 or (shared.leads and shared.waiting > 0)


def _settle_queued(target: Target, phase: Queued, seen: Observation, now: float) -> Target:
    if seen.replicas:
        return _to(target, Waking(now, confirmed=True))
    return _wake(target, now, for_callers=phase.for_callers) if target.held_back is None else target


def _settle_waking(target: Target, phase: Waking, seen: Observation, now: float, limits: Limits) -> Target:
    if seen.failure is not None:
        return _fail_wake(target, seen.failure, now, limits)
    if target.sent == 0:
        return target  # a replica that is seen now is about to go, by our own hand
    if _serves(target):
        return changed(target, phase=Ready(since=now, idle_since=now), failures=0)
    if target.sent is not None:
        return target
    if seen.replicas and not phase.confirmed:
        return _to(target, replace(phase, confirmed=True))
    if not seen.replicas and phase.confirmed:
        return _scaled_down_elsewhere(target, now)
    return target


def _scaled_down_elsewhere(target: Target, now: float) -> Target:
    reason = target.shared.yields or SleepReason.ELSEWHERE
    if target.waiting and reason not in _PUT_OFF:
        return _fail(
            target, _WHILE_WAKING.get(reason, f"it was scaled to 0 while it was waking: {reason.value}"), now, now
        )
    return _to(target, Draining(now, reason, confirmed=True))


_WHILE_WAKING = {
    SleepReason.ELSEWHERE: "someone else scaled it to 0 while it was waking (an autoscaler or a GitOps tool, perhaps)",
    SleepReason.STOPPED: "it was stopped by an operator while it was waking",
}


def _settle_ready(target: Target, seen: Observation, now: float) -> Target:
    if seen.failure is not None:
        return _wake(target, now, for_callers=True) if target.waiting else _fail(target, seen.failure, now, now)
    if not seen.replicas:
        return _to(target, Draining(now, target.shared.yields or SleepReason.ELSEWHERE, confirmed=True))
    return target if seen.endpoints else _to(target, Waking(now, confirmed=True))


def _settle_draining(target: Target, phase: Draining, seen: Observation, now: float) -> Target:
    if target.sent is not None:
        return target
    wanted = _is_wanted(target) or phase.wake_again
    if not phase.confirmed and phase.reason is SleepReason.IDLE and _is_not_idle(target) and _serves(target):
        return _to(target, Ready(since=now, idle_since=now))
    if not phase.confirmed and wanted and phase.reason in _PUT_OFF:
        if _serves(target):
            return _to(target, Ready(since=now, idle_since=now))
        if phase.reason is SleepReason.ABANDONED:
            return _to(target, Waking(now, confirmed=seen.replicas > 0, for_callers=not phase.wake_again))
    if seen.replicas:
        return _to(target, Waking(now, confirmed=True)) if phase.confirmed else target
    if not phase.confirmed:
        return _to(target, replace(phase, confirmed=True))
    if seen.live:
        return target
    if wanted:
        return _wake(target, now, for_callers=not phase.wake_again)
    return target if target.in_flight else _to(target, Asleep(now))


def _is_not_idle(target: Target) -> bool:
    """Whether it turned out not to be idle, or it is no longer this proxy's to say so."""
    return target.shared.in_use or not target.shared.leads


def _settle_failed(target: Target, phase: Failed, seen: Observation, now: float) -> Target:
    if target.sent is not None:
        return target
    if seen.replicas:
        return _to(target, Waking(now, confirmed=True)) if phase.confirmed else target
    return target if phase.confirmed else _to(target, replace(phase, confirmed=True))


def _seconds(seconds: float) -> str:
    return f"{seconds:g} s"
