"""The record of a target's life: one log line and the right metrics for each change."""

from __future__ import annotations

from typing import Any

import structlog

from vllm_chill.core.target import (
    Asleep,
    Draining,
    Endpoint,
    Failed,
    Phase,
    Queued,
    Ready,
    SleepReason,
    Target,
    TargetRef,
    Unknown,
    Waking,
)
from vllm_chill.telemetry.metrics import Metrics


class TargetRecorder:
    """ports.Recorder on Metrics and the log, for one target."""

    def __init__(self, ref: TargetRef, metrics: Metrics) -> None:
        self._target = str(ref)
        self._metrics = metrics
        self._log = structlog.get_logger("vllm_chill.target")

    def changed(self, before: Target, after: Target, now: float) -> None:
        """Log the new phase with its reason; a wake that succeeded is measured, one that failed is counted."""
        fields: dict[str, Any] = {"target": str(after.ref), "waiting": after.waiting, "in_flight": after.in_flight}
        if isinstance(before.phase, Waking) and isinstance(after.phase, Ready):
            fields["after_seconds"] = round(now - before.phase.since, 3)
            self._metrics.wake_duration.labels(self._target).observe(now - before.phase.since)
        if isinstance(after.phase, Failed) and not isinstance(before.phase, Failed):
            self._metrics.wake_failures.labels(self._target).inc()
        level = self._log.error if isinstance(after.phase, Failed) else self._log.info
        level(_event(before.phase, after.phase), **fields, **_why(before.phase, after.phase, after.held_back))

    def progressed(self, target: Target, now: float) -> None:
        """Starts have a record of their own."""

    def answered(self, now: float) -> None:
        """Starts have a record of their own."""

    def departed(self, endpoint: Endpoint) -> None:
        """Phases and scales tell enough."""

    def held(self, seconds: float) -> None:
        """Measure a hold."""
        self._metrics.hold_duration.labels(self._target).observe(seconds)

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        """Count a write to the backend; a failed one is logged."""
        direction = "up" if replicas else "down"
        self._metrics.scale_operations.labels(self._target, direction, "success" if error is None else "failure").inc()
        if error is None:
            self._log.info("scaled", target=str(target.ref), replicas=replicas)
        else:
            self._log.warning("scaling failed", target=str(target.ref), replicas=replicas, cause=error)


def _event(before: Phase, after: Phase) -> str:
    match before, after:
        case Unknown(), Ready():
            return "found ready"
        case Unknown(), Asleep():
            return "found asleep"
        case ((Unknown() | Asleep() | Queued()), Waking(confirmed=True)):
            return "found starting"
        case Ready(), Waking():
            return "no longer ready"
        case Draining(), Ready():
            return "kept awake"
        case _, _:
            return type(after).__name__.lower()


def _why(before: Phase, after: Phase, held_back: str | None) -> dict[str, str]:
    match after:
        case Failed(cause=cause):
            return {"cause": cause}
        case Draining(reason=reason):
            return {"reason": reason.value}
        case Queued():
            return {} if held_back is None else {"cause": held_back}
        case _:
            pass
    if isinstance(before, Draining) and before.reason is SleepReason.IDLE and isinstance(after, Ready):
        return {"reason": "a request came"}
    return {}
