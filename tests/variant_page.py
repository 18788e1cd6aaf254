"""What the controller tells of its variants on its metrics page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import generate_latest

from vllm_chill.core.saturation.decision import Direction, Reason
from vllm_chill.telemetry.variant_metrics import ControllerMetrics, VariantFigures


@dataclass(frozen=True, slots=True)
class Told:
    """One variant, as the page has it. `scaled` counts decisions by (direction, reason)."""

    name: str
    desired: int
    current: int
    saturation: float
    decided_at: float
    namespace: str = "ai-apps"
    accelerator: str = "NVIDIA-L4"
    scaled: dict[tuple[str, str], int] = field(default_factory=dict)


def page(variants: Sequence[Told], instance: str = "") -> str:
    """The page of a controller that leads, and tells of these variants."""
    metrics = ControllerMetrics("0", instance)
    for one in variants:
        key = f"{one.namespace}/{one.name}"
        figures = VariantFigures(
            one.name, one.namespace, one.accelerator, one.current, one.desired, one.saturation, one.decided_at
        )
        metrics.variants.tell(key, figures)
        for (direction, reason), count in one.scaled.items():
            for _ in range(count):
                metrics.variants.scaled(key, Direction(direction), Reason(reason))
    return generate_latest(metrics.registry).decode()
