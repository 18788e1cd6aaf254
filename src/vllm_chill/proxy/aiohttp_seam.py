"""The one place that leans on how aiohttp's server works inside (pinned; tests/proxy/test_aiohttp_seam.py guards it).

The server parses requests, keeps connections alive and runs the handler; the response's bytes go past it. So some
things are needed that aiohttp does not promise: the parsed message with the target and the fields as they were
received, a call back when a slow client has room again, and a handler's result that aiohttp writes nothing for.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, cast

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web import BaseRequest, Server
from aiohttp.web_protocol import RequestHandler

from vllm_chill.errors import AnswerableError, ChillError, RequestTimeout, ResponseCut, TooManyConnections
from vllm_chill.proxy.answer import answer_bytes
from vllm_chill.proxy.client_limits import ClientLimits
from vllm_chill.proxy.door import Door, Refusal, refusal
from vllm_chill.proxy.stalls import Client, Part, Progress, Stalls

if TYPE_CHECKING:
    from aiohttp.web import StreamResponse

    _Response = StreamResponse
else:
    _Response = object

LINGER_SECONDS = 10.0
_AT_ONCE = 64  # of so many parts of the connections one is closed when there are too many
_NO_LIMITS = ClientLimits(None, None, None, None)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


# What is touched below of RequestHandler that is nobody's but aiohttp's.
INTERNALS = (
    "_buffer_paused",
    "_close",
    "_current_request",
    "_drain_helper",
    "_drain_waiter",
    "_force_close",
    "_loop",
    "_make_error_handler",
    "_message_tail",
    "_messages",
    "_next_keepalive_close_time",
    "_parser",
    "_reading_paused",
    "_resume_reading_for_buffer",
    "_waiter",
)


class ClientConnection(RequestHandler):
    """A client's connection as aiohttp's server has it, and what can be told and asked of it besides.

    Its parser is behind a door, which refuses what is not strictly a request; what is refused is answered in the shape
    of all errors. A body that turns out to be refused ends its request: aiohttp would let whoever reads it wait.
    """

    __slots__ = ("_door",)

    def __init__(self, server: ClientServer, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._door = Door(self._parser, server.limits.body_bytes)
        self._parser = cast("Any", self._door)

    def data_received(self, data: bytes) -> None:
        queue = self._messages
        known = len(queue)
        super().data_received(data)
        if len(queue) > known and (error := _error_in(queue[-1])) is not None:
            self._end_refused_body(error)

    def _end_refused_body(self, error: Refusal, *, again: bool = True) -> None:
        requests = [message for message in self._messages if _error_in(message) is None]
        if requests:
            payload = requests[-1][1]
        elif self._current_request is not None:
            payload = self._current_request.content
        else:
            if again:  # its request may be between the queue and its handler, for one turn of the loop
                self._loop.call_soon(partial(self._end_refused_body, error, again=False))
            return
        if payload.is_eof():
            return
        # The error belongs to this body: the request is answered, and nothing is read after it.
        self._messages = deque(requests)
        self._close = True
        payload.set_exception(error)
        payload.feed_eof()

    def told_to_send(self) -> None:
        """Take that the client need not wait any more to send its body."""
        self._door.framing.expects = False

    @property
    def progress(self) -> Progress | None:
        """What is waited for from the client; None if that is nothing."""
        transport, framing = self.transport, self._door.framing
        if transport is None:
            return None
        unsent = transport.get_write_buffer_size()
        if unsent and (self.writing_paused or self._close or transport.is_closing()):
            return Progress(Part.RESPONSE, None, -unsent)
        if self._close or self._force_close or self._door.refused:
            return None
        if self._reading_paused or self._buffer_paused or framing.expects:
            return None
        if framing.in_body:
            return Progress(Part.BODY, framing.requests, framing.received)
        if framing.in_head and self._waiter is not None:
            return Progress(Part.HEAD, framing.requests, 0)
        return None

    def time_out(self, error: RequestTimeout) -> None:
        """Answer what has not come in time, and end the connection."""
        self._door.refused = True
        message = refusal(error)
        self._messages.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._end_refused_body(message[0].exc)

    @property
    def waiting_since(self) -> float | None:
        """Since when nothing is done for it; None if something is."""
        if self._waiter is None or self._messages or self._door.framing.in_head:
            return None
        return self._next_keepalive_close_time - self.keepalive_timeout

    def turn_away(self, error: AnswerableError) -> None:
        """Answer this and end it, as there is no room for it."""
        if self.transport is not None:
            self.transport.write(answer_bytes(error, keep_alive=False))
        self.force_close()

    def abort(self) -> None:
        """Drop it, with what is being served."""
        if self.transport is not None:
            cut_off(self.transport, reset=True)

    def _make_error_handler(self, err_info: Any) -> Callable[[BaseRequest], Awaitable[StreamResponse]]:
        async def handler(_: BaseRequest) -> StreamResponse:
            error = err_info.exc.error
            server = self._manager
            assert isinstance(server, ClientServer)
            server.refused(error)
            return self.farewell(error)

        return handler

    def farewell(self, error: AnswerableError, request_id: bytes = b"") -> Relayed:
        """Answer an error, as the last that goes to the client while there may be more to come from it."""
        if self.transport is None:
            raise ConnectionResetError("the client has left")
        written = answer_bytes(error, request_id, keep_alive=False)
        self.transport.write(written)
        if self._buffer_paused:
            self._resume_reading_for_buffer()
        return _Farewell(self.transport, error.status, len(written))

    @property
    def has_refused_body(self) -> bool:
        """Whether the body that is on its way was refused, so that nothing more is taken from the client."""
        return self._close and self._door.refused

    def log_exception(self, *args: Any, **kw: Any) -> None:
        # Neither is news: a body that nobody wanted any more was refused, or the client left as it was written to.
        if not isinstance(kw.get("exc_info"), Refusal | ConnectionError):
            super().log_exception(*args, **kw)

    @property
    def is_closing(self) -> bool:
        """Whether no more requests are taken on it."""
        return self._close or self._force_close

    def when_writable(self, call: Callable[[], None]) -> None:
        """Call once the client takes bytes again, or is gone. To be used while `writing_paused`.

        aiohttp's own `drain` waits on the same future, so both may wait at a time. A callback and not an await, as
        the response is written from the upstream's `data_received`, where nothing can be awaited.
        """
        waiter = self._drain_waiter
        if waiter is None:
            waiter = self._drain_waiter = self._loop.create_future()

        def resumed(future: asyncio.Future[None]) -> None:
            if not future.cancelled():
                future.exception()  # a client that left: seen, so that the loop does not log it
            call()

        waiter.add_done_callback(resumed)


def _error_in(message: Any) -> Refusal | None:
    """What is wrong with bytes that were refused, which stand in the queue as a request would."""
    error = getattr(message[0], "exc", None)
    return error if isinstance(error, Refusal) else None


class ClientServer(Server):
    """aiohttp's server, on connections of our kind. It looks now and then at what its clients do; `refused` is told of
    requests that were refused before they were any.
    """

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
        *,
        limits: ClientLimits = _NO_LIMITS,
        refused: Callable[[AnswerableError], None] = lambda _: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, **kwargs)
        self.limits = limits
        self.refused = refused
        self._stalls = Stalls(limits)
        self._looking: asyncio.TimerHandle | None = None

    def __call__(self) -> RequestHandler:
        return self.slow_connection()

    def slow_connection(self) -> ClientConnection:
        """A connection on aiohttp's parser."""
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        assert isinstance(handler, ClientConnection)
        self.let_in(handler)

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def let_in(self, newest: Client) -> None:
        """Take that there is one more. If it is one too many, those that have been idle for longest are closed, some at
        a time, or it is turned away if none is idle.
        """
        self._look_soon()
        most = self.limits.connections
        if most is None or self.count <= most:
            return
        idle = [(since, n, c) for n, c in enumerate(self.clients()) if (since := c.waiting_since) is not None]
        idle = [each for each in idle if each[2] is not newest]
        for _, _, client in nsmallest(max(1, most // _AT_ONCE), idle):
            client.abort()
        if not idle:
            error = TooManyConnections("the proxy has as many connections as it may; try again.", retry_after_seconds=5)
            self.refused(error)
            newest.turn_away(error)

    def clients(self) -> list[Client]:
        """All connections that there are."""
        return list(cast("dict[ClientConnection, Any]", self._connections))

    def _look_seconds(self) -> float | None:
        """How long it is from one look to the next; None for no looks."""
        return self.limits.look_seconds

    def _look_soon(self) -> None:
        if self._looking is None and (seconds := self._look_seconds()) is not None:
            self._looking = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        clients = self.clients()
        self._stalls.look(clients, self._loop.time())
        self._looking = None
        if clients:
            self._look_soon()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close every connection, those that are busy after the timeout."""
        if self._looking is not None:
            self._looking.cancel()
        await super().shutdown(timeout)


def end_with_response(request: BaseRequest) -> bool:
    """Whether the client's connection will be closed behind this request, whatever the response says."""
    return connection_of(request).is_closing


class Relayed(_Response):
    """A response that has already gone to the client, byte for byte; what a handler returns to aiohttp for it.

    `response_bytes` counts what was written to the client, the head included. `keep_alive` tells aiohttp whether
    the client's connection stays open. `cut` is set when the upstream died within the response: the client's
    connection has then been aborted. `aborted` is set when the engine gave the answer up. `failure` is what went wrong
    and was told within the response, or cut it. For type checkers this is a
    StreamResponse; at run time it is only what aiohttp's server and access log ask of one.
    """

    __slots__ = ("aborted", "cut", "failure", "keep_alive", "response_bytes", "status")
    # A StreamResponse has properties of these names, which a plain attribute stands in for.
    if TYPE_CHECKING:
        status: int
        keep_alive: bool

    def __init__(self, status: int, response_bytes: int, *, keep_alive: bool, cut: ResponseCut | None = None) -> None:
        self.status = status
        self.response_bytes = response_bytes
        self.keep_alive = keep_alive
        self.cut = cut
        self.aborted = False
        self.failure: ChillError | None = cut

    @property
    def body_length(self) -> int:
        """What aiohttp's access log prints as the size."""
        return self.response_bytes

    async def prepare(self, request: BaseRequest) -> None:
        """Nothing: the head has gone out."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: the body has gone out."""


class _Farewell(Relayed):
    """An answer behind which the client's connection ends, in such a way that the client can read it: to close it with
    bytes unread would reset it (RFC 9112 §9.6).
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport, status: int, response_bytes: int) -> None:
        super().__init__(status, response_bytes, keep_alive=False)
        self._transport = transport

    async def write_eof(self, data: bytes = b"") -> None:
        """Say that this was all, and give the client a while to read it. It is cancelled once the client closes."""
        with suppress(OSError, RuntimeError):  # the client has closed it already
            self._transport.write_eof()
        await asyncio.sleep(LINGER_SECONDS)


def message_of(request: BaseRequest) -> RawRequestMessage:
    """The request's head as aiohttp's parser left it: target and fields as they were received."""
    return request._message


def peer_of(protocol: RequestHandler) -> tuple[str, str]:
    """The client's address, empty if it has none (a Unix socket), and the scheme that it speaks."""
    peername = protocol.peername
    return peername[0] if isinstance(peername, tuple) else "", "https" if protocol.ssl_context else "http"


def connection_of(request: BaseRequest) -> ClientConnection:
    """The client's connection of a request that a ClientServer has parsed."""
    protocol = request.protocol
    assert isinstance(protocol, ClientConnection)
    return protocol


async def say_continue(request: BaseRequest) -> bool:
    """Have the client send its body; False, for it need not be told again."""
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection_of(request).told_to_send()
    return False


def arrived(payload: StreamReader) -> bytes:
    """What has come of a body of which nothing was read; it is there to be read all the same."""
    return b"".join(payload._buffer)


async def drain(protocol: RequestHandler) -> None:
    """Until the client takes bytes again. Raises ConnectionError if it is gone."""
    await protocol._drain_helper()


class TakenOver(asyncio.StreamReaderProtocol):
    """A client's connection after its last HTTP request. aiohttp hears of its end once it has been handed back."""

    def __init__(self, handler: RequestHandler, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._handler = handler
        self._handed_back = False
        self._lost: tuple[Exception | None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = (exc,)
        if self._handed_back:
            self._handler.connection_lost(exc)

    def hand_back(self) -> None:
        """Let aiohttp do with the connection what it does at its end."""
        self._handed_back = True
        if self._lost is not None:
            self._handler._loop.call_soon(self._handler.connection_lost, *self._lost)


def take_over(request: BaseRequest, reader: asyncio.StreamReader) -> tuple[asyncio.StreamWriter, TakenOver]:
    """Give the client's connection to a reader and a writer; what came behind the request is in the reader.

    `hand_back` has to follow. Raises ConnectionResetError if the client has left.
    """
    handler, transport = request.protocol, request.transport
    if transport is None:
        raise ConnectionResetError("the client has left")
    taken = TakenOver(handler, reader)
    taken.connection_made(transport)
    early, handler._message_tail = handler._message_tail, b""
    if early:
        reader.feed_data(early)
    transport.set_protocol(taken)
    if handler._buffer_paused:
        handler._resume_reading_for_buffer()
    return asyncio.StreamWriter(transport, taken, reader, handler._loop), taken


def cut_off(transport: asyncio.Transport, *, reset: bool) -> None:
    """Drop the client's connection at once. `reset`: by RST, for a response whose end is the connection's end."""
    connection: Any = transport.get_extra_info("socket")
    if reset and connection is not None:
        with suppress(OSError):  # it is closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
