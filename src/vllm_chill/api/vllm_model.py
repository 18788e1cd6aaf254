"""The VLLMModel resource: a model as an object of the cluster or an entry of a file, read once into what others use.

The rule: an object is taken whole, or refused with a sentence for each thing that is wrong with it. What the proxy
itself wrote into the status never makes a model unusable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from vllm_chill.api.model_spec import Conflict, VLLMModelSpec
from vllm_chill.api.spec_parts import Part, declared
from vllm_chill.api.spec_types import ObjectName, seconds
from vllm_chill.api.vllm_values import (
    DTYPES,
    QUANTIZATIONS,
    REASONING_PARSERS,
    TOKENIZER_MODES,
    TOOL_CALL_PARSERS,
    VLLM,
    nearest,
)
from vllm_chill.core.catalogue import Adapter, ModelEntry
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import InvalidModel

__all__ = ["VLLMModel", "VLLMModelSpec", "VLLMModelStatus", "entry_of", "parse_model", "warnings"]

GROUP = "vllm.sir-alfred.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "VLLMModel"
PLURAL = "models"
SINGULAR = "model"
SHORT_NAMES = ("vm", "vllm")

_SHOWN_CHARACTERS = 100


class Condition(Part):
    """One thing that is so or not, as Kubernetes' conditions have it."""

    type: str = declared(..., "a word", "What it is about, such as Ready.")
    status: str = declared(..., "True, False or Unknown", "True, False or Unknown.")
    reason: str = declared("", "a word", "Why, in one word for programs.")
    message: str = declared("", "a text", "Why, in words.")
    last_transition_time: str | None = declared(None, "a time", "Since when its status is what it is.")
    observed_generation: int | None = declared(None, "a number", "The generation of the spec that it is about.")


