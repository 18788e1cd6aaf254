"""What /proxy/models/* and /proxy/operations/* take and answer: which models there are, which run, and who chooses.

The names of fields are those that clients of these routes know, whatever is usual here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from vllm_chill.api.models import ModelState, max_model_len
from vllm_chill.api.status import PhaseName, TargetStatus
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.models import Models
from vllm_chill.core.target import Target

Name = Annotated[str, Meta(min_length=1, max_length=1024)]


class AvailableModel(Struct, frozen=True, kw_only=True):
    """A model that can be asked for. What is not known is null."""

    name: str
    """Its own name; the target's where there is no catalogue."""
    servedModelName: str | None  # noqa: N815
    """What requests call it."""
    modelName: str | None  # noqa: N815
    """What the engine loads."""
    maxModelLen: int | None  # noqa: N815
    gpuCount: int | None  # noqa: N815
    """The GPUs of one replica."""
    aliases: list[str]
    """What else requests may call it, adapters among them."""
    group: str | None
    """At most one model of a group is awake at a time."""
    state: PhaseName
    eta_seconds: int | None
    """In how many seconds it is likely to be ready once it is woken, or is now if it wakes."""
    replicas: int | None = None
    """Replicas asked for, as last seen."""
    ready_replicas: int | None = None
    """Those of them that are ready."""


class AvailableModels(Struct, frozen=True, kw_only=True):
    """The answer to GET /proxy/models/available."""

    models: list[AvailableModel]
    count: int


class RunningConfig(Struct, frozen=True, kw_only=True):
    """What the active model runs with, as far as it is known."""

    modelName: str | None  # noqa: N815
    servedModelName: str | None  # noqa: N815
    maxModelLen: int | None  # noqa: N815
    toolCallParser: str | None  # noqa: N815
    reasoningParser: str | None  # noqa: N815


class RunningModel(Struct, frozen=True, kw_only=True):
    """A model that has its GPUs, or is about to."""

    name: str
    servedModelName: str | None  # noqa: N815
    state: PhaseName
    replicas: int | None
    waiting: int
    in_flight: int


class RunningModels(Struct, frozen=True, kw_only=True):
    """The answer to GET /proxy/models/running. The active model is that of requests that name none."""

    active_model: str | None
    running: bool
    """Whether the active model has its GPUs."""
    state: PhaseName | None
    config: RunningConfig | None
    models: list[RunningModel]


class SwitchAsked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /proxy/models/switch."""

    model_id: Name
    """Any name of a model: its served name, an alias, an adapter, its object's own."""
    wake: bool = False
    """Whether to wake it too; else the next request for it does."""


class Switched(Struct, frozen=True, kw_only=True):
    """The answer to POST /proxy/models/switch."""

    message: str
    active_model: str
    note: str


class OperationAsked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /proxy/operations/*, which may be left out."""

    model_id: Name | None = None
    """Any name of a model; that of requests which name none if it is not given."""


class OperationDone(Struct, frozen=True, kw_only=True):
    """The answer to POST /proxy/operations/*."""

    status: Literal["success"] = "success"
    message: str
    target: TargetStatus


def available_model(entry: ModelEntry | None, target: Target, known: Models, state: ModelState) -> AvailableModel:
    """A model of the catalogue, or that of the one target where there is none."""
    first, seen = next(iter(known.models), None), target.observed
    replicas = None if seen is None else seen.replicas
    ready = None if seen is None else len(seen.serving)
    if entry is None:
        root = first.card.get("root") if first is not None else None
        return AvailableModel(
            name=str(target.ref),
            servedModelName=first.id if first is not None else None,
            modelName=root if isinstance(root, str) else None,
            maxModelLen=max_model_len(None, known),
            gpuCount=None,
            aliases=[model.id for model in known.models[1:]],
            group=None,
            state=state.state,
            eta_seconds=state.eta,
            replicas=replicas,
            ready_replicas=ready,
        )
    return AvailableModel(
        name=entry.name,
        servedModelName=entry.served,
        modelName=entry.model,
        maxModelLen=max_model_len(entry, known),
        gpuCount=entry.gpus,
        aliases=list(entry.names[1:]),
        group=entry.group,
        state=state.state,
        eta_seconds=state.eta,
        replicas=replicas,
        ready_replicas=ready,
    )


def running_config(entry: ModelEntry | None, model: AvailableModel) -> RunningConfig:
    """What an available model runs with."""
    facts = entry.facts if entry is not None else {}
    tools, reasoning = facts.get("toolCallParser"), facts.get("reasoningParser")
    return RunningConfig(
        modelName=model.modelName,
        servedModelName=model.servedModelName,
        maxModelLen=model.maxModelLen,
        toolCallParser=tools if isinstance(tools, str) and tools else None,
        reasoningParser=reasoning if isinstance(reasoning, str) and reasoning else None,
    )
