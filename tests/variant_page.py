"""What the controller tells of its variants on its metrics page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


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
    """The series of these variants, in Prometheus' text format."""
    lines = []
    for one in variants:
        labels = {
            "variant": one.name,
            "variant_name": one.name,
            "namespace": one.namespace,
            "accelerator_type": one.accelerator,
            **({"controller_instance": instance} if instance else {}),
        }
        told: list[tuple[str, dict[str, str], float]] = [
            ("wva_desired_replicas", {}, one.desired),
            ("wva_current_replicas", {}, one.current),
            ("wva_desired_ratio", {}, one.desired / one.current if one.current else one.desired),
            ("wva_saturation_level", {}, one.saturation),
            ("wva_last_scaling_decision_timestamp", {}, one.decided_at),
            *(
                ("wva_replica_scaling_total", {"direction": direction, "reason": reason}, count)
                for (direction, reason), count in one.scaled.items()
            ),
        ]
        for name, more, value in told:
            inner = ",".join(f'{key}="{text}"' for key, text in (labels | more).items())
            lines.append(f"{name}{{{inner}}} {value!r}\n")
    return "".join(lines)
