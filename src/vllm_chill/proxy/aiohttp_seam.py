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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web import BaseRequest, RequestPayloadError, Server
from aiohttp.web_protocol import RequestHandler

from vllm_chill.errors import ResponseCut

if TYPE_CHECKING:
    from aiohttp.web import StreamResponse

    _Response = StreamResponse
else:
    _Response = object

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
    "_message_tail",
    "_messages",
    "_resume_reading_for_buffer",
)


class ClientConnection(RequestHandler):
    """A client's connection as aiohttp's server has it, and what can be told and asked of it besides.

    One thing is mended for every request: aiohttp 3.14's parser in C does not tell a body that it is broken (a
    malformed chunk), so that whoever reads it would wait for as long as the client stays.
    """

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        queue = self._messages
        known = len(queue)
        super().data_received(data)
        if len(queue) > known and (error := _error_in(queue[-1])) is not None:
            self._end_broken_body(error)

    def _end_broken_body(self, error: HttpProcessingError, *, again: bool = True) -> None:
        requests = [message for message in self._messages if _error_in(message) is None]
        if requests:
            payload = requests[-1][1]
        elif self._current_request is not None:
            payload = self._current_request.content
        else:
            if again:  # its request may be between the queue and its handler, for one turn of the loop
                self._loop.call_soon(partial(self._end_broken_body, error, again=False))
            return
        if payload.is_eof():
            return
        # The error belongs to this body: the request is answered, and nothing is read after it.
        self._messages = deque(requests)
        self._close = True
        payload.set_exception(RequestPayloadError(error.message))
        payload.feed_eof()

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


def _error_in(message: Any) -> HttpProcessingError | None:
    """What is wrong with bytes that the parser has refused, which stands in the queue as a request would."""
    error = getattr(message[0], "exc", None)
    return error if isinstance(error, HttpProcessingError) else None


class ClientServer(Server):
    """aiohttp's server, on connections of our kind."""

    def __call__(self) -> RequestHandler:
        return self.slow_connection()

    def slow_connection(self) -> ClientConnection:
        """A connection on aiohttp's parser."""
        return ClientConnection(self, loop=self._loop, **self._kwargs)


def end_with_response(request: BaseRequest) -> bool:
    """Whether the client's connection will be closed behind this request, whatever the response says."""
    return connection_of(request).is_closing


class Relayed(_Response):
    """A response that has already gone to the client, byte for byte; what a handler returns to aiohttp for it.

    `response_bytes` counts what was written to the client, the head included. `keep_alive` tells aiohttp whether
    the client's connection stays open. `cut` is set when the upstream died within the response: the client's
    connection has then been aborted. `aborted` is set when the engine gave the answer up. For type checkers this is a
    StreamResponse; at run time it is only what aiohttp's server and access log ask of one.
    """

    __slots__ = ("aborted", "cut", "keep_alive", "response_bytes", "status")
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

    @property
    def body_length(self) -> int:
        """What aiohttp's access log prints as the size."""
        return self.response_bytes

    async def prepare(self, request: BaseRequest) -> None:
        """Nothing: the head has gone out."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: the body has gone out."""


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
