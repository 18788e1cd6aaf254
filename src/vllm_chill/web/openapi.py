"""What the proxy's own routes take and answer, as an OpenAPI 3.1 document, made from the routes and the shapes.

The engine's own API is not in it: that is whatever the engine says at /openapi.json while it is awake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from msgspec import Struct
from msgspec.json import schema_components

from vllm_chill.api.choice import (
    AvailableModels,
    OperationAsked,
    OperationDone,
    RunningModels,
    SwitchAsked,
    Switched,
)
from vllm_chill.api.gpu import GpuStatsAnswer
from vllm_chill.api.held import CancelAsked, Cancelled, HeldRequests
from vllm_chill.api.savings import SavingsAnswer
from vllm_chill.api.scaling_answers import AdjustAsked, Adjusted, Policies, PolicyAnswer, ReplicaMetrics, ScalingMetrics
from vllm_chill.api.status import ProxyStatus
from vllm_chill.api.version import Build
from vllm_chill.api.wake_history import WakeHistory
from vllm_chill.core.routing import TABLE, Route
from vllm_chill.web.engine_logs import LINES, MOST_LINES

_OPENMETRICS = "application/openmetrics-text"
_REF = "#/components/schemas/{name}"

_ERROR = {
    "type": "object",
    "description": "The body of every error answer, as OpenAI's API has it.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string", "description": "What went wrong, and what to do."},
                "type": {"type": "string"},
                "code": {"type": "string", "description": "What programs tell errors apart by."},
                "param": {"type": ["string", "null"]},
                "request_id": {"type": "string", "description": "As in X-Request-Id; the log has it too."},
            },
        }
    },
}

_WAIT = {"type": "string", "enum": ["true", "false", "1", "0", ""]}
_DAYS = {"type": "integer", "minimum": 0, "maximum": 100_000}
_LINES = {"type": "integer", "minimum": 1, "maximum": MOST_LINES, "default": LINES}
_NAME = {"type": "string", "minLength": 1, "maxLength": 1024}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query, or the name with which a path ends."""

    name: str
    description: str
    schema: Mapping[str, object]
    of_path: bool = False

    def describe(self) -> dict[str, object]:
        """As the document has it."""
        where: dict[str, object] = {"in": "path", "required": True} if self.of_path else {"in": "query"}
        return {"name": self.name, **where, "description": self.description, "schema": dict(self.schema)}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route takes and answers. `answers` has for each status a shape, or a media type, or None for no body;
    statuses of errors have OpenAI's envelope. `needs_body`: the request must have one.
    """

    summary: str
    answers: Mapping[int, type[Struct] | str | tuple[str, ...] | None]
    errors: Mapping[int, str] = field(default_factory=dict)
    body: type[Struct] | None = None
    needs_body: bool = False
    parameters: tuple[Parameter, ...] = ()


_MODEL_ID = Parameter("model_id", "Any name of a model; the body's comes first.", _NAME)
_UNREAD = {503: "The models have not been read yet."}
_NOT_WHICH = {400: "The request is not understood, or names no model where it has to.", 404: "No such model."}

OPERATIONS: dict[Route, Operation] = {
    Route.PROXY_METRICS: Operation(
        "The proxy's own metrics, as Prometheus text or OpenMetrics", {200: ("text/plain", _OPENMETRICS)}
    ),
    Route.PROXY_DASHBOARD: Operation("The dashboard", {200: "text/html"}),
    Route.PROXY_STATUS: Operation("How every target is", {200: ProxyStatus}),
    Route.PROXY_EVENTS: Operation(
        "How every target is, sent again whenever that changes, until the client leaves",
        {200: "text/event-stream"},
        {429: "As many follow the events as may."},
    ),
    Route.PROXY_REQUESTS: Operation("Who waits, for what, and for how long yet", {200: HeldRequests}),
    Route.PROXY_STARTS: Operation("The newest starts of every target that are over", {200: WakeHistory}),
    Route.PROXY_VERSION: Operation("Which build this is", {200: Build}),
    Route.PROXY_START: Operation(
        "Wake a model",
        {200: OperationDone, 202: OperationDone, 303: None},
        _NOT_WHICH | {429: "Too many requests wait for it.", 503: "It could not be woken; the message has the cause."},
        body=OperationAsked,
        parameters=(
            Parameter("wait", "Whether to answer once it is ready (the default), or at once with 202.", _WAIT),
            _MODEL_ID,
        ),
    ),
    Route.PROXY_STOP: Operation(
        "Put a model to sleep, once its answers have ended",
        {200: OperationDone},
        _NOT_WHICH | {503: "It is not known how it is, or the backend did not scale it to 0."},
        body=OperationAsked,
        parameters=(_MODEL_ID,),
    ),
    Route.PROXY_CANCEL: Operation(
        "Send a request away that is held",
        {200: Cancelled},
        {400: "The body is not understood.", 404: "No such request is held here."},
        body=CancelAsked,
        needs_body=True,
    ),
    Route.PROXY_AVAILABLE: Operation("Every model that can be asked for", {200: AvailableModels}, _UNREAD),
    Route.PROXY_RUNNING: Operation("The models that have their GPUs now", {200: RunningModels}),
    Route.PROXY_SWITCH: Operation(
        "Make a model that of requests which name none",
        {200: Switched},
        {
            400: "The body is not understood.",
            404: "No such model; the message names those there are.",
            409: "This proxy has one target, and nothing to switch between.",
            429: "Too many requests wait for it.",
            503: "The switch did not come to its end.",
        },
        body=SwitchAsked,
        needs_body=True,
        parameters=(Parameter("wait", "Whether to answer once the switch is done; at once by default.", _WAIT),),
    ),
    Route.PROXY_SCALING_METRICS: Operation(
        "What is measured of every replica of every target", {200: ScalingMetrics}, _UNREAD
    ),
    Route.PROXY_SCALING_POD: Operation(
        "What is measured of one replica",
        {200: ReplicaMetrics},
        {
            400: "Several targets have a replica of this name; the message names them.",
            404: "No such replica, or no such target; the message names those there are.",
        }
        | _UNREAD,
        parameters=(
            Parameter("pod", "The name of its pod.", _NAME, of_path=True),
            Parameter("target", "The name of its target, where several have one of this name.", _NAME),
        ),
    ),
    Route.PROXY_SCALING_REPLICAS: Operation(
        "Set the number of a target's replicas by hand, for a while",
        {200: Adjusted},
        {
            400: "The body is not understood, or the number is outside of the bounds, which the message says.",
            404: "No such model; the message names those there are.",
            409: "This proxy does not choose the number: somebody else scales it, or it only recommends.",
        }
        | _UNREAD,
        body=AdjustAsked,
        needs_body=True,
    ),
    Route.PROXY_SCALING_POLICIES: Operation(
        "The scaling policies in force, and what they have decided", {200: Policies}, _UNREAD
    ),
    Route.PROXY_SCALING_POLICY: Operation(
        "A model's scaling policy, and what it has decided",
        {200: PolicyAnswer},
        {
            400: "Several targets have this name; the message names them.",
            404: "No such model, or it has no scaling policy; the message says what to do.",
        }
        | _UNREAD,
        parameters=(Parameter("model", "Any name of a model, or its target's.", _NAME, of_path=True),),
    ),
    Route.PROXY_STATS: Operation(
        "Statistics of the GPUs, a second old at the most",
        {200: GpuStatsAnswer},
        {503: "Nothing here tells how the GPUs are; the message says what to configure."},
    ),
    Route.PROXY_SAVINGS: Operation(
        "GPU-hours asleep and awake, what that saved, and how long callers waited for it",
        {200: SavingsAnswer},
        {400: "The number of days is not understood."},
        parameters=(Parameter("days", "How many days to list of each target, the newest; totals are of all.", _DAYS),),
    ),
    Route.PROXY_LOGS: Operation(
        "What an engine writes, the last lines or all that come",
        {200: "text/plain"},
        {
            400: "A parameter is not accepted, or no model is named where one has to be.",
            404: "No such model, or no such replica; or nothing tells what this engine writes.",
            429: "As many follow already as may.",
            503: "It cannot be read now, as for lack of a right; or the models have not been read yet.",
        },
        parameters=(
            Parameter("model", "Any name of a model; that of requests that name none by default.", _NAME),
            Parameter("lines", "How many of the last lines, of each replica.", _LINES),
            Parameter("follow", "Whether to go on with all that is written from now on; not by default.", _WAIT),
            Parameter("replica", "The name of the only replica whose output counts.", _NAME),
        ),
    ),
    Route.PROXY_OPENAPI: Operation("This document", {200: "application/json"}),
    Route.HEALTH: Operation("Whether the process lives", {200: "text/plain"}),
    Route.READYZ: Operation("Whether requests may be sent here", {200: "text/plain", 503: "text/plain"}),
    Route.ROBOTS: Operation("What crawlers are told", {200: "text/plain"}),
}
"""Every route with a path of its own that is the proxy's own whether the target sleeps or not."""

