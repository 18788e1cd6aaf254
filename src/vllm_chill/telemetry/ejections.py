"""The record of replicas that were taken out of the turn: one log line for each ejection and each return."""

from __future__ import annotations

import structlog

from vllm_chill.core.outliers import Ejection
from vllm_chill.core.target import TargetRef
from vllm_chill.telemetry.metrics import Metrics


class EjectionRecord:
    """control.ejection.EjectionRecorder on Metrics and the log, for one target."""

    def __init__(self, ref: TargetRef, metrics: Metrics) -> None:
        self._target = str(ref)
        self._metrics = metrics
        self._log = structlog.get_logger("vllm_chill.target")

    def ejected(self, ejection: Ejection) -> None:
        """Count and log it."""
        self._metrics.replica_ejections.labels(self._target).inc()
        self._log.warning(
            "replica taken out",
            target=self._target,
            replica=str(ejection.endpoint),
            cause=ejection.cause,
            for_seconds=ejection.seconds,
            times=ejection.count,
        )

    def restored(self, ejection: Ejection, seconds: float) -> None:
        """Log it."""
        self._log.info(
            "replica is back", target=self._target, replica=str(ejection.endpoint), after_seconds=round(seconds, 3)
        )
