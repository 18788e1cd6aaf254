"""The CustomResourceDefinition of VLLMModel, made from the pydantic model, for Kubernetes 1.20 and newer.

The rule: its schema is structural and refuses only what the model refuses too. What no schema can say, such as that
two fields do not fit together, is refused by `parse_model` alone, and told in the object's status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_chill.api.vllm_model import GROUP, KIND, PLURAL, SHORT_NAMES, SINGULAR, VERSION, VLLMModel
from vllm_chill.core.objects import Json

CRD_NAME = f"{PLURAL}.{GROUP}"


# What is for people who read the fields, or is nothing that a structural schema may have. No defaults: an object that
# leaves a field out keeps leaving it out, and gets the default of the version that reads it.
_LEFT_OUT = {"title", "default", "accepts", "group", "flag", "description", "propertyNames", "$defs", "$ref", "anyOf"}
_COLUMNS = (
    ("Model", "string", ".spec.modelName"),
    ("Served As", "string", ".spec.servedModelName"),
    ("Status", "string", ".status.phase"),
    ("Age", "date", ".metadata.creationTimestamp"),
)


def crd() -> Json:
    """The object to apply. Its status is a subresource: who may write a model's spec may not claim how it is."""
    schema = VLLMModel.model_json_schema(by_alias=True)
    fields = _structural(schema, schema["$defs"])["properties"]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [{"name": name, "type": kind, "jsonPath": path} for name, kind, path in _COLUMNS],
        "subresources": {"status": {}},
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": f"{KIND}: a model that vllm-chill wakes, serves and puts to sleep.",
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
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": list(SHORT_NAMES),
            },
            "versions": [version],
        },
    }


def _structural(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Json:
    """A schema of pydantic's as Kubernetes wants it: whole, without references, and with one type for each value."""
    schema = _alone(schema, shared)
    if schema.get("x-kubernetes-int-or-string"):
        return {name: value for name, value in schema.items() if name not in _LEFT_OUT - {"anyOf"}}
    made: Json = {"description": _described(schema)} if "description" in schema else {}
    made |= {name: value for name, value in schema.items() if name not in _LEFT_OUT}
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
