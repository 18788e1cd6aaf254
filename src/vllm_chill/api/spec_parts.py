"""How a field is declared: with what it does and what it accepts, in words; and the parts of a VLLMModel's spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from vllm_chill.api.spec_types import (
    AbsolutePath,
    Name,
    ObjectName,
    Path,
    Quantity,
    SecretKeyName,
    Shape,
    Size,
    VariableName,
)

NAME = "a name without spaces that does not begin with -"
OBJECT = "a name of a Kubernetes object: lower-case letters, digits, - and ."
SIZE = "a size above zero, such as 16Gi"


def declared(default: Any, accepts: str, description: str, **more: Any) -> Any:
    """A field with what it accepts, in words that follow on "give"; `schema` goes into its JSON schema."""
    extra = {"accepts": accepts, **more.pop("schema", {})}
    return Field(default, description=description, json_schema_extra=extra, **more)


class Part(BaseModel):
    """A part of the object; fields that it does not know are let go, as the API server does."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


def fields_of(part: type[Part]) -> dict[str, FieldInfo]:
    """The fields of a part by the names that objects have."""
    return {field.alias or name: field for name, field in part.model_fields.items()}


def accepts_of(field: FieldInfo) -> str:
    """What a field accepts, in words that follow on "give"."""
    return said_of(field, "accepts") or "another value"


def said_of(field: FieldInfo, key: Literal["accepts", "group", "flag"]) -> str:
    """What a field says of itself besides its description; empty if it does not."""
    extra = field.json_schema_extra
    return str(extra.get(key, "")) if isinstance(extra, dict) else ""


def part_of(annotation: Any) -> type[Part] | None:
    """The part that a field is, or has a list of."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next(filter(None, map(part_of, get_args(annotation))), None)


class SecretKey(Part):
    """One value of a Secret in the namespace of the workload."""

    name: ObjectName = declared(..., OBJECT, "Name of the Secret, in the namespace of the workload.")
    key: SecretKeyName = declared(..., "a key of a Secret: letters, digits, and - . _", "The key in it.")


class SecretName(Part):
    """A Secret in the namespace of the workload."""

    name: ObjectName = declared(..., OBJECT, "Name of the Secret, in the namespace of the workload.")


class LoraAdapter(Part):
    """A LoRA adapter of the model."""

    name: Name = declared(..., NAME, "The name that requests call it by, in `model`.")
    path: Path = declared(
        ..., "a path without spaces, or a Hugging Face repository", "Where its weights are, for vLLM."
    )


class EnvVar(Part):
    """A variable of the engine's container."""

    name: VariableName = declared(..., "the name of a variable", "Name of the variable.")
    value: Annotated[str, Field(max_length=100_000)] | None = declared(
        None, "a text, in quotes if it is a number", "Its value."
    )
    value_from: Shape | None = declared(
        None, "Kubernetes' valueFrom, such as {secretKeyRef: …}", "Where its value is from."
    )


class Resources(Part):
    """Kubernetes' resources of a container."""

    requests: dict[str, Quantity] = declared({}, "quantities by resource", "What the scheduler finds room for.")
    limits: dict[str, Quantity] = declared({}, "quantities by resource", "What it may use.")


class ClaimCache(Part):
    """A PersistentVolumeClaim."""

    claim_name: ObjectName = declared(..., OBJECT, "Name of the claim, in the namespace of the workload.")
    sub_path: Path | None = declared(None, "a path in the volume", "The folder in it. Not set: all of it.")


class HostPathCache(Part):
    """A folder of the node."""

    path: AbsolutePath = declared(..., "a path that begins with /", "The folder; it is made if it is not there.")


class EmptyDirCache(Part):
    """A volume that goes when the pod goes."""

    size_limit: Size | None = declared(None, SIZE, "The most that it may hold. Not set: what the node has.")


class Cache(Part):
    """Where what was downloaded and compiled is kept; one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    pvc: ClaimCache | None = declared(None, "{claimName: NAME}", "A PersistentVolumeClaim.")
    host_path: HostPathCache | None = declared(None, "{path: /a/folder}", "A folder of the node that the pod runs on.")
    empty_dir: EmptyDirCache | None = declared(
        None, "{} or {sizeLimit: 100Gi}", "A volume of the pod's own: the model is downloaded again at each start."
    )


class Probes(Part):
    """What is laid over the probes of the engine's container, field by field."""

    startup: Shape | None = declared(None, "fields of a probe", "Of the startup probe.")
    readiness: Shape | None = declared(None, "fields of a probe", "Of the readiness probe.")
    liveness: Shape | None = declared(None, "fields of a probe", "Of the liveness probe.")
