"""Connections to upstreams, and the pool that keeps them between requests."""

from __future__ import annotations

from vllm_chill.core.target import Endpoint

IDLE_LIMIT = 256
IDLE_SECONDS = 4.0


class UpstreamPool:
    """Idle keep-alive connections per endpoint, the last one used first.

    At most `idle_limit` wait per endpoint, and none for longer than `idle_seconds` (the default is below the 5 s
    after which vLLM's server closes an idle connection).
    """

    def __init__(self, *, idle_limit: int = IDLE_LIMIT, idle_seconds: float = IDLE_SECONDS) -> None:
        raise NotImplementedError

    def close_endpoint(self, endpoint: Endpoint) -> None:
        """The endpoint's replica is going: close its idle connections now, and those in use after their response."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close every connection, those in use too, and wait until they are closed."""
        raise NotImplementedError
