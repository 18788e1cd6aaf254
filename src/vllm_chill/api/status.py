"""What `GET /proxy/status` answers, and `vllm-chill status` reads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from vllm_chill.core.lifecycle import next_deadline
from vllm_chill.core.target import Asleep, Draining, Failed, Limits, Phase, Ready, Target, Unknown, Waking

PhaseName = Literal["unknown", "asleep", "waking", "ready", "draining", "failed"]


class TargetStatus(BaseModel):
    """One target as seen from outside. Times are in seconds; what does not apply is null."""

    model_config = ConfigDict(frozen=True)

    target: str
    phase: PhaseName
    phase_seconds: float | None = None
    """For how long it has been in this phase."""
    replicas: int | None = None
    """Replicas asked for, as last seen."""
    endpoints: list[str] = []
    """Where requests go now."""
    waiting: int
    """Requests that are held."""
    in_flight: int
    """Requests that are being answered."""
    idle_seconds: float | None = None
    """For how long it has been ready and unused."""
    sleeps_in_seconds: float | None = None
    """When it will be put to sleep if nobody uses it."""
    cause: str | None = None
    """Why it failed, drains, or is not known."""


class ProxyStatus(BaseModel):
    """The whole answer."""

    model_config = ConfigDict(frozen=True)

    version: str
    draining: bool
    """Whether this proxy is shutting down."""
    targets: list[TargetStatus]


def target_status(target: Target, now: float, limits: Limits) -> TargetStatus:
    """The status of a target at `now`."""
    phase, seen = target.phase, target.observed
    unused = isinstance(phase, Ready) and not target.waiting and not target.in_flight
    deadline = next_deadline(target, limits) if unused else None
    return TargetStatus(
        target=str(target.ref),
        phase=phase_name(phase),
        phase_seconds=None if isinstance(phase, Unknown) else round(now - phase.since, 3),
        replicas=seen.replicas if seen is not None else None,
        endpoints=[str(endpoint) for endpoint in seen.endpoints] if seen is not None else [],
        waiting=target.waiting,
        in_flight=target.in_flight,
        idle_seconds=round(now - phase.idle_since, 3) if unused and isinstance(phase, Ready) else None,
        sleeps_in_seconds=None if deadline is None else round(max(0.0, deadline - now), 3),
        cause=_cause(target),
    )


def phase_name(phase: Phase) -> PhaseName:
    """What a phase is called outside."""
    return _NAMES[type(phase)]


def _cause(target: Target) -> str | None:
    match target.phase:
        case Failed(cause=cause) | Unknown(cause=cause):
            return cause
        case Waking(trouble=trouble):
            return trouble
        case Draining(reason=reason):
            return reason.value
        case _:
            return None


_NAMES: dict[type, PhaseName] = {
    Unknown: "unknown",
    Asleep: "asleep",
    Waking: "waking",
    Ready: "ready",
    Draining: "draining",
    Failed: "failed",
}
