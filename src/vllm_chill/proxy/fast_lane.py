"""The fast lane: a plain request goes from its bytes straight to the relay, without aiohttp's parser, request or task.

The rule: a connection is on the lane from its first byte until the first look meets something that it does not
accept, or that is not to be relayed. That goes to aiohttp's parser byte for byte, and the connection with it, for
good; so the parser never sees a connection that the lane has served half a request of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from vllm_chill.errors import AnswerableError, RequestTimeout
from vllm_chill.proxy.aiohttp_seam import LINGER_SECONDS, ClientServer, cut_off
from vllm_chill.proxy.answer import answer_bytes
from vllm_chill.proxy.fast_exchange import FastExchange, FastLane
from vllm_chill.proxy.fast_grammar import PlainHead
from vllm_chill.proxy.pour import UP_BYTES, pour
from vllm_chill.proxy.stalls import Client, Part, Progress

_BEHIND_BYTES = 64 * 1024
_LOOKS = 8  # in the time that an idle connection is kept


class FastServer(ClientServer):
    """A server whose connections begin on the fast lane."""

    def __init__(self, *args: Any, lane: FastLane, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lane = lane
        self.fast: set[FastConnection] = set()
        self._idle_seconds: float = kwargs.get("keepalive_timeout", 75.0)
        self._quiet: asyncio.Future[None] | None = None

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        return FastConnection(self)

    def joined(self, connection: FastConnection) -> None:
        """Take that a connection is on the lane."""
        self.fast.add(connection)
        self.let_in(connection)

    def left(self, connection: FastConnection) -> None:
        """Take that it no longer is."""
        self.fast.discard(connection)
        if not self.fast and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def pre_shutdown(self) -> None:
        """Close what is idle, and the rest as soon as it is."""
        super().pre_shutdown()
        for connection in list(self.fast):
            connection.close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close every connection, those that are busy after the timeout."""
        await asyncio.gather(super().shutdown(timeout), self._end_lane(timeout))

    async def _end_lane(self, seconds: float | None) -> None:
        if self.fast:
            self._quiet = self._loop.create_future()
            await asyncio.wait([self._quiet], timeout=seconds)
        for connection in list(self.fast):
            connection.abort()

    @property
    def count(self) -> int:
        return len(self.fast) + super().count

    def clients(self) -> list[Client]:
        return [*self.fast, *super().clients()]

    def _look_seconds(self) -> float:
        seconds = self.limits.look_seconds
        return self._idle_seconds / _LOOKS if seconds is None else min(seconds, self._idle_seconds / _LOOKS)

    def _look(self) -> None:
        self._close_idle()
        super()._look()

    def _close_idle(self) -> None:
        oldest = self._loop.time() - self._idle_seconds
        for connection in list(self.fast):
            if not connection.is_busy and connection.idle_since <= oldest:
                connection.close()


