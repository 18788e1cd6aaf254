"""OpenAI's model list, as the proxy answers it: each model also says how its target is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from vllm_chill.api.status import PhaseName
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.models import Model, Models

KEY = "vllm_chill"
"""The field of a model that says how the target is."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """How the target is: its phase, and in how many seconds it is likely to be ready, where that is known."""

    state: PhaseName
    eta_seconds: float | None = None

    @property
    def eta(self) -> int | None:
        """The time left in whole seconds."""
        return None if self.eta_seconds is None else math.ceil(self.eta_seconds)


def model_list(models: Models, state: ModelState, now: float) -> dict[str, object]:
    """The body that answers GET /v1/models; `now` is in seconds since 1970."""
    return listing(model_card(model, state, now) for model in models.models)


def listing(cards: Iterable[dict[str, object]]) -> dict[str, object]:
    """The body with these models in it."""
    return {"object": "list", "data": list(cards)}


def model_card(model: Model, state: ModelState, now: float) -> dict[str, object]:
    """One model, with the engine's own fields where it has listed it before."""
    card: dict[str, object] = {"id": model.id, "object": "model", "created": int(now), "owned_by": "vllm-chill"}
    card.update(model.card)
    card[KEY] = {"state": state.state, "eta_seconds": state.eta}
    return card


def entry_cards(
    entry: ModelEntry, names: Iterable[str], known: Models, state: ModelState, now: float
) -> Iterator[dict[str, object]]:
    """A model of the catalogue, one card for each of those of its names, as vLLM lists them: an alias as a model of its
    own, an adapter with its path as `root` and the served name as `parent`. `known` is what its engine listed.
    """
    length = max_model_len(entry, known)
    created = _seconds(entry.created, now)
    for name in names:
        adapter = entry.adapter(name)
        if adapter is None:
            listed = known.find(name) or known.find(entry.served) or Model(name)
            own = {"root": entry.model, "parent": None, "max_model_len": length}
        else:
            listed = known.find(name) or Model(name)
            own = {"root": adapter.path, "parent": entry.served}
        # The engine says as `created` when it was asked.
        yield model_card(Model(name, {**own, **listed.card, "created": created}), state, now)


def max_model_len(entry: ModelEntry | None, known: Models) -> int | None:
    """How many tokens its context has: what the engine said, else what the catalogue says; None if neither does."""
    served = known.find(entry.served) if entry is not None else None
    listed = served or next(iter(known.models), None)
    for length in (
        listed.card.get("max_model_len") if listed is not None else None,
        entry.facts.get("maxModelLen") if entry is not None else None,
    ):
        if isinstance(length, int) and not isinstance(length, bool):
            return length
    return None


def _seconds(created: str, now: float) -> int:
    """An ISO 8601 time in seconds since 1970; `now` for what is none."""
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return int(now)
