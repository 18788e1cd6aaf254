"""The spec of a VariantAutoscaling: every field, declared once, with what it does and what it is if it is left out.

The rule: whatever llm-d's own definition takes is taken here, in the versions with a model profile too, and means the
same. What is added can be left out. The CRD and the reference page are made from these fields.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from vllm_chill.api.resource import Checked, Conflict
from vllm_chill.api.scale_target import ScaleTargetRef
from vllm_chill.api.spec_parts import Part, declared
from vllm_chill.api.spec_types import Count, CountOrZero, Duration, Shape, Switch

_MANY = 100
_OPEN = ConfigDict(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
_COST = 'a number in quotes, 0 or more, such as "80.0"'
_DURATION = "a duration such as 90s, 15m or 1h30m"

# As long as a number may be and still be one.
Cost = Annotated[str, Field(max_length=300, pattern=r"^[0-9]+(\.[0-9]+)?$")]
Label = Annotated[str, Field(min_length=1, max_length=253)]


class Actuation(enum.StrEnum):
    """Who brings a target to the number of replicas that was decided on."""

    METRICS = "metrics"
    DIRECT = "direct"


class VariantTargetRef(ScaleTargetRef):
    """What is scaled, as autoscaling/v1's CrossVersionObjectReference."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})


class Accelerator(Part):
    """One kind of accelerator that a replica can run on."""

    model_config = _OPEN

    acc: Label = declared(..., "the name of an accelerator, such as H100", "Its name, as accelerator-costs has it.")
    acc_count: Count = declared(1, "a whole number, at least 1", "How many of them one replica has. Not set: 1.")
    max_batch_size: Count | None = declared(
        None, "a whole number, at least 1", "How many requests one replica works on at a time. Only kept."
    )
    perf_parms: Shape | None = declared(None, "a mapping", "Parameters of a performance model. Only kept.")


class ModelProfile(Part):
    """What the model can run on."""

    model_config = _OPEN

    accelerators: Annotated[tuple[Accelerator, ...], Field(max_length=_MANY)] = declared(
        (), "a list of {acc: NAME, accCount: NUMBER}",
        "The accelerators. The first counts where neither the label inference.optimization/acceleratorName nor the "
        "nodes of the pods say which one it is.",
    )  # fmt: skip


class SloClassRef(Part):
    """A service class, as manifests of earlier versions name it."""

    name: str | None = declared(None, "a text", "The ConfigMap.")
    key: str | None = declared(None, "a text", "The key in it.")


class ScaleToZero(Part):
    """Whether the model may be left without any replica."""

    enabled: Switch | None = declared(
        None, "true or false", "Whether it may. Not set: as the ConfigMap for scaling to zero has it, else false."
    )
    retention_period: Duration | None = declared(
        None, _DURATION,
        "For how long it must have been unused. Not set: as the ConfigMap for scaling to zero has it, else 10m.",
    )  # fmt: skip


class VariantAutoscalingSpec(Checked):
    """What is scaled, what it serves, and within which bounds."""

    STAND_INS: ClassVar = {"scaleTargetRef": {"kind": "Deployment", "name": "unknown"}, "modelID": "unknown"}

    scale_target_ref: VariantTargetRef = declared(..., "{kind: Deployment, name: NAME}", "What is scaled.")
    model_id: Annotated[str, Field(min_length=1, max_length=1024)] = declared(
        ..., "the model's name, as requests say it",
        "The model that it serves, as requests and the engine's metrics call it. Variants with the same one are "
        "decided on together.",
        alias="modelID",
    )  # fmt: skip
    variant_cost: Cost | None = declared(
        None, _COST,
        "What one replica costs, in any unit that all variants of the model share. Not set: what accelerator-costs "
        "says of its accelerators, else 10.0.",
    )  # fmt: skip
    model_profile: ModelProfile | None = declared(
        None, "{accelerators: [{acc: NAME, accCount: NUMBER}]}", "What the model runs on, where no label says it."
    )
    slo_class_ref: SloClassRef | None = declared(
        None, "{name: NAME, key: KEY}",
        "Only kept: whose model it is, is found by the model's name in service-class-config.",
    )  # fmt: skip
    min_replicas: CountOrZero = declared(
        0, "a number of replicas, 0 or more",
        "The fewest replicas. Not set: 0, so that another variant of the model may serve it alone.",
    )  # fmt: skip
    max_replicas: Count | None = declared(
        None, "a number of replicas, at least 1",
        "The most replicas. Not set: any number, as what scales the target has a bound of its own.",
    )  # fmt: skip
    scale_to_zero: ScaleToZero | None = declared(
        None, "{enabled: true, retentionPeriod: 15m}",
        "Whether the model may be left without any replica. Of several variants all must allow it, and the longest "
        "period counts. Not set: as the ConfigMap for scaling to zero has it.",
    )  # fmt: skip
    actuation: Actuation | None = declared(
        None, f"{Actuation.METRICS} or {Actuation.DIRECT}",
        "Who scales the target. metrics: whoever reads wva_desired_replicas, such as HPA or KEDA; direct: vllm-chill. "
        "Not set: as the controller is set.",
    )  # fmt: skip

    def conflicts(self) -> Iterator[Conflict]:
        """What no field can know by itself."""
        if self.max_replicas is not None and self.min_replicas > self.max_replicas:
            yield Conflict(
                "minReplicas",
                f"{self.min_replicas} is more than the {self.max_replicas} of maxReplicas; give at most that",
                ("minReplicas", "maxReplicas"),
            )
