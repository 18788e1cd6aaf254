"""What `GET /proxy/status` answers, and `vllm-chill status` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.cold_start import STAGE_NAMES, ColdStart, Outcome
from vllm_chill.core.lifecycle import desired_replicas, next_deadline
from vllm_chill.core.scaling.decision import Decision
from vllm_chill.core.starts import Starts
from vllm_chill.core.target import Asleep, Draining, Failed, Limits, Phase, Queued, Ready, Target, Unknown, Waking

PhaseName = Literal["unknown", "asleep", "queued", "waking", "ready", "draining", "failed"]
OutcomeName = Literal["ready", "failed", "stopped"]


class StartStatus(Struct, frozen=True, kw_only=True):
    """A cold start under way, until the first byte of its first answer."""

    stage: str
    """What it is at now, one of the phases of `vllm_chill_cold_start_phase_seconds`."""
    detail: str | None = None
    """More of that in words, such as the scheduler's."""
    elapsed_seconds: float
    eta_seconds: float | None = None
    """When the target will probably be ready; null until a start has become ready."""


class PastStartStatus(Struct, frozen=True, kw_only=True):
    """A cold start that is over."""

    outcome: OutcomeName
    total_seconds: float
    """From the wish for a replica to the first byte of a first answer, or to ready if nobody waited for one."""
    stages: dict[str, float]
    """The seconds of each stage that took time, in their order; they add up to the total."""
    stopped_at: str | None = None
    """The stage in which it failed or was stopped."""
    detail: str | None = None
    cause: str | None = None


class TargetStatus(Struct, frozen=True, kw_only=True):
    """One target as seen from outside. Times are in seconds; what does not apply is null."""

    target: str
    model: str | None = None
    """What the catalogue calls it, where there is one."""
    served_names: list[str] = []
    """What requests may call it: its served name, aliases and adapters."""
    group: str | None = None
    """At most one model of a group is awake at a time."""
    waits_for: list[str] = []
    """The models that have to sleep before it can be woken."""
    phase: PhaseName
    phase_seconds: float | None = None
    """For how long it has been in this phase."""
    replicas: int | None = None
    """Replicas asked for, as last seen."""
    desired_replicas: int | None = None
    """Replicas that are wanted now."""
    ready_replicas: int | None = None
    """Replicas that are ready, as last seen."""
    scaling: str | None = None
    """Why it is to have so many, while it is awake: the last decision of its scaling policy."""
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
    """Why it failed, drains, is not woken yet, or is not known."""
    start: StartStatus | None = None
    """The cold start under way."""
    last_start: PastStartStatus | None = None
    """The newest one that is over, since this proxy began."""
    output: list[str] | None = None
    """The last lines that the engine wrote, at most ten, while it starts and after it has failed."""


class PeersStatus(Struct, frozen=True, kw_only=True):
    """How a proxy stands to the others that serve the same targets."""

    identity: str
    """Who it is to them."""
    leads: bool
    """Whether it is the one that puts targets to sleep."""
    leader: str | None = None
    """Who was seen to lead last."""
    others: list[str]
    """Those that have reported lately."""
    trouble: str | None = None
    """Why it cannot tell them of its callers, so that it puts nothing to sleep."""


class ConfigurationStatus(Struct, frozen=True, kw_only=True):
    """What a running proxy was last asked to do."""

    loaded: str
    """When what is in force was read."""
    error: str | None = None
    """What is wrong with what was read since, so that what was before holds on."""
    needs_restart: list[str] = []
    """The settings that have changed since, and count after a restart."""


class ProxyStatus(Struct, frozen=True, kw_only=True):
    """The whole answer."""

    version: str
    draining: bool
    """Whether this proxy is shutting down."""
    default_model: str | None = None
    """The model of requests that name none, where there is a catalogue."""
    trouble: str | None = None
    """Why the catalogue is not known."""
    peers: PeersStatus | None = None
    """The other proxies; none with --leader-elect off, and without a cluster."""
    configuration: ConfigurationStatus | None = None
    """Since when its settings are in force, and whether those that are there by now could be taken."""
    targets: list[TargetStatus]


def target_status(
    target: Target,
    now: float,
    limits: Limits,
    starts: Starts,
    entry: ModelEntry | None = None,
    waits_for: Sequence[str] = (),
    decision: Decision | None = None,
    output: list[str] | None = None,
) -> TargetStatus:
    """The status of a target and its starts at `now`; `entry` is its model in the catalogue, where there is one,
    `decision` the last one on its number of replicas, and `output` the last lines of its engine.
    """
    phase, seen = target.phase, target.observed
    unused = isinstance(phase, Ready) and not target.waiting and not target.in_flight
    deadline = next_deadline(target, limits) if unused else None
    return TargetStatus(
        target=str(target.ref),
        model=None if entry is None else entry.name,
        served_names=[] if entry is None else list(entry.names),
        group=None if entry is None else entry.group,
        waits_for=list(waits_for),
        phase=phase_name(phase),
        phase_seconds=None if isinstance(phase, Unknown) else round(now - phase.since, 3),
        replicas=seen.replicas if seen is not None else None,
        desired_replicas=desired_replicas(target),
        ready_replicas=len(seen.serving) if seen is not None else None,
        scaling=decision.reason if decision is not None and isinstance(phase, Waking | Ready) else None,
        endpoints=[str(endpoint) for endpoint in seen.endpoints] if seen is not None else [],
        waiting=target.waiting,
        in_flight=target.in_flight,
        idle_seconds=round(now - phase.idle_since, 3) if unused and isinstance(phase, Ready) else None,
        sleeps_in_seconds=None if deadline is None else round(max(0.0, deadline - now), 3),
        cause=_cause(target),
        start=None if starts.current is None else _start(starts.current, starts.eta(now), now),
        last_start=None if starts.last is None else past_start_status(starts.last),
        output=output,
    )


def _start(start: ColdStart, eta_seconds: float | None, now: float) -> StartStatus:
    return StartStatus(
        stage=STAGE_NAMES[start.stage],
        detail=start.detail or None,
        elapsed_seconds=round(start.elapsed(now), 3),
        eta_seconds=None if eta_seconds is None else round(eta_seconds, 3),
    )


def past_start_status(start: ColdStart) -> PastStartStatus:
    """A start that is over."""
    assert start.outcome is not None
    assert start.ended is not None
    ready = start.outcome is Outcome.READY
    return PastStartStatus(
        outcome=start.outcome.value,
        total_seconds=round(start.elapsed(start.ended), 3),
        stages={STAGE_NAMES[stage]: round(seconds, 3) for stage, seconds in start.seconds(start.ended).items()},
        stopped_at=None if ready else STAGE_NAMES[start.stage],
        detail=start.detail or None,
        cause=start.cause,
    )


def phase_name(phase: Phase) -> PhaseName:
    """What a phase is called outside."""
    return _NAMES[type(phase)]


def _cause(target: Target) -> str | None:
    match target.phase:
        case Failed(cause=cause) | Unknown(cause=cause):
            return cause
        case Queued():
            return target.held_back
        case Waking(trouble=trouble):
            return trouble
        case Draining(reason=reason):
            return reason.value
        case _:
            return None


_NAMES: dict[type, PhaseName] = {
    Unknown: "unknown",
    Asleep: "asleep",
    Queued: "queued",
    Waking: "waking",
    Ready: "ready",
    Draining: "draining",
    Failed: "failed",
}
