"""One request to an upstream and its response to the client, byte for byte.

The response is driven by what arrives: `data_received` of the upstream's connection writes to the client's
transport, one write per read, and the handler's task waits for nothing but the end. Only a streamed request body
has a task, which reads from one side and writes to the other while the response may already be on its way.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest

from vllm_chill.core.target import Endpoint
from vllm_chill.errors import (
    BadRequest,
    ChillError,
    ResponseCut,
    UpstreamInvalid,
    UpstreamReset,
    UpstreamSilent,
)
from vllm_chill.proxy.aiohttp_seam import Relayed, cut_off, drain, message_of, peer_of, when_writable
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.framing import IllegalResponse, ResponseFraming
from vllm_chill.proxy.headers import request_head
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

__all__ = ["RelayTimeouts", "Relayed", "relay"]

_WRITTEN_AT_ONCE = 64 * 1024  # below, copying a body behind its head costs less than a system call for each


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

    A kept connection that the upstream closes without a byte was most likely closed before the request reached it;
    the request then goes out once more on a new one, whatever its method: to infer twice harms nobody.
    """
    whole = body.whole
    if whole is None:
        whole = await body.load()
    peer, scheme = peer_of(request.protocol)
    head = request_head(message_of(request), endpoint, body.framing, peer=peer, scheme=scheme)
    connection = pool.take(endpoint)
    if connection is not None:
        try:
            return await _Exchange(request, connection, pool, endpoint).run(head, whole, body, timeouts)
        except _Stale:
            if not body.replayable:
                raise
    connection = await pool.connect(endpoint, timeouts.connect_seconds)
    return await _Exchange(request, connection, pool, endpoint).run(head, whole, body, timeouts)


class _Stale(UpstreamReset):
    """A kept connection was closed before a byte of the response."""


class _Exchange:
    """A request and its response on one connection, until `_over` is resolved.

    `_connection` is None from the moment the connection is given back or gone; `_failure` is what went wrong.
    """

    __slots__ = (
        "_client",
        "_connection",
        "_endpoint",
        "_failure",
        "_framing",
        "_heard",
        "_over",
        "_pool",
        "_protocol",
        "_request_sent",
        "_sent",
        "_timer",
    )

    def __init__(
        self, request: BaseRequest, connection: UpstreamConnection, pool: UpstreamPool, endpoint: Endpoint
    ) -> None:
        message = message_of(request)
        client = request.transport
        if client is None:
            raise ConnectionResetError("the client has left")
        self._protocol = request.protocol
        self._client = client
        self._connection: UpstreamConnection | None = connection
        self._pool = pool
        self._endpoint = endpoint
        self._framing = ResponseFraming(
            no_body=message.method == "HEAD",
            http10=message.version < HttpVersion11,
            keep_alive=not message.should_close,
        )
        self._over: asyncio.Future[None] = connection.loop.create_future()
        self._failure: ChillError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._request_sent = False
        self._heard = False
        self._sent = 0

    async def run(self, head: bytes, whole: bytes | None, body: RequestBody, timeouts: RelayTimeouts) -> Relayed:
        """Send the request, and be done once the response is. `whole` is the body unless it is streamed."""
        connection = self._connection
        assert connection is not None
        connection.exchange = self
        try:
            if connection.transport.is_closing():  # since it was connected, before it had an exchange to tell
                self.ended(None)
            elif whole is None:
                connection.transport.write(head)
                await self._stream(connection, body, timeouts)
            else:
                if len(whole) < _WRITTEN_AT_ONCE:
                    connection.transport.write(head + whole)
                else:
                    connection.transport.write(head)
                    connection.transport.write(whole)
                self._wait_for_response(timeouts)
                await self._over
            if self._failure is None and self._protocol.writing_paused:
                await drain(self._protocol)
            return self._result()
        except BaseException:
            self._abandon()
            raise

    async def _stream(self, connection: UpstreamConnection, body: RequestBody, timeouts: RelayTimeouts) -> None:
        async with asyncio.TaskGroup() as tasks:
            upload = tasks.create_task(self._upload(connection, body, timeouts))
            await self._over
            upload.cancel()  # the upstream has answered without waiting for the rest

    async def _upload(self, connection: UpstreamConnection, body: RequestBody, timeouts: RelayTimeouts) -> None:
        try:
            await body.send(connection)
        except BadRequest as broken:
            self._fail(broken)
        except (OSError, RuntimeError):  # what aiohttp's stream raises once the connection is gone
            self._fail(BadRequest("the client left before it had sent its request"))
        else:
            self._wait_for_response(timeouts)

    def _wait_for_response(self, timeouts: RelayTimeouts) -> None:
        self._request_sent = True
        seconds = timeouts.response_seconds
        if seconds is not None and not self._sent and not self._over.done():
            self._timer = asyncio.get_running_loop().call_later(seconds, self._time_out, seconds)

    def received(self, data: bytes) -> None:
        self._heard = True
        framing = self._framing
        try:
            out = framing.feed(data)
        except IllegalResponse as illegal:
            self._fail(_named(UpstreamInvalid, f"{self._endpoint} answered, but {illegal.message}", illegal))
            return
        if out:
            self._client.write(out)
            self._sent += len(out)
        if framing.complete:
            self._complete()
        elif out:
            if self._timer is not None:
                self._timer.cancel()
            if self._protocol.writing_paused:
                self._wait_for_client()

    def ended(self, error: Exception | None) -> None:
        connection, self._connection = self._connection, None
        if error is None and self._framing.close():
            self._finish(None)
            return
        kind = _Stale if connection is not None and connection.reused and not self._heard else UpstreamReset
        how = f"broke the connection ({error})" if error else "closed the connection"
        self._finish(_named(kind, f"{self._endpoint} {how} before its response was whole; try again", error))

    def _complete(self) -> None:
        connection = self._connection
        assert connection is not None
        if self._framing.reusable and self._request_sent:
            self._connection = None
            self._pool.release(connection)
        else:
            self._drop()
        self._finish(None)

    def _finish(self, failure: ChillError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._over.done():
            self._failure = failure
            self._over.set_result(None)

    def _fail(self, failure: ChillError) -> None:
        self._drop()
        self._finish(failure)

    def _time_out(self, seconds: float) -> None:
        self._fail(UpstreamSilent(f"{self._endpoint} did not begin to answer within {seconds:g} s; try again later"))

    def _wait_for_client(self) -> None:
        if self._connection is not None and self._connection.pause_reading():
            when_writable(self._protocol, self._resume)

    def _resume(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    def _result(self) -> Relayed:
        framing, failure = self._framing, self._failure
        if failure is None:
            return Relayed(framing.status, self._sent, keep_alive=framing.keep_alive)
        if not self._sent:
            raise failure
        # Here and not where it failed: aborting cancels the handler's task, which is to get this result first.
        cut_off(self._client, reset=framing.ends_with_connection)
        cut = _named(ResponseCut, failure.message, failure)
        return Relayed(framing.status, self._sent, keep_alive=False, cut=cut)

    def _abandon(self) -> None:
        """The handler's task was cancelled, or failed: neither side may take what there is for the whole."""
        self._drop()
        if self._timer is not None:
            self._timer.cancel()
        if self._sent:
            cut_off(self._client, reset=self._framing.ends_with_connection)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.exchange = None
            connection.transport.abort()


_Error = TypeVar("_Error", bound=ChillError)


def _named(kind: type[_Error], message: str, cause: Exception | None) -> _Error:
    error = kind(message)
    error.__cause__ = cause
    return error
