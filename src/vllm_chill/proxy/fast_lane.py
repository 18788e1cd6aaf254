"""The fast lane: a plain request to a target that is ready goes from its bytes straight to the relay.

It skips aiohttp's parser, its request and its task, and nothing else: lease, metrics, time limits, back-pressure and
the order of things are those of the handler. The rule: the lane takes a request only while it can carry it through
at once. Whatever the first look does not accept goes to aiohttp's parser, and the connection with it, for good. What
it accepts but cannot serve now (nothing is ready, no connection is idle, the body is large) goes there too, byte for
byte, and the lane has the connection back once that is answered. So does what fails before its first response byte,
with what is known of it (`Tried`): the handler holds, replays and answers for both lanes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp.web import BaseRequest
from aiohttp.web_protocol import RequestHandler

from vllm_chill.control.controller import Lease
from vllm_chill.core.routing import Route, route_of
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import ChillError
from vllm_chill.proxy.aiohttp_seam import ClientConnection, ClientServer, peer_of, when_writable
from vllm_chill.proxy.exchange import Exchange, silent
from vllm_chill.proxy.fast_grammar import PlainHead, PlainRequest, first_look
from vllm_chill.proxy.framing import ResponseFraming
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

BODY_BYTES = 64 * 1024
_BEHIND_BYTES = 64 * 1024
_TURNS = 10  # of the loop, and more than the server takes from the end of a request to waiting for the next
_CLIENT_LEFT = 499


class Counter(Protocol):
    """Who counts requests, and knows whether more may come."""

    draining: bool

    def begun(self) -> None: ...
    def ended(self, method: str, status: int, begun: float) -> float:
        """Take that a request is over, which had begun then; the time."""


@dataclass(frozen=True, slots=True)
class FastLane:
    """What the connections share. `lease` gives a lease if the target is ready; `cut` is told of a response that
    ended early; bodies of up to `body_bytes` are taken.
    """

    lease: Callable[[], Lease | None]
    cut: Callable[[], None]
    counter: Counter
    pool: UpstreamPool
    timeouts: RelayTimeouts
    body_bytes: int = BODY_BYTES
    route_of: Callable[[str, str], Route] = route_of


@dataclass(frozen=True, slots=True)
class Tried:
    """What the fast lane leaves the handler with: a request that is counted since `begun`, and, if it has been sent
    to `endpoint`, how that failed.
    """

    method: str
    begun: float
    endpoint: Endpoint
    failure: ChillError | None


def tried(request: BaseRequest, *, take: bool = False) -> Tried | None:
    """What the fast lane has done about this request; with `take`, whoever asks answers for it from now on."""
    protocol = request.protocol
    if not isinstance(protocol, FastConnection):
        return None
    left = protocol.tried
    if take:
        protocol.tried = None
    return left


class FastServer(ClientServer):
    """A server whose connections have the fast lane."""

    def __init__(self, *args: Any, lane: FastLane, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lane = lane

    def __call__(self) -> RequestHandler:
        return FastConnection(self._lane, self, loop=self._loop, **self._kwargs)


class FastConnection(ClientConnection):
    """A client's connection. Invariant: while it is `_open`, the parser has been given nothing but whole plain
    requests, apart from `_owed` bytes of the last one's body; so once it is idle it holds nothing.
    """

    __slots__ = ("_behind", "_deadline", "_exchange", "_head", "_open", "_owed", "_timer", "lane", "peer", "tried")

    def __init__(self, lane: FastLane, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lane = lane
        self.tried: Tried | None = None
        self._open = True
        self._owed = 0
        self._head: PlainHead | None = None  # the last one
        self._exchange: FastExchange | None = None
        self._behind = bytearray()  # what came behind the request that is being served
        self.peer = ("", "http")
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = peer_of(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            if data:
                self._exchange.more(data)
        elif not self._open or not data or self.is_closing:
            super().data_received(data)
        elif self._owed:
            owed = data[: self._owed]
            self._owed -= len(owed)
            super().data_received(owed)
            if len(data) > len(owed):
                self.data_received(data[len(owed) :])
        elif self._behind or not self.parser_is_idle:
            self.hold_back(data)
            if not self.is_busy:
                self._loop.call_soon(self._go_on_once_idle, _TURNS)
        else:
            self._look(data)

    def _look(self, data: bytes) -> None:
        head = self._head
        request = (head.again(data) if head is not None else None) or first_look(data, self.lane.route_of)
        if request is None:
            self._close_lane(data)
            return
        self._head = request.head
        end = request.start + (request.length or 0)
        if self._begin(request, data, end):
            return
        self._owed = max(0, end - len(data))
        super().data_received(data[:end])
        if len(data) > end:
            self.data_received(data[end:])

    def _close_lane(self, data: bytes) -> None:
        self._open, self._head = False, None
        super().data_received(data)

    def _begin(self, request: PlainRequest, data: bytes, end: int) -> bool:
        """Serve it here, if that can be done at once."""
        lane, client = self.lane, self.transport
        lease = lane.lease() if end - request.start <= lane.body_bytes and request.head.proxied else None
        if lease is None or client is None:
            return False
        begun = self._loop.time()
        whole = len(data) >= end
        connection = lane.pool.take(lease.endpoint) if whole else None
        if whole and connection is None:
            lease.release()
            return False
        lane.counter.begun()
        self.begin_exchange()
        exchange = self._exchange = FastExchange(self, client, lease, request, begun)
        if connection is None:
            exchange.more(data)
            return True
        if len(data) > end:
            self.hold_back(data[end:])
            data = data[:end]
        exchange.send(connection, data, begun)
        return True

    def hold_back(self, data: bytes) -> None:
        """Keep what came behind the request that is being served, and read on a little: a client is seen to leave."""
        self._behind += data
        if len(self._behind) > _BEHIND_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def watch(self, deadline: float) -> None:
        """See to it that the response has begun by then. One timer serves all requests of a connection."""
        self._deadline = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        exchange = self._exchange
        if exchange is None or not exchange.waits_for_response:
            return
        if self._loop.time() < self._deadline:
            self.watch(self._deadline)
        else:
            exchange.time_out()

    def over(self, now: float, *, keep_alive: bool) -> None:
        """The exchange is over, and its response on its way."""
        self._exchange = None
        self.end_exchange(now)
        if not keep_alive or self.is_closing:
            self.force_close()
        elif self._behind:
            self._go_on()

    def hand_over(self, request: bytes, tried: Tried) -> None:
        """Nothing has reached the client, so the handler answers; unless the server has ended, which nobody does."""
        self._exchange = None
        self.end_exchange(self._loop.time())
        self.tried = tried
        if self.is_closing:
            self.force_close()
            return
        super().data_received(request)
        self._go_on()

    def request_ended(self) -> None:
        if self._behind:
            self._loop.call_soon(self._go_on_once_idle, _TURNS)

    def _go_on_once_idle(self, turns: int) -> None:
        if not self._behind or self._exchange is not None or self.is_busy or self.is_closing:
            return
        if not self.parser_is_idle and turns:
            self._loop.call_soon(self._go_on_once_idle, turns - 1)
            return
        self._open = self._open and self.parser_is_idle
        self._go_on()

    def _go_on(self) -> None:
        if self._behind:
            behind, self._behind = bytes(self._behind), bytearray()
            self.data_received(behind)
            if len(self._behind) <= _BEHIND_BYTES:
                self.resume_unless_held()

    def force_close(self) -> None:
        self._abandon()
        super().force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._abandon()
        left, self.tried = self.tried, None
        if left is not None:
            self.lane.counter.ended(left.method, _CLIENT_LEFT, left.begun)
        if self._timer is not None:
            self._timer.cancel()
        self._behind.clear()
        super().connection_lost(exc)

    def _abandon(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()


class FastExchange(Exchange):
    """One request on the fast lane, from its head to its response's last byte. It ends once: `_over`.

    Until the body is whole, `_gathered` has what has come of the request. The lease is held from the head on.
    """

    __slots__ = ("_begun", "_connection", "_gathered", "_lease", "_over", "_plain", "_request")

    def __init__(
        self, connection: FastConnection, client: asyncio.Transport, lease: Lease, request: PlainRequest, begun: float
    ) -> None:
        super().__init__(connection, client, ResponseFraming(), connection.lane.pool)
        self._connection = connection
        self._lease = lease
        self._plain = request
        self._begun = begun
        self._gathered: bytearray | None = None
        self._request = b""
        self._over = False

    @property
    def waits_for_response(self) -> bool:
        """Whether the upstream has the request, and the client no byte of a response."""
        return self.request_sent and not self.sent and not self._over

    def more(self, data: bytes) -> None:
        """What comes from the client: the rest of the body, or what is behind it."""
        if self.request_sent:
            self._connection.hold_back(data)
            return
        if self._gathered is None:
            self._gathered = bytearray()
        self._gathered += data
        end = self._plain.start + (self._plain.length or 0)
        if len(self._gathered) < end:
            return
        if len(self._gathered) > end:
            self._connection.hold_back(bytes(self._gathered[end:]))
        request, self._gathered = bytes(self._gathered[:end]), None
        connection = self._pool.take(self._lease.endpoint)
        if connection is None:
            self._request = request
            self._leave(None)
        else:
            self.send(connection, request, connection.loop.time())

    def send(self, connection: UpstreamConnection, request: bytes, now: float) -> None:
        """Send the request, which is whole."""
        head, start, length = self._plain
        endpoint = self._lease.endpoint
        self._request = request
        self.take(connection, endpoint)
        peer, scheme = self._connection.peer
        connection.transport.write(head.for_upstream(length, endpoint, peer, scheme) + request[start:])
        self.request_sent = True
        seconds = self._connection.lane.timeouts.response_seconds
        if seconds is not None:
            self._connection.watch(now + seconds)

    def time_out(self) -> None:
        """The response has not begun in time."""
        seconds = self._connection.lane.timeouts.response_seconds
        assert seconds is not None
        self.fail(silent(self._lease.endpoint, seconds))

    def finish(self, failure: ChillError | None) -> None:
        if failure is None:
            if self._connection.writing_paused:
                when_writable(self._connection, self._end)
            else:
                self._end()
        elif self.sent:
            self._cut()
        else:
            self._leave(failure)

    def abandon(self) -> None:
        """The client is gone, or its connection is being closed: neither side may take what there is for the whole."""
        if not self._over:
            self.drop()
            self._count(_CLIENT_LEFT)
            if self.sent:
                self.cut_client()
            self._connection.end_exchange(self._begun)

    def _end(self) -> None:
        if not self._over:
            now = self._count(self.framing.status)
            keep_alive = self.framing.keep_alive and not self._connection.lane.counter.draining
            self._connection.over(now, keep_alive=keep_alive)

    def _cut(self) -> None:
        if not self._over:
            self._connection.lane.cut()
            now = self._count(self.framing.status)
            self.cut_client()
            self._connection.over(now, keep_alive=False)

    def _count(self, status: int) -> float:
        """The lease ends, and the request is counted; the time at which."""
        self._over = True
        self._lease.release()
        return self._connection.lane.counter.ended(self._plain.head.method, status, self._begun)

    def _leave(self, failure: ChillError | None) -> None:
        if not self._over:
            self._over = True
            self._lease.release()
            left = Tried(self._plain.head.method, self._begun, self._lease.endpoint, failure)
            self._connection.hand_over(self._request, left)
