"""One request to an upstream and its response to the client, byte for byte.

The response makes its own way (`exchange`), and the handler's task waits for nothing but its end. Only a streamed
request body has a task, which reads from one side and writes to the other while the response may already be on its
way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest, RequestKey

from vllm_chill.core.target import Endpoint
from vllm_chill.errors import AnswerableError, BadRequest, ChillError, ResponseCut
from vllm_chill.proxy.aiohttp_seam import Relayed, connection_of, drain, message_of, peer_of
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.committed import Committed, CommittedFraming, Rewrite
from vllm_chill.proxy.exchange import Exchange, StaleConnection, named, silent
from vllm_chill.proxy.framing import ResponseFraming
from vllm_chill.proxy.headers import request_head
from vllm_chill.proxy.request_id import id_of
from vllm_chill.proxy.rewritten import RewrittenFraming, unencoded
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

__all__ = ["RelayTimeouts", "Relayed", "relay"]

FIELDS: RequestKey[Mapping[str, str]] = RequestKey("vllm_chill.fields", Mapping)
"""Where a request has the fields, by their names, that are added to its response. The engine is not told then of which
origin's page it is, and adds none of its own.
"""

_ORIGIN = frozenset({b"origin"})
WRITTEN_AT_ONCE = 64 * 1024  # below, copying a body behind its head costs less than a system call for each


@dataclass(frozen=True, slots=True)
class Added:
    """Fields that the engine is told of a request, each with its line end, in place of its own of these names, which
    are in lower case.
    """

    fields: bytes = b""
    in_place_of: frozenset[bytes] = frozenset()


_NOTHING = Added()
ADDED: RequestKey[Added] = RequestKey("vllm_chill.added", Added)
"""Where a request has what the engine is told besides."""


@dataclass(frozen=True, slots=True)
class RelayTimeouts:
    """How long an upstream may take, in seconds.

    `response_seconds` is from the request's last byte to the response's head; None waits for as long as the model
    thinks (and the client stays).
    """

    connect_seconds: float = 5.0
    response_seconds: float | None = None


async def relay(
    request: BaseRequest,
    body: RequestBody,
    endpoint: Endpoint,
    pool: UpstreamPool,
    timeouts: RelayTimeouts,
    *,
    committed: Committed | None = None,
    rewrite: Rewrite | None = None,
    began: Callable[[], None] = lambda: None,
) -> Relayed:
    """Send the request to the endpoint and its response to the client; return once the last byte is on its way.

    `committed` is what the client was told while it was held, `rewrite` what is done to the response's body; `began`
    is called with the response's first bytes.
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
    message = message_of(request) if rewrite is None else unencoded(message_of(request))
    authorization = pool.access.authorization
    added = added_to(request)
    head = request_head(
        message,
        endpoint,
        body.framing,
        peer=peer,
        scheme=scheme,
        authorization=authorization,
        besides=added.in_place_of | _ORIGIN if FIELDS in request else added.in_place_of,
        added=added.fields,
    )
    connection = pool.take(endpoint) if body.replayable else None
    if connection is not None:
        try:
            framing = _framing(request, committed, rewrite)
            return await _Relay(request, connection, pool, endpoint, framing, began).run(head, whole, body, timeouts)
        except StaleConnection:
            if not body.replayable:
                raise
    connection = await pool.connect(endpoint, timeouts.connect_seconds)
    framing = _framing(request, committed, rewrite)
    return await _Relay(request, connection, pool, endpoint, framing, began).run(head, whole, body, timeouts)


def added_to(request: BaseRequest) -> Added:
    """What the engine is told besides."""
    added: Added = request.get(ADDED, _NOTHING)
    return added


def fields_of(request: BaseRequest) -> bytes:
    """The fields that are added to the response, each with its line end."""
    return "".join(f"{name}: {value}\r\n" for name, value in request.get(FIELDS, {}).items()).encode()


