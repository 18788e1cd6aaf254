"""The models that a target serves, as far as they are known without asking it. Pure: what an engine once listed, or
the command that starts it, in; models out.

The rule: what might be right is not refused. A name counts as wrong only where the engine is known to refuse it:
vLLM without adapters does, which may come at run time; llama.cpp takes any name for its one model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_chill.core.call import Call
from vllm_chill.core.phrases import listed
from vllm_chill.errors import ModelNotFound

_LIST_BYTES = 1 << 20
_LIST_MODELS = 1000
_NAME_CHARACTERS = 1024
_SHOWN_MODELS = 20
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Model:
    """One model. `card` has the fields that the engine lists it with, besides its id; empty if it never has."""

    id: str
    card: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Models:
    """The models that are known; none if nothing is. `closed`: the engine refuses every other name."""

    models: tuple[Model, ...] = ()
    closed: bool = False

    def find(self, name: str) -> Model | None:
        """The model of this name."""
        return next((model for model in self.models if model.id == name), None)

    @property
    def names(self) -> str:
        """Their names, for a sentence."""
        return listed([_shown(model.id) for model in self.models], _SHOWN_MODELS)


def listed_models(body: bytes) -> Models | None:
    """The models in an engine's answer to GET /v1/models; None if it is no such list, or longer than 1 MiB.

    Entries that are no models are left out.
    """
    if len(body) > _LIST_BYTES:
        return None
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        return None
    cards = [entry for entry in entries if isinstance(entry, dict) and _is_name(entry.get("id"))]
    models = tuple(Model(card["id"], {k: v for k, v in card.items() if k != "id"}) for card in cards)
    closed = len(entries) == len(cards) <= _LIST_MODELS and all(_is_vllms_own(model) for model in models)
    return Models(models[:_LIST_MODELS], closed and bool(models))


def known_models(listed: Models | None, started: Models | None) -> Models:
    """What is known from an engine's list and from the command that starts it: the list, if there was one."""
    if listed is None:
        return started or Models()
    return replace(listed, closed=listed.closed and (started is None or started.closed))


def check_model(call: Call, known: Models) -> None:
    """Raise ModelNotFound for a call whose model the engine would refuse; for a target that is not ready."""
    if call.model and known.closed and known.find(call.model) is None:
        raise model_not_found(call.model, known.names)


def model_not_found(name: str, known: str) -> ModelNotFound:
    """The error for a model that is not among those known; `known` has their names for a sentence, if there are any."""
    has = f"known: {known}" if known else "none is known yet"
    return ModelNotFound(f'The model "{_shown(name)}" does not exist; {has}.')


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _NAME_CHARACTERS


def _is_vllms_own(model: Model) -> bool:
    # An adapter has a parent, and where there are adapters more of them may be loaded when they are asked for.
    return model.card.get("owned_by") == "vllm" and model.card.get("parent") is None


def _shown(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARACTERS else name[: _SHOWN_CHARACTERS - 1] + "…"
