"""The VLLMModel resource: a model as an object of the cluster or an entry of a file, read once into what others use.

The rule: an object is taken whole, or refused with a sentence for each thing that is wrong with it. What the proxy
itself wrote into the status never makes a model unusable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_chill.api.kinds import MODEL
from vllm_chill.api.model_spec import VLLMModelSpec
from vllm_chill.api.resource import Condition, Resource, read_resource, unknown_fields
from vllm_chill.api.spec_parts import Part, declared
from vllm_chill.api.spec_types import seconds
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

GROUP, KIND, PLURAL, API_VERSION = MODEL.group, MODEL.kind, MODEL.plural, MODEL.api_version


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


class VLLMModel(Resource):
    """A model: what it is, how vLLM runs it, and how it is at present."""

    API_VERSION = API_VERSION
    KIND = KIND
    INVALID = InvalidModel

    spec: VLLMModelSpec = declared(..., "at least {modelName: NAME}", "What the model is, and how it is run.")
    status: VLLMModelStatus = declared(VLLMModelStatus.model_construct(), "nothing", "How it is; vllm-chill writes it.")


def parse_model(obj: Mapping[str, Any]) -> VLLMModel:
    """The model of an object, as the API server or a file has it. `apiVersion` and `kind` may be left out.

    Raises InvalidModel with a sentence for everything that is wrong with it. Fields that are not known are let go, as
    the API server does; `warnings` tells of them.
    """
    return read_resource(VLLMModel, obj)


# --- warnings ---


def warnings(model: VLLMModel, obj: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """A sentence for everything that is allowed and may not be what was meant.

    `obj` is what the model was parsed from, where it did not come through an API server: its unknown fields are told.
    """
    found = () if obj is None else (*unknown_fields(obj, VLLMModel),)
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


# --- what requests and scaling have to know of it ---


def entry_of(model: VLLMModel, ref: TargetRef, *, gpu_count: int, created: str | None = None) -> ModelEntry:
    """The model's entry in the catalogue. `gpu_count` is that of the settings, for a model that does not say; `created`
    orders models that have no time of their own.
    """
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
        max_num_seqs=spec.max_num_seqs,
        facts={
            name: value
            for name, value in (
                ("maxModelLen", spec.max_model_len),
                ("toolCallParser", spec.tool_call_parser),
                ("reasoningParser", spec.reasoning_parser),
            )
            if value
        },
        created=model.metadata.creation_timestamp if created is None else created,
    )


def _pool(node_selector: Mapping[str, str]) -> str:
    # Of the values alone, as a budget is written POOL=NUMBER and a name with "=" in it could not be.
    return "+".join(value for _, value in sorted(node_selector.items()) if value)
