"""What `GET /proxy/requests` and `POST /proxy/operations/cancel` take and answer."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from vllm_chill.api.status import PhaseName

PriorityName = Literal["high", "normal", "low"]


class HeldRequest(Struct, frozen=True, kw_only=True):
    """A request that is held. Times are in seconds; what does not apply is null."""

    id: str | None
    """What `POST /proxy/operations/cancel` knows it by; null for an operator's own, which waits for a start."""
    target: str
    model: str | None
    """What the catalogue calls the model that it asks for, where there is one."""
    place: int
    """Its place in the order of those who wait for this target, from 1."""
    phase: PhaseName
    """The target's."""
    why: str
    """What it waits for, in words."""
    waited_seconds: float
    leaves_in_seconds: float
    """When it is told to come again, if the target is not ready before."""
    eta_seconds: float | None
    """When the target will probably be ready."""
    client: str | None
    """The address that it came from: that of an ingress, if there is one in between."""
    key: str | None
    """The name of the API key with which it was let in."""
    priority: PriorityName
    method: str
    path: str
    """Without its query."""


class HeldRequests(Struct, frozen=True, kw_only=True):
    """The whole answer."""

    count: int
    """How many are held by this proxy, of which `requests` are some: those that are next, of every target."""
    requests: list[HeldRequest]


class CancelAsked(Struct, frozen=True, kw_only=True):
    """The body of POST /proxy/operations/cancel."""

    id: str
    """The `id` of a request in GET /proxy/requests."""


class Cancelled(Struct, frozen=True, kw_only=True):
    """Its answer."""

    status: Literal["success"] = "success"
    message: str
