"""A request's body on its way to the upstream."""

from __future__ import annotations

from aiohttp.web import BaseRequest

KEPT_BYTES = 1 << 20


class RequestBody:
    """The body of one request. It can be sent again from its start for as long as `replayable`.

    Making one reads nothing: a held caller's body stays in the socket until `load` or the relay reads it. A body
    whose Content-Length is at most `limit` bytes is read whole; a larger or chunked one is streamed, and kept
    only up to `limit`.
    """

    def __init__(self, request: BaseRequest, limit: int = KEPT_BYTES) -> None:
        raise NotImplementedError

    @property
    def replayable(self) -> bool:
        """Whether it can be sent from its start: nothing that was sent has been forgotten."""
        raise NotImplementedError

    async def load(self) -> bytes | None:
        """The body whole, read now if it has to be; None if it is streamed. Raises BadRequest if it is broken."""
        raise NotImplementedError
