"""What a variant's object asks for, as a value. Durations are in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VariantTarget:
    """What a variant scales: an object of its own namespace. `api_version` is as objects say it, such as apps/v1."""

    api_version: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One variant: `target` serves the model that requests call `model_id`.

    `cost` is that of one replica; `max_replicas` None: any number. `scale_to_zero` and `retention_seconds` are what it
    says of zero, `direct` whether its decisions are carried out here rather than only told: None where it does not
    say. `accelerators` are those of its profile, by name, with how many of them one replica has; `accelerator` is the
    one that its label names, and `controller_instance` the controller that is to look after it, "" for none.
    """

    namespace: str
    name: str
    target: VariantTarget
    model_id: str
    cost: float | None = None
    min_replicas: int = 0
    max_replicas: int | None = None
    scale_to_zero: bool | None = None
    retention_seconds: float | None = None
    direct: bool | None = None
    accelerators: tuple[tuple[str, int], ...] = ()
    accelerator: str = ""
    controller_instance: str = ""
