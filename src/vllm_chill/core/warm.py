"""The two steps of a request to a target that is ready and wanted by nobody else, each made at once.

They are `lifecycle.step` for the commonest case: every request pays for them. The rule: where they give a value it
is the one that `step` gives; everywhere else they give None, and `step` decides.
"""

from __future__ import annotations

from vllm_chill.core.target import Phase, Ready, Target


def leased(target: Target) -> Target | None:
    """The target after a caller has come and got its lease at once (Arrived, then Granted)."""
    return _with(target, target.phase, target.in_flight + 1) if _warm(target) else None


def released(target: Target, now: float) -> Target | None:
    """The target after a lease has ended (Released); idle from now on if it was the last."""
    phase, in_flight = target.phase, target.in_flight - 1
    if in_flight < 0 or not _warm(target):
        return None
    if not in_flight and type(phase) is Ready:
        phase = Ready(phase.since, now)
    return _with(target, phase, in_flight)


def _warm(target: Target) -> bool:
    seen = target.observed
    return (
        type(target.phase) is Ready
        and not target.waiting
        and target.shared.yields is None
        and seen is not None
        and seen.failure is None
        and seen.replicas > 0
        and bool(seen.endpoints)
    )


def _with(target: Target, phase: Phase, in_flight: int) -> Target:
    """Target(..., phase=phase, in_flight=in_flight, waiting=0), and the rest as it is."""
    return Target(
        target.ref,
        phase,
        0,
        in_flight,
        target.observed,
        target.sent,
        target.failures,
        target.held_back,
        target.recommended,
        target.shared,
    )
