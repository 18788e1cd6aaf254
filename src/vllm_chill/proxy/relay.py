"""One request to an upstream and its response to the client, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp.web import BaseRequest

from vllm_chill.core.target import Endpoint
from vllm_chill.proxy.aiohttp_seam import Relayed
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.upstream import UpstreamPool

__all__ = ["RelayTimeouts", "Relayed", "relay"]


@dataclass(frozen=True, slots=True)
class RelayTimeouts:
    """How long an upstream may take, in seconds.

    `response_seconds` is from the request's last byte to the response's head; None waits for as long as the model
    thinks (and the client stays).
    """

    connect_seconds: float = 5.0
    response_seconds: float | None = None


async def relay(
    request: BaseRequest, body: RequestBody, endpoint: Endpoint, pool: UpstreamPool, timeouts: RelayTimeouts
) -> Relayed:
    """Send the request to the endpoint and its response to the client; return once the last byte is on its way.

    The result is what the handler returns to aiohttp. If the upstream dies within its response, the client's
    connection is aborted and the result's `cut` says why.

    Raises while nothing has reached the client (it may be tried again if `body.replayable`):
    UpstreamRefused (no connection), UpstreamReset (closed before it answered), UpstreamInvalid (not HTTP),
    UpstreamSilent (no answer in time); and BadRequest, if it is the client's own bytes that are broken. A cancelled
    relay (the client left) aborts the upstream connection at once.
    """
    raise NotImplementedError
