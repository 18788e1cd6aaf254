"""OpenAI's model list, as the proxy answers it while the engine cannot: each model also says how the target is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_chill.api.status import PhaseName
from vllm_chill.core.models import Model, Models

KEY = "vllm_chill"
"""The field of a model that says how the target is."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """How the target is: its phase, and in how many seconds it is likely to be ready, where that is known."""

    state: PhaseName
    eta_seconds: float | None = None


def model_list(models: Models, state: ModelState, now: float) -> dict[str, object]:
    """The body that answers GET /v1/models; `now` is in seconds since 1970."""
    return {"object": "list", "data": [model_card(model, state, now) for model in models.models]}


def model_card(model: Model, state: ModelState, now: float) -> dict[str, object]:
    """One model, with the engine's own fields where it has listed it before."""
    card: dict[str, object] = {"id": model.id, "object": "model", "created": int(now), "owned_by": "vllm-chill"}
    card.update(model.card)
    eta = None if state.eta_seconds is None else math.ceil(state.eta_seconds)
    card[KEY] = {"state": state.state, "eta_seconds": eta}
    return card
