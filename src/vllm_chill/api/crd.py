"""The CustomResourceDefinitions, made from the pydantic models, for Kubernetes 1.20 and newer.

The rule: a schema is structural and refuses only what the model refuses too. What no schema can say, such as that
two fields do not fit together, is refused by `parse_model`, `parse_policy` or `parse_variant` alone, and told in the
object's status.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from vllm_chill.api.kinds import MODEL, POLICY, VARIANT, Kind
from vllm_chill.api.resource import Resource
from vllm_chill.api.scaling_policy import ScalingPolicy
from vllm_chill.api.variant import VariantAutoscaling
from vllm_chill.api.vllm_model import VLLMModel
from vllm_chill.core.objects import Json

# What is for people who read the fields, or is nothing that a structural schema may have. No defaults: an object that
# leaves a field out keeps leaving it out, and gets the default of the version that reads it.
_LEFT_OUT = {"title", "default", "accepts", "group", "flag", "description", "propertyNames", "$defs", "$ref", "anyOf"}


@dataclass(frozen=True)
class Definition:
    """What a cluster is told of one kind besides its fields. `columns` are what kubectl prints: name, type, path."""

    resource: type[Resource]
    kind: Kind
    scope: str
    description: str
    columns: tuple[tuple[str, str, str], ...]

    @property
    def name(self) -> str:
        """The name of the CustomResourceDefinition."""
        return f"{self.kind.plural}.{self.kind.group}"


MODELS = Definition(
    VLLMModel,
    MODEL,
    "Cluster",
    "a model that vllm-chill wakes, serves and puts to sleep.",
    (
        ("Model", "string", ".spec.modelName"),
        ("Served As", "string", ".spec.servedModelName"),
        ("Status", "string", ".status.phase"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ),
)
POLICIES = Definition(
    ScalingPolicy,
    POLICY,
    "Namespaced",
    "how vllm-chill scales a target, from 1 to N replicas.",
    (
        ("Target", "string", ".spec.scaleTargetRef.name"),
        ("Min", "integer", ".spec.minReplicas"),
        ("Max", "integer", ".spec.maxReplicas"),
        ("Current", "integer", ".status.currentReplicas"),
        ("Desired", "integer", ".status.desiredReplicas"),
        ("Active", "string", '.status.conditions[?(@.type=="Active")].status'),
        ("Age", "date", ".metadata.creationTimestamp"),
    ),
)
VARIANTS = Definition(
    VariantAutoscaling,
    VARIANT,
    "Namespaced",
    "one way to serve a model; how many replicas it has is decided among all variants of that model.",
    (
        ("Target", "string", ".spec.scaleTargetRef.name"),
        ("Model", "string", ".spec.modelID"),
        ("Accelerator", "string", ".status.desiredOptimizedAlloc.accelerator"),
        ("Current", "integer", ".status.currentReplicas"),
        ("Optimized", "integer", ".status.desiredOptimizedAlloc.numReplicas"),
        ("MetricsReady", "string", '.status.conditions[?(@.type=="MetricsAvailable")].status'),
        ("Age", "date", ".metadata.creationTimestamp"),
    ),
)
DEFINITIONS = (MODELS, POLICIES, VARIANTS)


def crds() -> tuple[Json, ...]:
    """All objects to apply."""
    return tuple(map(crd, DEFINITIONS))


def crd(of: Definition = MODELS) -> Json:
    """The object to apply. Its status is a subresource: who may write a spec may not claim how it does."""
    schema = of.resource.model_json_schema(by_alias=True)
    fields = _structural(schema, schema["$defs"])["properties"]
    kind = of.kind
    version = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path} for name, type_, path in of.columns
        ],
        "subresources": {"status": {}},
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": f"{kind.kind}: {of.description}",
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                    "spec": fields["spec"],
                    "status": fields["status"],
                },
            }
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": of.name},
        "spec": {
            "group": kind.group,
            "scope": of.scope,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": list(kind.short_names),
            },
            "versions": [version],
        },
    }


def _structural(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Json:
    """A schema of pydantic's as Kubernetes wants it: whole, without references, and with one type for each value."""
    schema = _alone(schema, shared)
    left_out = _LEFT_OUT - {"anyOf"} if schema.get("x-kubernetes-int-or-string") else _LEFT_OUT
    made: Json = {"description": _described(schema)} if "description" in schema else {}
    # Copies, as a list that is the same one in two places becomes an alias in YAML.
    made |= {name: deepcopy(value) for name, value in schema.items() if name not in left_out}
    if "exclusiveMinimum" in made:
        # OpenAPI 3.0 says it as JSON Schema's draft 4 did.
        made |= {"minimum": made["exclusiveMinimum"], "exclusiveMinimum": True}
    if "properties" in made:
        made["properties"] = {name: _structural(field, shared) for name, field in made["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(made.get(name), Mapping):
            made[name] = _structural(made[name], shared)
    return made


def _alone(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with what it refers to; one that may be null as well is what it is otherwise, as Kubernetes lets go of
    fields that are null.
    """
    if "$ref" in schema:
        referred = shared[schema["$ref"].removeprefix("#/$defs/")]
        return _alone({**referred, **{name: value for name, value in schema.items() if name != "$ref"}}, shared)
    if "x-kubernetes-int-or-string" not in schema and "anyOf" in schema:
        [choice] = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
        return {**_alone(choice, shared), **{name: value for name, value in schema.items() if name != "anyOf"}}
    return schema


def _described(schema: Mapping[str, Any]) -> str:
    flag, accepts = schema.get("flag"), schema.get("accepts")
    parts = [
        schema["description"],
        f"In vLLM: {flag}." if flag else "",
        f"Accepts {accepts}." if accepts and "group" in schema else "",
    ]
    return " ".join(filter(None, parts))