class FastConnection(asyncio.Protocol):
    """A client's connection. `idle_since` is when its last request ended, or when it was made."""

    __slots__ = (
        "_behind",
        "_closing",
        "_deadline",
        "_exchange",
        "_head",
        "_paused",
        "_resumed",
        "_server",
        "_timer",
        "idle_since",
        "lane",
        "peer",
        "transport",
        "writing_paused",
    )

    transport: asyncio.Transport

    def __init__(self, server: FastServer) -> None:
        self._server = server
        self.lane = server.lane
        self.writing_paused = False
        self.peer = ("", "http")
        self.idle_since = 0.0
        self._head: PlainHead | None = None  # the last one
        self._exchange: FastExchange | None = None
        self._behind = b""  # what came behind the request that is being served
        self._paused = False
        self._closing = False
        self._resumed: Callable[[], None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._server._loop

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served."""
        return self._exchange is not None

    @property
    def progress(self) -> Progress | None:
        """What is waited for from the client; None if that is nothing."""
        exchange = self._exchange
        if exchange is None and not self._closing:
            return None
        unsent = self.transport.get_write_buffer_size()
        if unsent and (self.writing_paused or self._closing):
            return Progress(Part.RESPONSE, exchange, -unsent)
        if exchange is not None and not self._paused and exchange.waits_for_request:
            return Progress(Part.BODY, exchange, -exchange.missing)
        return None

    @property
    def waiting_since(self) -> float | None:
        """Since when nothing is done for it; None if something is."""
        return None if self._exchange is not None or self._closing else self.idle_since

    def turn_away(self, error: AnswerableError) -> None:
        """Answer this and end it, as there is no room for it."""
        self.transport.write(answer_bytes(error, keep_alive=False))
        self.close()

    def time_out(self, error: RequestTimeout) -> None:
        """Answer what has not come in time, and end the connection."""
        if self._exchange is not None:
            self._exchange.refuse(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peername = transport.get_extra_info("peername")
        scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.peer = peername[0] if isinstance(peername, tuple) else "", scheme
        self.idle_since = self.loop.time()
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.more(data)
        elif not self._closing:
            if self._behind:
                data, self._behind = self._behind + data, b""
            self._look(data)

    def _look(self, data: bytes) -> None:
        head, lane = self._head, self.lane
        request = (head.again(data) if head is not None else None) or lane.heads.look(data, lane.route_of)
        if request is None or not request.head.proxied or (lane.pages_apart and request.head.of_page):
            self._leave_lane(data)
            return
        self._head = request.head
        begun = self.loop.time()
        lane.counter.begun()
        size = request.length or 0
        streamed = size > lane.body_bytes or (len(data) < request.start + size and lane.streams(size))
        kind = lane.upload if streamed else lane.exchange
        exchange = self._exchange = kind(self, request, begun)
        if lane.gate is None or exchange.enter(lane.gate, data, begun):
            exchange.start(data, begun)

    def _leave_lane(self, data: bytes) -> None:
        handler = self._server.slow_connection()
        self._server.left(self)
        self._end_timer()
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        if self.writing_paused:
            handler.pause_writing()
        self.read_on()
        handler.data_received(data)

    def hand_on(self, request: bytes) -> None:
        """Give the request that is being served to the server's own way, and the connection with it; `request` is all
        that has come of it.
        """
        self._exchange = None
        behind, self._behind = self._behind, b""
        self._leave_lane(request + behind)
        self.loop.call_soon(self.lane.counter.handed_on)  # once it has begun there: it is counted all the while

    def hold_back(self, data: bytes) -> None:
        """Keep what came behind the request that is being served, and read on a little: a client is seen to leave."""
        self._behind += data
        if len(self._behind) > _BEHIND_BYTES:
            self.pause_reading()

    def pause_reading(self) -> None:
        """Take nothing more from the client for now."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def read_on(self) -> None:
        """Take bytes from the client again."""
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def pour(self, sink: asyncio.Transport, size: int) -> None:
        """Have the next bytes, so many, go to the sink through one buffer."""
        pour(self, self.transport, sink, size, UP_BYTES)

    def watch(self, deadline: float) -> None:
        """See to it that the response has begun by then. One timer serves all requests of a connection."""
        self._deadline = deadline
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        exchange = self._exchange
        if exchange is None or not exchange.waits_for_response:
            return
        if self.loop.time() < self._deadline:
            self.watch(self._deadline)
        else:
            exchange.time_out()

    def over(self, now: float, *, keep_alive: bool, unread: bool = False) -> None:
        """The exchange is over, and its response on its way; `unread` says that some of the request is not."""
        self._exchange = None
        self.idle_since = now
        if unread:
            self._linger()
        elif not keep_alive or self._closing:
            self._closing = True
            self.transport.close()
        else:
            if self._paused:
                self.read_on()
            if self._behind:
                self.loop.call_soon(self._look_behind)  # not now: behind one may be thousands that are answered at once

    def _look_behind(self) -> None:
        if self._behind and self._exchange is None and not self._closing:
            behind, self._behind = self._behind, b""
            self._look(behind)

    def _linger(self) -> None:
        # To close it with bytes unread would reset it, and the client might never read the response (RFC 9112 §9.6).
        self._closing = True
        self.read_on()
        self._end_timer()
        if self.transport.is_closing():
            return
        try:
            if self.transport.can_write_eof():  # TLS has no half: the client closes once it has read that we would
                self.transport.write_eof()
        except OSError:  # the client has gone, which is not seen while it is not read
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def close(self) -> None:
        """Close it, once it is idle."""
        self._closing = True
        if self._exchange is None:
            self.transport.close()

    def abort(self) -> None:
        """Drop it, with what is being served."""
        self._abandon()
        cut_off(self.transport, reset=True)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.left(self)
        self._closing = True
        self._abandon()
        self._end_timer()
        self._behind = b""
        self.resume_writing()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _abandon(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed()

    def when_writable(self, call: Callable[[], None]) -> None:
        """Call once the client takes bytes again, or is gone; one call at a time. To be used while `writing_paused`."""
        self._resumed = call