class VLLMModelStatus(Part):
    """How the model is, written by vllm-chill."""

    phase: str | None = declared(
        None,
        "a word",
        "Unknown, Asleep, Queued, Waking, Ready, Draining or Failed; Invalid where its spec is refused, Deleting on "
        "its way out.",
    )
    message: str | None = declared(None, "a text", "Why it is so, in words, where there is something to say.")
    conditions: tuple[Condition, ...] = declared(
        (),
        "a list of conditions",
        "What is so and what is not.",
        schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int | None = declared(None, "a number", "The generation of the spec that this is about.")
    replicas: int | None = declared(None, "a number", "Replicas that are there.")
    last_wake_seconds: float | None = declared(None, "a number", "How long its last start took.")
    last_used: str | None = declared(None, "a time", "When it was last used, as far as this proxy knows.")


class Metadata(Part):
    """The parts of Kubernetes' metadata that matter here; only the name must be there."""

    name: ObjectName = declared(..., "a name of lower-case letters, digits, - and .", "Name of the object.")
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None


class VLLMModel(Part):
    """A model: what it is, how vLLM runs it, and how it is at present."""

    metadata: Metadata = declared(..., "at least {name: NAME}", "Kubernetes' metadata.")
    spec: VLLMModelSpec = declared(..., "at least {modelName: NAME}", "What the model is, and how it is run.")
    status: VLLMModelStatus = declared(VLLMModelStatus.model_construct(), "nothing", "How it is; vllm-chill writes it.")

    @property
    def name(self) -> str:
        """The name of the object."""
        return self.metadata.name


def parse_model(obj: Mapping[str, Any]) -> VLLMModel:
    """The model of an object, as the API server or a file has it. `apiVersion` and `kind` may be left out.

    Raises InvalidModel with a sentence for everything that is wrong with it. Fields that are not known are let go, as
    the API server does; `warnings` tells of them.
    """
    problems = list(_other_kind(obj))
    given = {key: value for key in ("metadata", "spec") if (value := _without_nulls(obj.get(key))) is not None}
    try:
        model = VLLMModel.model_validate(given)
    except ValidationError as error:
        problems += _problems(error, given)
    if problems:
        raise InvalidModel(_name_of(obj), tuple(dict.fromkeys(problems)))
    return model.model_copy(update={"status": _status(obj.get("status"))})


def _without_nulls(value: Any) -> Any:
    # As the API server does: a field that is null is a field that is left out.
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _name_of(obj: Mapping[str, Any]) -> str:
    metadata = obj.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""


def _other_kind(obj: Mapping[str, Any]) -> Iterator[str]:
    for key, known in (("apiVersion", API_VERSION), ("kind", KIND)):
        if obj.get(key, known) != known:
            yield f"{key}: {_shown(obj[key])} is not accepted; give {known}"


def _status(value: object) -> VLLMModelStatus:
    try:
        return VLLMModelStatus.model_validate(_without_nulls(value) or {})
    except ValidationError:
        return VLLMModelStatus()


# --- problems ---


def _problems(error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    bad: set[str] = set()
    for detail in error.errors(include_url=False):
        if detail["type"] == "conflicts":
            yield from map(str, detail["ctx"]["conflicts"])
            return
        location = detail["loc"]
        if len(location) > 1 and location[0] == "spec":
            bad.add(str(location[1]))
        yield _sentence(detail)
    if bad:
        yield from (str(found) for found in _other_conflicts(given["spec"], bad))


def _other_conflicts(spec: Mapping[str, Any], bad: set[str]) -> Iterator[Conflict]:
    """What does not fit together among the fields that are good by themselves."""
    good = {key: value for key, value in spec.items() if key not in bad}
    try:
        VLLMModelSpec.model_validate({"modelName": "unknown", **good})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "conflicts":
                found: Sequence[Conflict] = detail["ctx"]["conflicts"]
                yield from (one for one in found if not bad & set(one.fields))


def _sentence(detail: ErrorDetails) -> str:
    path, accepts = _place(detail["loc"])
    if detail["type"] == "missing":
        return f"{path}: it is missing; give {accepts}"
    return f"{path}: {_shown(detail['input'])} is not accepted; give {accepts}"


def _place(location: Sequence[int | str]) -> tuple[str, str]:
    """Where it is, such as spec.env[0].name, and what is accepted there."""
    path, accepts = "", "another value"
    part: type[Part] | None = VLLMModel
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
            continue
        path += f".{step}" if path else step
        field = None if part is None else fields_of(part).get(step)
        if field is None:
            break  # a key of a mapping; what follows is pydantic's name for a type
        accepts, part = accepts_of(field), part_of(field.annotation)
    return path, accepts


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


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


# --- warnings ---


def warnings(model: VLLMModel, obj: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """A sentence for everything that is allowed and may not be what was meant.

    `obj` is what the model was parsed from, where it did not come through an API server: its unknown fields are told.
    """
    found = () if obj is None else (*_unknown(obj, VLLMModel, ""),)
    return (*found, *_unknown_values(model.spec), *_without_effect(model.spec))


_OPEN = (
    ("toolCallParser", "tool_call_parser", TOOL_CALL_PARSERS),
    ("reasoningParser", "reasoning_parser", REASONING_PARSERS),
    ("dtype", "dtype", DTYPES),
    ("quantization", "quantization", QUANTIZATIONS),
    ("tokenizerMode", "tokenizer_mode", TOKENIZER_MODES),
)


def _unknown_values(spec: VLLMModelSpec) -> Iterator[str]:
    for alias, name, known in _OPEN:
        value = getattr(spec, name)
        if value and value not in known:
            yield f'spec.{alias}: "{value}" is nothing that {VLLM} has{nearest(value, known)}'


def _without_effect(spec: VLLMModelSpec) -> Iterator[str]:
    if spec.enable_auto_tool_choice and not spec.has_tool_parser:
        yield "spec.enableAutoToolChoice: it is left out, as vLLM does not start with it and without a toolCallParser"
    if spec.tool_call_rewrite and spec.has_tool_parser:
        yield "spec.toolCallRewrite: there is nothing left to rewrite where vLLM has a toolCallParser"
    if spec.min_replicas and spec.idle_timeout is not None:
        yield "spec.idleTimeout: it is without effect, as minReplicas keeps the model awake"
    if spec.min_replicas and spec.group is not None:
        yield f'spec.minReplicas: it never sleeps, so the other models of the group "{spec.group}" never wake'
    if spec.cache is None and not spec.model_name.startswith("/"):
        yield "spec.cache: none is given, so each start downloads the model again"


def _unknown(given: object, part: type[Part], path: str) -> Iterator[str]:
    if not isinstance(given, Mapping):
        return
    fields = fields_of(part)
    if part is VLLMModel:
        given = {key: given[key] for key in ("spec",) if key in given}
    for key, value in given.items():
        place = f"{path}.{key}" if path else str(key)
        field = fields.get(key)
        if field is None:
            yield f"{place}: there is no such field, and it is ignored{nearest(str(key), tuple(fields))}"
            continue
        inner = part_of(field.annotation)
        if inner is None:
            continue
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _unknown(item, inner, f"{place}[{index}]")
        else:
            yield from _unknown(value, inner, place)


# --- what requests and scaling have to know of it ---


def entry_of(model: VLLMModel, ref: TargetRef, *, gpu_count: int) -> ModelEntry:
    """The model's entry in the catalogue. `gpu_count` is that of the settings, for a model that does not say."""
    spec = model.spec
    return ModelEntry(
        name=model.name,
        ref=ref,
        served=spec.served,
        model=spec.model_name,
        aliases=spec.aliases,
        adapters=tuple(Adapter(adapter.name, adapter.path) for adapter in spec.lora_adapters),
        loads_adapters=spec.lora_on_demand,
        group=spec.group,
        gpus=spec.gpus(gpu_count),
        pool=_pool(spec.node_selector),
        idle_seconds=None if spec.idle_timeout is None else seconds(spec.idle_timeout),
        wake_seconds=None if spec.wake_timeout is None else seconds(spec.wake_timeout),
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        rewrites_tool_calls=spec.tool_call_rewrite,
        created=model.metadata.creation_timestamp,
    )


def _pool(node_selector: Mapping[str, str]) -> str:
    # Of the values alone, as a budget is written POOL=NUMBER and a name with "=" in it could not be.
    return "+".join(value for _, value in sorted(node_selector.items()) if value)