def _framing(request: BaseRequest, committed: Committed | None, rewrite: Rewrite | None) -> ResponseFraming:
    """How the response is passed on."""
    if committed is not None:
        return CommittedFraming(committed, rewrite)
    message = message_of(request)
    http10, keep_alive = message.version < HttpVersion11, not message.should_close
    if rewrite is not None:
        return RewrittenFraming(rewrite, http10=http10, keep_alive=keep_alive)
    return ResponseFraming(no_body=message.method == "HEAD", http10=http10, keep_alive=keep_alive)


class _Relay(Exchange):
    """An exchange that a task drives and waits for: until `_over` is resolved; `_failure` is what went wrong."""

    __slots__ = ("_began", "_failure", "_handler", "_over", "_request_id", "_timer")

    def __init__(
        self,
        request: BaseRequest,
        connection: UpstreamConnection,
        pool: UpstreamPool,
        endpoint: Endpoint,
        framing: ResponseFraming,
        began: Callable[[], None],
    ) -> None:
        client = request.transport
        if client is None:
            raise ConnectionResetError("the client has left")
        self._handler = connection_of(request)
        super().__init__(self._handler, client, framing, pool)
        self._over: asyncio.Future[None] = connection.loop.create_future()
        self._failure: ChillError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began = began
        if not isinstance(framing, CommittedFraming):
            self.fields = fields_of(request) + id_of(request)
        self._request_id = id_of(request)
        self.take(connection, endpoint)

    def identify(self) -> bytes:
        return self._request_id

    async def run(self, head: bytes, whole: bytes | None, body: RequestBody, timeouts: RelayTimeouts) -> Relayed:
        """Send the request, and be done once the response is. `whole` is the body unless it is streamed."""
        connection = self.connection
        assert connection is not None
        try:
            if connection.transport.is_closing():  # since it was connected, before it had an exchange to tell
                self.ended(None)
            elif whole is None:
                connection.transport.write(head)
                await self._stream(connection, body, timeouts)
            else:
                if len(whole) < WRITTEN_AT_ONCE:
                    connection.transport.write(head + whole)
                else:
                    connection.transport.write(head)
                    connection.transport.write(whole)
                self._wait_for_response(connection, timeouts)
                await self._over
            if self._failure is None and self._handler.writing_paused:
                await drain(self._handler)
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
        except AnswerableError as refused:
            self.fail(refused)
        except (OSError, RuntimeError):  # what aiohttp's stream raises once the connection is gone
            self.fail(BadRequest("the client left before it had sent its request"))
        else:
            self._wait_for_response(connection, timeouts)

    def _wait_for_response(self, connection: UpstreamConnection, timeouts: RelayTimeouts) -> None:
        self.request_sent = True
        seconds = timeouts.response_seconds
        if seconds is not None and not self.sent and not self._over.done():
            self._timer = connection.loop.call_later(seconds, self._time_out, seconds)

    def _time_out(self, seconds: float) -> None:
        if not self.framing.status:  # else it has begun, though nothing of it has gone on to the client yet
            self.fail(silent(self._endpoint, seconds))

    def began(self) -> None:
        self._began()
        if self._timer is not None:
            self._timer.cancel()

    def finish(self, failure: ChillError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._over.done():
            self._failure = failure
            self._over.set_result(None)

    def _result(self) -> Relayed:
        framing, failure = self.framing, self._failure
        if failure is None:
            relayed = Relayed(framing.status, self.sent, keep_alive=framing.keep_alive)
            relayed.aborted = self.aborted
            return relayed
        if not self.sent:
            raise failure
        # Here and not where it failed: aborting cancels the handler's task, which is to get this result first.
        self.end_early(failure)
        cut = named(ResponseCut, failure.message, failure)
        return Relayed(framing.status, self.sent, keep_alive=False, cut=cut)

    def _abandon(self) -> None:
        """The handler's task was cancelled, or failed: neither side may take what there is for the whole."""
        self.drop()
        if self._timer is not None:
            self._timer.cancel()
        if self.sent:
            self.cut_client()