_BESIDES: dict[tuple[Route, str], Operation] = {
    (Route.PROXY_SCALING_REPLICAS, "DELETE"): Operation(
        "Have the scaling policy decide again on the number of replicas",
        {200: Adjusted},
        _NOT_WHICH | _UNREAD,
        parameters=(Parameter("model", "Any name of a model, or its target's.", _NAME),),
    ),
}
"""What a method does that does something else than the others of its route."""


@cache
def document(version: str) -> dict[str, Any]:
    """The whole document. It is always the same one: not to be changed."""
    shapes: list[type[Struct]] = []
    for operation in (*OPERATIONS.values(), *_BESIDES.values()):
        if operation.body is not None:
            shapes.append(operation.body)
        shapes += [answer for answer in operation.answers.values() if isinstance(answer, type)]
    _, definitions = schema_components(dict.fromkeys(shapes), ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vllm-chill",
            "version": version,
            "summary": "What is asked of the proxy itself.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            TABLE[route].path: {
                method.lower(): _described(route, _BESIDES.get((route, method), operation), method)
                for method in sorted(TABLE[route].methods)
            }
            for route, operation in OPERATIONS.items()
        },
        "components": {"schemas": {"Error": _ERROR, **definitions}},
    }


def _described(route: Route, operation: Operation, method: str) -> dict[str, object]:
    described: dict[str, object] = {
        "operationId": f"{method.lower()}_{route.name.lower()}",
        "summary": operation.summary,
        "responses": {
            **{str(status): _answer(route, answer, method) for status, answer in operation.answers.items()},
            **{str(status): _error(why, method) for status, why in operation.errors.items()},
        },
    }
    if operation.parameters:
        described["parameters"] = [parameter.describe() for parameter in operation.parameters]
    if operation.body is not None:
        content = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": operation.needs_body, "content": content}
    return described


def _answer(route: Route, answer: type[Struct] | str | tuple[str, ...] | None, method: str) -> dict[str, object]:
    words = TABLE[route].asleep or ""
    if answer is None or method == "HEAD":
        return {"description": words}
    if isinstance(answer, type):
        return {"description": words, "content": {"application/json": {"schema": _ref(answer)}}}
    kinds = (answer,) if isinstance(answer, str) else answer
    schema = {"type": "object"} if answer == "application/json" else {"type": "string"}
    return {"description": words, "content": {kind: {"schema": schema} for kind in kinds}}


def _error(why: str, method: str) -> dict[str, object]:
    if method == "HEAD":
        return {"description": why}
    return {"description": why, "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}}


def _ref(shape: type[Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}
