"""The targets of a proxy as its own routes see them: which one is meant, and how it is."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_chill.api.models import ModelState
from vllm_chill.api.status import TargetStatus, phase_name, target_status
from vllm_chill.core.scaling.decision import Decision
from vllm_chill.core.target import Ready
from vllm_chill.errors import AnswerableError, BadRequest
from vllm_chill.proxy.served import Directory, Served


def unnamed(directory: Directory) -> Served | None:
    """The target of requests that name no model; None where one has to be named."""
    try:
        return directory.of_call(None)
    except AnswerableError:
        return None


def chosen(directory: Directory, name: str | None, field: str = "model_id") -> Served:
    """The target of an operation on the model of this name, or on that of requests that name none. `field` is what the
    name is told in.

    Raises BadRequest where one has to be named, ModelNotFound, and CatalogueUnknown.
    """
    served = unnamed(directory) if name is None else directory.find(name)
    if served is not None:
        return served
    directory.require_read()
    if name is not None:
        raise directory.not_found(name)
    directory.refuse_early()
    raise BadRequest(f"this proxy serves several models; say which one in {field}: {directory.catalogue.names}")


def name_of(directory: Directory, served: Served) -> str:
    """A name of a target that leads to it: its model's served name, if that is its own."""
    names = () if served.entry is None else directory.catalogue.names_of(served.entry)
    return names[0] if names else served.name


def is_ready(served: Served) -> bool:
    """Whether requests go to it now."""
    return served.controller.endpoint is not None


def state_of(served: Served) -> ModelState:
    """How it is, and in how many seconds it is likely to be ready."""
    controller, starts = served.controller, served.starts
    phase = controller.target.phase
    eta = starts.eta(controller.now()) if starts.current is not None else starts.history.whole
    return ModelState(phase_name(phase), None if isinstance(phase, Ready) else eta)


def status_of(served: Served, waits_for: Sequence[str] = (), decision: Decision | None = None) -> TargetStatus:
    """How it is, in full. `decision` is the last one on its number of replicas."""
    controller = served.controller
    target = controller.target
    starts = served.starts.settle(target)
    output = None if served.output is None else served.output.lines(target)
    now, limits = controller.now(), controller.limits
    return target_status(target, now, limits, starts, served.entry, waits_for, decision, output)
