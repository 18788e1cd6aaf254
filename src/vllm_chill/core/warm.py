"""The two steps of a request to a target that is ready and wanted by nobody else, each made at once.

They are `lifecycle.step` for the commonest case: every request pays for them. The rule: where they give a value it
is the one that `step` gives; everywhere else they give None, and `step` decides.
"""

from __future__ import annotations

from vllm_chill.core.target import Ready, Target


def leased(target: Target) -> Target | None:
    """The target after a caller has come and got its lease at once (Arrived, then Granted)."""
    if not _warm(target):
        return None
    in_flight = target.in_flight + 1
    return Target(target.ref, target.phase, 0, in_flight, target.observed, target.sent, target.failures)


def released(target: Target, now: float) -> Target | None:
    """The target after a lease has ended (Released); idle from now on if it was the last."""
    phase, in_flight = target.phase, target.in_flight - 1
    if in_flight < 0 or not _warm(target):
        return None
    if not in_flight and type(phase) is Ready:
        phase = Ready(phase.since, now)
    return Target(target.ref, phase, 0, in_flight, target.observed, target.sent, target.failures)


def _warm(target: Target) -> bool:
    seen = target.observed
    return (
        type(target.phase) is Ready
        and not target.waiting
        and seen is not None
        and seen.failure is None
        and seen.replicas > 0
        and bool(seen.endpoints)
    )
