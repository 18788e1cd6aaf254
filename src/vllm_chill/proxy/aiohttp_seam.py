"""The one place that leans on how aiohttp's server works inside (pinned; tests/proxy/test_aiohttp_seam.py guards it).

The server parses requests, keeps connections alive and runs the handler; the response's bytes go past it. So three
things are needed that aiohttp does not promise: the parsed message with the target and the fields as they were
received, a call back when a slow client has room again, and a handler's result that aiohttp writes nothing for.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp.http_parser import RawRequestMessage
from aiohttp.web import BaseRequest
from aiohttp.web_protocol import RequestHandler

from vllm_chill.errors import ResponseCut

if TYPE_CHECKING:
    from aiohttp.web import StreamResponse

    _Response = StreamResponse
else:
    _Response = object

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Relayed(_Response):
    """A response that has already gone to the client, byte for byte; what a handler returns to aiohttp for it.

    `response_bytes` counts what was written to the client, the head included. `keep_alive` tells aiohttp whether
    the client's connection stays open. `cut` is set when the upstream died within the response: the client's
    connection has then been aborted. For type checkers this is a StreamResponse; at run time it is only what
    aiohttp's server and access log ask of one.
    """

    __slots__ = ("cut", "keep_alive", "response_bytes", "status")
    # A StreamResponse has properties of these names, which a plain attribute stands in for.
    if TYPE_CHECKING:
        status: int
        keep_alive: bool

    def __init__(self, status: int, response_bytes: int, *, keep_alive: bool, cut: ResponseCut | None = None) -> None:
        self.status = status
        self.response_bytes = response_bytes
        self.keep_alive = keep_alive
        self.cut = cut

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


def when_writable(protocol: RequestHandler, call: Callable[[], None]) -> None:
    """Call once the client takes bytes again, or is gone. To be used while `protocol.writing_paused`.

    aiohttp's own `drain` waits on the same future, so both may wait at a time. A callback and not an await, as
    the response is written from the upstream's `data_received`, where nothing can be awaited.
    """
    waiter = protocol._drain_waiter
    if waiter is None:
        waiter = protocol._drain_waiter = protocol._loop.create_future()

    def resumed(future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()  # a client that left: seen, so that the loop does not log it
        call()

    waiter.add_done_callback(resumed)


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
