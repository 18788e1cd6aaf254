"""The VariantAutoscaling resource: one variant of a model, as an object of the cluster, read into a VariantSpec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_chill.api.kinds import VARIANT
from vllm_chill.api.resource import Condition, Resource, read_resource, unknown_fields
from vllm_chill.api.spec_parts import Part, declared
from vllm_chill.api.spec_types import seconds
from vllm_chill.api.variant_spec import Actuation, ScaleToZero, VariantAutoscalingSpec
from vllm_chill.core.saturation.spec import VariantSpec, VariantTarget
from vllm_chill.errors import InvalidVariant

KIND, PLURAL, API_VERSION = VARIANT.kind, VARIANT.plural, VARIANT.api_version

ACCELERATOR_LABEL = "inference.optimization/acceleratorName"
"""The label of an object that names its accelerator."""
INSTANCE_LABEL = "wva.llmd.ai/controller-instance"
"""The label of an object that names the controller which looks after it."""


class AllocationStatus(Part):
    """What was last decided."""

    last_run_time: str | None = declared(None, "a time", "When it was decided.", schema={"format": "date-time"})
    accelerator: str = declared(..., "a text", "The accelerator that the replicas run on; unknown if nothing says it.")
    num_replicas: int = declared(..., "a number", "So many replicas.", ge=0)


class ActuationStatus(Part):
    """What became of the decision."""

    applied: bool = declared(..., "true or false", "Whether it was handed on: as a metric, or to the target itself.")


class DecisionStep(Part):
    """One step of a decision."""

    stage: str = declared(..., "a word", "Which step: collect, analyze, steady, optimize, bound, limit or zero.")
    text: str = declared(..., "a text", "What it made of what was there, and why.")
    replicas: int | None = declared(None, "a number", "The number of replicas after it; not set: about the model.")


class DecisionStatus(Part):
    """The last decision."""

    time: str | None = declared(None, "a time", "When it was made.")
    reason: str = declared("", "a word", "Why, in one word for programs.")
    trail: tuple[DecisionStep, ...] = declared((), "a list", "How it came about, step by step.")


class VariantAutoscalingStatus(Part):
    """How the variant does, written by vllm-chill."""

    desired_optimized_alloc: AllocationStatus | None = declared(
        None, "nothing", "How many replicas it is to have, and on what."
    )
    actuation: ActuationStatus | None = declared(None, "nothing", "What became of the decision.")
    current_replicas: int | None = declared(None, "a number", "Replicas that the target is asked to have.")
    saturation: float | None = declared(
        None, "a number from 0 to 1", "How saturated its replicas are in the mean; not set if that is not known."
    )
    decision: DecisionStatus | None = declared(None, "nothing", "The last decision, and how it came about.")
    observed_generation: int | None = declared(None, "a number", "The generation of the spec that this is about.")
    conditions: tuple[Condition, ...] = declared(
        (),
        "a list of conditions",
        "What is so and what is not: TargetResolved, MetricsAvailable and OptimizationReady.",
        schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class VariantAutoscaling(Resource):
    """A variant: what it asks for, and how it does."""

    API_VERSION = API_VERSION
    KIND = KIND
    INVALID = InvalidVariant

    spec: VariantAutoscalingSpec = declared(
        ...,
        "at least {scaleTargetRef: {kind: Deployment, name: NAME}, modelID: MODEL}",
        "What is scaled, what it serves, and within which bounds.",
    )
    status: VariantAutoscalingStatus = declared(
        VariantAutoscalingStatus.model_construct(), "nothing", "How it does; vllm-chill writes it."
    )


def parse_variant(obj: Mapping[str, Any]) -> VariantAutoscaling:
    """The variant of an object, as the API server or a file has it. `apiVersion` and `kind` may be left out.

    Raises InvalidVariant with a sentence for everything that is wrong with it. Fields that are not known are let go,
    as the API server does; `variant_warnings` tells of them.
    """
    return read_resource(VariantAutoscaling, obj)


def variant_warnings(variant: VariantAutoscaling, obj: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """A sentence for everything that is allowed and may not be what was meant.

    `obj` is what the variant was parsed from, where it did not come through an API server: its unknown fields are
    told, but for those of the model profile, which may have any.
    """
    found = () if obj is None else unknown_fields(obj, VariantAutoscaling)
    told = (sentence for sentence in found if not sentence.startswith("spec.modelProfile."))
    return (*told, *_without_effect(variant.spec))


def _without_effect(spec: VariantAutoscalingSpec) -> Iterator[str]:
    if spec.min_replicas and spec.scale_to_zero is not None and spec.scale_to_zero.enabled:
        yield "spec.scaleToZero: it is without effect, as minReplicas keeps replicas there"


def spec_of(variant: VariantAutoscaling) -> VariantSpec:
    """What the variant asks for."""
    spec, zero, labels = variant.spec, variant.spec.scale_to_zero or ScaleToZero(), variant.metadata.labels
    target, retention, profile = spec.scale_target_ref, zero.retention_period, spec.model_profile
    return VariantSpec(
        namespace=variant.metadata.namespace,
        name=variant.name,
        target=VariantTarget(target.full_api_version, target.kind, target.name),
        model_id=spec.model_id,
        cost=None if spec.variant_cost is None else float(spec.variant_cost),
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        scale_to_zero=zero.enabled,
        retention_seconds=None if retention is None else seconds(retention),
        direct=None if spec.actuation is None else spec.actuation is Actuation.DIRECT,
        accelerators=() if profile is None else tuple((one.acc, one.acc_count) for one in profile.accelerators),
        accelerator=labels.get(ACCELERATOR_LABEL, ""),
        controller_instance=labels.get(INSTANCE_LABEL, ""),
    )
