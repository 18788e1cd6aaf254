"""The fast lane: a plain request goes from its bytes straight to the relay, without aiohttp's parser, request or task.

The rule: a connection is on the lane from its first byte until the first look meets something that it does not
accept, or that is not to be relayed. That goes to aiohttp's parser byte for byte, and the connection with it, for
good; so the parser never sees a connection that the lane has served half a request of. A request waits for nothing
while the target is ready and a connection to it is idle. All that can take time (a hold, a new connection, another
attempt) is awaited in a task of its own, which ends once the request is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from vllm_chill.control.controller import Lease
from vllm_chill.errors import AnswerableError, ChillError, UpstreamRefused, UpstreamReset
from vllm_chill.proxy.aiohttp_seam import ClientServer
from vllm_chill.proxy.answer import answer_bytes
from vllm_chill.proxy.attempts import Attempts
from vllm_chill.proxy.exchange import Exchange, silent
from vllm_chill.proxy.fast_grammar import KnownHeads, PlainHead, PlainRequest
from vllm_chill.proxy.framing import ResponseFraming
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

BODY_BYTES = 256 * 1024
_BEHIND_BYTES = 64 * 1024
_CLIENT_LEFT = 499
_SWEEPS = 8  # in the time that an idle connection is kept


class Counter(Protocol):
    """Who counts requests, and knows whether more may come."""

    draining: bool

    def begun(self) -> None: ...
    def ended(self, method: str, status: int, begun: float) -> float:
        """Take that a request is over, which had begun then; the time."""

    def bug(self, method: str) -> AnswerableError:
        """Log the exception that is being handled, and how to answer it."""


@dataclass(frozen=True, slots=True)
class FastLane:
    """What the connections share. `lease_now` gives a lease if the target is ready, `attempts` begins to try in all
    other ways; `cut` is told of a response that ended early; bodies of up to `body_bytes` are taken.

    `heads` has the heads that the connections know, so that those of one client's many connections are one.
    """

    lease_now: Callable[[], Lease | None]
    attempts: Callable[[], Attempts]
    cut: Callable[[], None]
    counter: Counter
    pool: UpstreamPool
    timeouts: RelayTimeouts
    body_bytes: int = BODY_BYTES
    heads: KnownHeads = field(default_factory=KnownHeads)


class FastServer(ClientServer):
    """A server whose connections begin on the fast lane."""

    def __init__(self, *args: Any, lane: FastLane, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lane = lane
        self.fast: set[FastConnection] = set()
        self._idle_seconds: float = kwargs.get("keepalive_timeout", 75.0)
        self._quiet: asyncio.Future[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        return FastConnection(self)

    def joined(self, connection: FastConnection) -> None:
        """Take that a connection is on the lane."""
        self.fast.add(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._idle_seconds / _SWEEPS, self._close_idle)

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
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.gather(super().shutdown(timeout), self._end_lane(timeout))

    async def _end_lane(self, seconds: float | None) -> None:
        if self.fast:
            self._quiet = self._loop.create_future()
            await asyncio.wait([self._quiet], timeout=seconds)
        for connection in list(self.fast):
            connection.abort()

    def _close_idle(self) -> None:
        oldest = self._loop.time() - self._idle_seconds
        for connection in list(self.fast):
            if not connection.is_busy and connection.idle_since <= oldest:
                connection.close()
        pause = self._idle_seconds / _SWEEPS
        self._sweep = self._loop.call_later(pause, self._close_idle) if self.fast else None


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
    def is_busy(self) -> bool:
        """Whether a request is being served."""
        return self._exchange is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peername = transport.get_extra_info("peername")
        scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.peer = peername[0] if isinstance(peername, tuple) else "", scheme
        self.idle_since = self._server._loop.time()
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.more(data)
        elif not self._closing:
            self._look(data)

    def _look(self, data: bytes) -> None:
        head, lane = self._head, self.lane
        request = (head.again(data) if head is not None else None) or lane.heads.look(data)
        if request is None or not request.head.proxied or (request.length or 0) > lane.body_bytes:
            self._leave_lane(data)
            return
        self._head = request.head
        end = request.start + (request.length or 0)
        begun = self._server._loop.time()
        lane.counter.begun()
        exchange = self._exchange = FastExchange(self, request, begun)
        if len(data) < end:
            exchange.more(data)
        elif len(data) == end:
            exchange.begin(data, begun)
        else:
            self.hold_back(data[end:])
            exchange.begin(data[:end], begun)

    def _leave_lane(self, data: bytes) -> None:
        handler = self._server.slow_connection()
        self._server.left(self)
        self._end_timer()
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        if self.writing_paused:
            handler.pause_writing()
        self._read_on()
        handler.data_received(data)

    def hold_back(self, data: bytes) -> None:
        """Keep what came behind the request that is being served, and read on a little: a client is seen to leave."""
        self._behind += data
        if len(self._behind) > _BEHIND_BYTES and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def watch(self, deadline: float) -> None:
        """See to it that the response has begun by then. One timer serves all requests of a connection."""
        self._deadline = deadline
        if self._timer is None:
            self._timer = self._server._loop.call_at(deadline, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        exchange = self._exchange
        if exchange is None or not exchange.waits_for_response:
            return
        if self._server._loop.time() < self._deadline:
            self.watch(self._deadline)
        else:
            exchange.time_out()

    def over(self, now: float, *, keep_alive: bool) -> None:
        """The exchange is over, and its response on its way."""
        self._exchange = None
        self.idle_since = now
        if not keep_alive or self._closing:
            self._closing = True
            self.transport.close()
        elif self._behind:
            behind, self._behind = self._behind, b""
            self._read_on()
            self._look(behind)

    def close(self) -> None:
        """Close it, once it is idle."""
        self._closing = True
        if self._exchange is None:
            self.transport.close()

    def abort(self) -> None:
        """Drop it, with what is being served."""
        self._abandon()
        self.transport.abort()

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


class FastExchange(Exchange):
    """One request on the fast lane, from its head to its response's last byte. It ends once: `_over`.

    `_request` has what has come of the request. It holds a lease while it has a connection or is getting one.
    """

    __slots__ = ("_attempts", "_begun", "_connection", "_lease", "_over", "_plain", "_request", "_task")

    def __init__(self, connection: FastConnection, request: PlainRequest, begun: float) -> None:
        super().__init__(connection, connection.transport, ResponseFraming(), connection.lane.pool)
        self._connection = connection
        self._plain = request
        self._begun = begun
        self._request: bytes | bytearray = b""
        self._lease: Lease | None = None
        self._attempts: Attempts | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False

    @property
    def waits_for_response(self) -> bool:
        """Whether the upstream has the request, and the client no byte of a response."""
        return self.request_sent and not self.sent and not self._over

    def more(self, data: bytes) -> None:
        """What comes from the client: the rest of the body, or what is behind it."""
        end = self._plain.start + (self._plain.length or 0)
        missing = end - len(self._request)
        if missing <= 0:
            self._connection.hold_back(data)
            return
        if not isinstance(self._request, bytearray):
            self._request = bytearray()
        self._request += data[:missing]
        if len(data) > missing:
            self._connection.hold_back(data[missing:])
        if len(data) >= missing:
            self.begin(bytes(self._request), self._connection._server._loop.time())

    def begin(self, request: bytes, now: float) -> None:
        """Send the request, which is whole: at once if that can be done, and else as soon as it can."""
        self._request = request
        lane = self._connection.lane
        lease = self._lease = lane.lease_now()
        connection = lane.pool.take(lease.endpoint) if lease is not None else None
        if connection is not None:
            self._send(connection, now)
        else:
            self._attend(None)

    def _send(self, connection: UpstreamConnection, now: float) -> None:
        head, start, length = self._plain
        lease = self._lease
        assert lease is not None
        self.take(connection, lease.endpoint)
        peer, scheme = self._connection.peer
        connection.transport.write(head.for_upstream(length, lease.endpoint, peer, scheme) + self._request[start:])
        self.request_sent = True
        seconds = self._connection.lane.timeouts.response_seconds
        if seconds is not None:
            self._connection.watch(now + seconds)

    def _attend(self, failure: ChillError | None) -> None:
        self._task = self._connection._server._loop.create_task(self._attempt(failure))

    async def _attempt(self, failure: ChillError | None) -> None:
        """Get a lease and a connection, however long that takes, and send the request."""
        try:
            connection = await self._connected(failure)
            # It may be closing since it was connected, when it had no exchange to tell.
            while connection.transport.is_closing():
                connection = await self._connected(UpstreamReset(f"{self._endpoint} closed the connection; try again"))
        except AnswerableError as error:
            self._answer(error)
        except Exception:
            self._answer(self._connection.lane.counter.bug(self._plain.head.method))
        else:
            self._task = None
            self._send(connection, connection.loop.time())

    async def _connected(self, failure: ChillError | None) -> UpstreamConnection:
        lane = self._connection.lane
        attempts = self._attempts = self._attempts or lane.attempts()
        while True:
            if failure is not None:
                assert self._endpoint is not None
                self._release()
                await attempts.after(failure, self._endpoint, replayable=True)
            lease = self._lease = self._lease or await attempts.lease()
            self._endpoint = lease.endpoint
            connection = None if attempts.fresh else self._pool.take(lease.endpoint)
            try:
                return connection or await self._pool.connect(lease.endpoint, lane.timeouts.connect_seconds)
            except UpstreamRefused as refused:
                failure = refused

    def time_out(self) -> None:
        """The response has not begun in time."""
        seconds = self._connection.lane.timeouts.response_seconds
        assert seconds is not None
        self.fail(silent(self._endpoint, seconds))

    def finish(self, failure: ChillError | None) -> None:
        if self._over:
            return
        if failure is None:
            if self._connection.writing_paused:
                self._connection.when_writable(self._end)
            else:
                self._end()
        elif self.sent:
            self._cut()
        else:
            self._again(failure)

    def _again(self, failure: ChillError) -> None:
        self._heard = self.request_sent = False
        self.framing = ResponseFraming()
        self._attend(failure)

    def abandon(self) -> None:
        """The client is gone, or its connection is being closed: neither side may take what there is for the whole."""
        if not self._over:
            self.drop()
            self._count(_CLIENT_LEFT)
            if self.sent:
                self.cut_client()

    def _end(self) -> None:
        if not self._over:
            now = self._count(self.framing.status)
            keep_alive = self.framing.keep_alive and not self._connection.lane.counter.draining
            self._connection.over(now, keep_alive=keep_alive)

    def _cut(self) -> None:
        self._connection.lane.cut()
        now = self._count(self.framing.status)
        self.cut_client()
        self._connection.over(now, keep_alive=False)

    def _answer(self, error: AnswerableError) -> None:
        self._task = None
        keep_alive = not self._connection.lane.counter.draining
        self._client.write(answer_bytes(error, keep_alive=keep_alive))
        self._connection.over(self._count(error.status), keep_alive=keep_alive)

    def _count(self, status: int) -> float:
        """The lease ends, and the request is counted; the time at which."""
        self._over = True
        if self._task is not None:
            self._task.cancel()
        self._release()
        return self._connection.lane.counter.ended(self._plain.head.method, status, self._begun)

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()
