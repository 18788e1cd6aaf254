"""One question to an endpoint, by a connection of the pool, to which it goes back: the first request finds it there."""

from __future__ import annotations

import asyncio

from vllm_chill.core.readiness import Answer, Answered, Refused, Unclear
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import ChillError, UpstreamRefused
from vllm_chill.proxy.framing import HEAD_BYTES, IllegalResponse, ResponseFraming
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

BODY_BYTES = 1 << 20


class Prober:
    """Asks endpoints, each question on a kept connection if there is one, else on a new one."""

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool

    async def ask(self, endpoint: Endpoint, path: str, timeout_seconds: float) -> Answer:
        """GET a path; the whole of it, with the connection, may take `timeout_seconds`. It never raises."""
        head = f"GET {path} HTTP/1.1\r\nHost: {endpoint}\r\nUser-Agent: vllm-chill\r\nAccept: */*\r\n".encode()
        request = head + self._pool.access.own_field + b"\r\n"
        return await self.put(endpoint, request, timeout_seconds, timeout_seconds)

    async def put(
        self, endpoint: Endpoint, request: bytes, connect_seconds: float, timeout_seconds: float | None
    ) -> Answer:
        """Send a whole request, which may arrive twice; None for no timeout. It never raises."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_seconds is None else loop.time() + timeout_seconds
        kept = self._pool.take(endpoint)
        if kept is not None:
            question = _Question(self._pool, kept)
            answer = await question.put(request, deadline)
            if not question.stale:
                return answer
        try:
            connection = await self._pool.connect(endpoint, connect_seconds)
        except UpstreamRefused:
            return Refused()
        return await _Question(self._pool, connection).put(request, deadline)


class _Question:
    """A request and its response on one connection: upstream.Exchange. `_over` is resolved when no more will come."""

    def __init__(self, pool: UpstreamPool, connection: UpstreamConnection) -> None:
        self._pool = pool
        self._connection: UpstreamConnection | None = connection
        self._reused = connection.reused
        self._over: asyncio.Future[None] = connection.loop.create_future()
        # The body as a client of HTTP/1.0 would have it, which is without chunks.
        self._framing = ResponseFraming(http10=True)
        self._response = bytearray()
        self._heard = False
        connection.exchange = self

    @property
    def stale(self) -> bool:
        """Whether a kept connection was closed without a byte: most likely before the request reached it."""
        return self._reused and not self._heard and self._over.done()

    async def put(self, request: bytes, deadline: float | None) -> Answer:
        """Send the request; what comes of it until the deadline, on the loop's clock."""
        connection = self._connection
        assert connection is not None
        try:
            if connection.transport.is_closing():
                self.ended(None)
            else:
                connection.transport.write(request)
            async with asyncio.timeout_at(deadline):
                await self._over
        except TimeoutError:
            return Unclear()
        finally:
            self._give_back()
        if not self._framing.complete and not self._too_large:
            return Unclear()
        body = bytes(self._response.partition(b"\r\n\r\n")[2])
        return Answered(self._framing.status, body if len(body) <= BODY_BYTES else b"")

    @property
    def _too_large(self) -> bool:
        return len(self._response) > HEAD_BYTES + BODY_BYTES

    def received(self, data: bytes) -> None:
        """Bytes of the response."""
        self._heard = True
        try:
            self._response += self._framing.feed(data)
        except IllegalResponse:
            self._response.clear()
            self._end()
        else:
            if self._framing.complete or self._too_large:
                self._end()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._connection = None
        if error is None:
            self._framing.close()
        self._end()

    @property
    def sent(self) -> int:
        """Nothing of it is passed on."""
        return 0

    def fail(self, _: ChillError) -> None:
        """End it here, with the connection."""
        self._response.clear()
        self._end()

    def _end(self) -> None:
        self._give_back()
        if not self._over.done():
            self._over.set_result(None)

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.exchange = None
        if self._framing.complete and self._framing.reusable:
            self._pool.release(connection)
        else:
            connection.transport.abort()
