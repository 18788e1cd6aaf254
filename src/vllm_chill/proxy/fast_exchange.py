"""One request on the fast lane, from its head to its response's last byte.

The rule: it waits for nothing while the target is ready and a connection to it is idle. All that can take time (a
hold, a new connection, another attempt) is awaited in a task of its own, which ends once the request is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from vllm_chill.api.openai import error_envelope
from vllm_chill.control.lease import Lease
from vllm_chill.core.keys import Key
from vllm_chill.core.model_search import Search, no_model_within
from vllm_chill.core.naming import Naming
from vllm_chill.core.outliers import FIRST_GATEWAY_ERROR
from vllm_chill.core.prompt import LOOKED_INTO_BYTES
from vllm_chill.core.routing import Route, route_of
from vllm_chill.errors import AnswerableError, ChillError, ResponseCut, UpstreamRefused, UpstreamReset
from vllm_chill.proxy.adapters import Adapters
from vllm_chill.proxy.answer import answer_bytes
from vllm_chill.proxy.attempts import Attempts
from vllm_chill.proxy.committed import Committed, CommittedFraming, Kind
from vllm_chill.proxy.exchange import Downstream, Exchange, silent
from vllm_chill.proxy.fast_grammar import KnownHeads, PlainRequest
from vllm_chill.proxy.framing import ResponseFraming
from vllm_chill.proxy.gate import Entrant, Gate
from vllm_chill.proxy.hold import STREAMED_BYTES, Caller
from vllm_chill.proxy.pour import POURED_BYTES
from vllm_chill.proxy.relay import WRITTEN_AT_ONCE, RelayTimeouts
from vllm_chill.proxy.request_framing import too_large
from vllm_chill.proxy.request_id import RequestIds, text_of
from vllm_chill.proxy.served import Choice, Directory
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

_CLIENT_LEFT = 499
_BEFORE_SENT_BYTES = 64 * 1024


class Counter(Protocol):
    """Who counts requests, and knows whether more may come."""

    draining: bool

    def begun(self) -> None: ...
    def ended(self, method: str, status: int, begun: float) -> float:
        """Take that a request is over, which had begun then; the time."""

    def handed_on(self) -> None:
        """Take that a request which had begun goes another way, on which it begins again."""

    def failed(self, method: str, request_id: bytes, failure: ChillError) -> None:
        """Log what a request came to."""

    def bug(self, method: str, request_id: bytes) -> AnswerableError:
        """Log the exception that is being handled, and how to answer it."""


MakeExchange = Callable[["Connection", PlainRequest, float], "FastExchange"]
"""Makes what serves one request of a connection, which has begun then."""


@dataclass(frozen=True, slots=True)
class FastLane:
    """What the connections share. `only` is where all requests go, None where each has to say; `attempts` begins to try
    in all ways that take time. `cut` is told of a response that ended early, `aborted` of one that the engine gave up.
    Bodies of up to `body_bytes` are whole before they are sent, and can be sent again; larger ones are streamed, and
    looked into for the model's name as far as `model_bytes`. One above `largest_body` is refused.

    `gate` says who may, None: everybody. `pages_apart`: what a browser sends for a page of another origin is not for
    this lane.

    `heads` has the heads that the connections know, so that those of one client's many connections are one. `new_id`
    makes the ids of requests that say none. `exchange` serves a request whose body is whole before it is sent, and
    `upload` one whose body is streamed.
    """

    directory: Directory
    only: Choice | None
    adapters: Adapters
    attempts: Callable[[Caller, Choice], Attempts]
    cut: Callable[[], None]
    aborted: Callable[[], None]
    counter: Counter
    pool: UpstreamPool
    timeouts: RelayTimeouts
    body_bytes: int
    model_bytes: int
    route_of: Callable[[str, str], Route] = route_of
    gate: Gate | None = None
    pages_apart: bool = False
    largest_body: int | None = None
    heads: KnownHeads = field(default_factory=KnownHeads)
    new_id: Callable[[], bytes] = field(default_factory=lambda: RequestIds().new)
    exchange: MakeExchange = field(default_factory=lambda: FastExchange)
    upload: MakeExchange = field(default_factory=lambda: FastUpload)

    def streams(self, size: int) -> bool:
        """Whether a small body that is not whole goes on as it comes."""
        only = self.only
        return only.served.desk.streams(size) if only is not None else not self.directory.budget.has(size)

    def gather(self, size: int) -> None:
        """Take a share of the budget for a body that is read whole. Raises as HoldDesk.gather does."""
        if self.only is not None:
            self.only.served.desk.gather(size)
        else:
            self.directory.refuse_early()
            self.directory.budget.take(size)


class Connection(Downstream, Protocol):
    """The client's connection, as an exchange needs it."""

    lane: FastLane
    transport: asyncio.Transport
    peer: tuple[str, str]

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def hold_back(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def read_on(self) -> None: ...
    def pour(self, sink: asyncio.Transport, size: int) -> None: ...
    def watch(self, deadline: float) -> None: ...
    def hand_on(self, request: bytes) -> None: ...
    def over(self, now: float, *, keep_alive: bool, unread: bool = False) -> None: ...


class FastExchange(Exchange):
    """One request on the fast lane, from its head to its response's last byte. It ends once: `_over`.

    `_request` has what has come of the request, and `_missing` says how many of its bytes have yet to come, once that
    is known. It holds a lease while it has a connection or is getting one.
    """

    __slots__ = (
        "_added",
        "_attempts",
        "_begun",
        "_choice",
        "_connection",
        "_entrant",
        "_lease",
        "_missing",
        "_over",
        "_plain",
        "_request",
        "_request_id",
        "_share",
        "_task",
        "committed",
    )

    def __init__(self, connection: Connection, request: PlainRequest, begun: float) -> None:
        lane = connection.lane
        super().__init__(connection, connection.transport, ResponseFraming(), lane.pool)
        self._connection = connection
        self._choice = lane.only
        self._entrant: Entrant | None = None
        self._plain = request
        self._begun = begun
        self._request: bytes | bytearray = b""
        self._missing = 0
        self._lease: Lease | None = None
        self._attempts: Attempts | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._share = 0  # of the budget for held bodies
        self.committed: Committed | None = None
        self._added = b""  # what the engine is told besides
        self._request_id = self.fields = request.head.request_id

    def identify(self) -> bytes:
        """Its id. Where its client says none it is made when it is first asked for. What goes through at once has
        none, as nobody asks: to make one and to say it on both sides is a twenty-fifth of what such a request costs.
        """
        if not self._request_id:
            self._request_id = self.fields = self._added = self._connection.lane.new_id()
        return self._request_id

    def enter(self, gate: Gate, data: bytes, now: float) -> bool:
        """Whether the caller may, whose first bytes these are; else that is answered."""
        plain = self._plain
        try:
            entrant = self._entrant = gate.who(plain.head.authorization)
            entrant.take(now)
        except AnswerableError as error:
            behind = len(data) - plain.start - (plain.length or 0)
            self._missing = max(0, -behind)
            if behind > 0:
                self._connection.hold_back(data[-behind:])
            self._answer(error)
            return False
        if entrant.key.models is not None:
            self._choice = None  # which model it asks for matters, even where there is but one target
        return True

    @property
    def key(self) -> Key | None:
        return None if self._entrant is None else self._entrant.key

    @property
    def method(self) -> str:
        return self._plain.head.method

    @property
    def target(self) -> str:
        return self._plain.head.target.decode("ascii")

    @property
    def peer_address(self) -> str:
        return self._connection.peer[0]

    @property
    def body(self) -> bytes:
        return bytes(self._request[self._plain.start :])

    @property
    def opening(self) -> bytes:
        start = self._plain.start
        return bytes(self._request[start : start + LOOKED_INTO_BYTES])

    @property
    def held_bytes(self) -> int:
        return self._plain.length or 0

    def field(self, name: str) -> str | None:
        """A field of its head."""
        return self._plain.head.field(name)

    def commit(self, kind: Kind) -> Committed:
        self.committed = Committed(kind, fields=self.identify())
        self.fields = b""
        self.framing = CommittedFraming(self.committed)
        self._client.write(self.committed.head())
        return self.committed

    def tell(self, data: bytes) -> None:
        if not self._connection.writing_paused:
            self._client.write(data)

    @property
    def unread(self) -> bool:
        """Whether the client has yet to send some of it."""
        return self._missing > 0

    @property
    def missing(self) -> int:
        """How many bytes of it have yet to come."""
        return self._missing

    @property
    def waits_for_request(self) -> bool:
        """Whether the client has yet to send some of it, and has got nothing of a response."""
        return self._missing > 0 and not self.sent

    def refuse(self, error: AnswerableError) -> None:
        """Answer this, of which nothing of a response has gone out, and take nothing more of it."""
        if self._task is not None:
            self._task.cancel()
        self.drop()
        self._answer(error)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._connection.loop

    @property
    def waits_for_response(self) -> bool:
        """Whether the upstream has the request, and the client no byte of a response."""
        return self.request_sent and not self.sent and not self._over

    def start(self, data: bytes, now: float) -> None:
        """Take the first bytes: the head, and what there is behind it."""
        size = self._plain.length or 0
        end = self._plain.start + size
        if len(data) < end:
            self._missing = end
            try:
                self._connection.lane.gather(size)
            except AnswerableError as error:
                self._answer(error)
            else:
                self._share = size
                self.more(data)
        elif len(data) == end:
            self._begin(data, now)
        else:
            self._connection.hold_back(data[end:])
            self._begin(data[:end], now)

    def more(self, data: bytes) -> None:
        """What comes from the client: the rest of the body, or what is behind it."""
        missing = self._missing
        if not missing:
            self._connection.hold_back(data)
            return
        if not isinstance(self._request, bytearray):
            self._request = bytearray()
        self._request += data[:missing]
        self._missing = max(0, missing - len(data))
        if len(data) > missing:
            self._connection.hold_back(data[missing:])
        if not self._missing:
            self._begin(bytes(self._request), self._loop.time())

    def _begin(self, request: bytes, now: float) -> None:
        """Send the request, which is whole: at once if that can be done, and else as soon as it can."""
        self._request = request
        if self._share:
            self._give_back_share()
        lane = self._connection.lane
        choice = self._choice or self._choose(request)
        if choice is None:
            return
        key_of = choice.key_of
        lease = self._lease = choice.lease_now() if key_of is None else choice.lease_now(None, key_of(self))
        if lease is not None and (choice.adapter is None or lane.adapters.has(lease.endpoint, choice.adapter)):
            connection = lane.pool.take(lease.endpoint)
            if connection is not None:
                self._send(connection, now)
                return
        self._attend(None)

    def _choose(self, request: bytes) -> Choice | None:
        """Where the request goes, which is whole; None if that is settled here."""
        head, start = self._plain.head, self._plain.start
        naming = head.naming or head.find_naming()
        try:
            choice = self._connection.lane.directory.choose(naming.model(request[start:]), self.key)
        except AnswerableError as error:
            self._answer(error)
            return None
        if choice.rewrites:
            self._hand_on()
            return None
        self._choice = choice
        return choice

    def _hand_on(self) -> None:
        """Have the request go the long way, as its answer is not passed on byte for byte."""
        self._over = True
        if self._share:
            self._give_back_share()
        if self._entrant is not None:
            self._entrant.give_back()  # it is let in once more there
        self._connection.hand_on(bytes(self._request))

    def _send(self, connection: UpstreamConnection, now: float) -> None:
        plain, lease = self._plain, self._lease
        assert lease is not None
        self.take(connection, lease.endpoint)
        peer, scheme = self._connection.peer
        authorization = self._pool.access.authorization
        written = plain.head.for_upstream(plain.length, lease.endpoint, peer, scheme, authorization, self._added)
        if len(self._request) < WRITTEN_AT_ONCE:
            connection.transport.write(written + self._request[plain.start :])
        else:
            connection.transport.write(written)
            connection.transport.write(memoryview(self._request)[plain.start :])
        self._sent_until_now(now)

    def _sent_until_now(self, now: float) -> None:
        """What there is of the request is on its way."""
        self.request_sent = True
        seconds = self._connection.lane.timeouts.response_seconds
        if seconds is not None:
            self._connection.watch(now + seconds)

    def _attend(self, failure: ChillError | None) -> None:
        self.identify()
        self._task = self._loop.create_task(self._attempt(failure))

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
            self._tell(self._connection.lane.counter.bug(self._plain.head.method, self.identify()))
        else:
            self._task = None
            self._send(connection, connection.loop.time())

    async def _connected(self, failure: ChillError | None) -> UpstreamConnection:
        lane = self._connection.lane
        assert self._choice is not None
        attempts = self._attempts = self._attempts or lane.attempts(self, self._choice)
        while True:
            if failure is not None:
                assert self._endpoint is not None
                self._release()
                await attempts.after(failure, self._endpoint, replayable=True)
            lease = self._lease = self._lease or await attempts.lease()
            self._endpoint = lease.endpoint
            try:
                await attempts.prepare(lease.endpoint)
                connection = None if attempts.fresh else self._pool.take(lease.endpoint)
                return connection or await self._pool.connect(lease.endpoint, lane.timeouts.connect_seconds)
            except (UpstreamRefused, UpstreamReset) as error:
                failure = error

    def began(self) -> None:
        if self._attempts is not None:
            self._attempts.answered()

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
            self._cut(failure)
        else:
            self._again(failure)

    def _again(self, failure: ChillError) -> None:
        self._heard = self.request_sent = False
        self.framing = ResponseFraming() if self.committed is None else CommittedFraming(self.committed)
        self._attend(failure)

    def abandon(self) -> None:
        """The client is gone, or its connection is being closed: neither side may take what there is for the whole."""
        if not self._over:
            self.drop()
            self._count(_CLIENT_LEFT)
            if self.sent or self.committed is not None:
                self.cut_client()

    def _end(self) -> None:
        if not self._over:
            connection, framing = self._connection, self.framing
            lane = connection.lane
            if self.aborted:
                lane.aborted()
            choice, status = self._choice, framing.status
            assert choice is not None
            if status >= FIRST_GATEWAY_ERROR or choice.suspects:
                assert self._endpoint is not None
                choice.served.controller.ejector.answered(self._endpoint, status)
            now = self._count(status)
            connection.over(now, keep_alive=framing.keep_alive and not lane.counter.draining, unread=self._missing > 0)

    def _cut(self, failure: ChillError) -> None:
        lane = self._connection.lane
        lane.cut()
        lane.counter.failed(self._plain.head.method, self.identify(), ResponseCut(failure.message))
        now = self._count(self.framing.status)
        self.end_early(failure)
        self._connection.over(now, keep_alive=False)

    def _answer(self, error: AnswerableError) -> None:
        self._connection.lane.counter.failed(self._plain.head.method, self.identify(), error)
        self._tell(error)

    def _tell(self, error: AnswerableError) -> None:
        self._task = None
        self.request_sent = False
        self._release()
        keep_alive = not self._connection.lane.counter.draining and not self.unread
        if self.committed is not None:
            self._client.write(self.committed.failure(error_envelope(error, text_of(self.identify()))))
        else:
            self._client.write(answer_bytes(error, self.identify(), keep_alive=keep_alive))
        if keep_alive and self._connection.writing_paused:
            self._connection.when_writable(partial(self._answered, error.status))
        else:
            self._answered(error.status)

    def _answered(self, status: int) -> None:
        if not self._over:
            keep_alive = not self._connection.lane.counter.draining and not self.unread
            self._connection.over(self._count(status), keep_alive=keep_alive, unread=self.unread)

    def _count(self, status: int) -> float:
        """The lease ends, and the request is counted; the time at which."""
        self._over = True
        if self._task is not None:
            self._task.cancel()
        if self._share:
            self._give_back_share()
        self._release()
        return self._connection.lane.counter.ended(self._plain.head.method, status, self._begun)

    def _give_back_share(self) -> None:
        share, self._share = self._share, 0
        self._connection.lane.directory.budget.give_back(share)

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()


class FastUpload(FastExchange):
    """A request whose body is too large to be kept: its bytes go on as they come, once.

    Until it is sent, `_request` has what has come; `_search` looks for the model's name in it, for as long as it is not
    known where the request goes.
    """

    __slots__ = ("_search",)

    _search: Search | None

    @property
    def body(self) -> bytes:
        return b""

    @property
    def held_bytes(self) -> int:
        return max(len(self._request), min(self._plain.length or 0, STREAMED_BYTES))

    def start(self, data: bytes, now: float) -> None:
        self._missing = self._plain.start + (self._plain.length or 0)
        self._request = bytearray()
        self._search = None
        largest = self._connection.lane.largest_body
        if largest is not None and (self._plain.length or 0) > largest:
            self._answer(too_large(largest))
            return
        try:
            if self._choice is None:
                choice = self._begin_search()
            else:
                choice = self._choice
                choice.served.desk.refuse_early()
        except AnswerableError as error:
            self._answer(error)
            return
        self.more(data)
        if choice is not None:
            self._go(choice)

    def _begin_search(self) -> Choice | None:
        """Where the request goes if its body does not say that; else the search begins."""
        directory, naming = self._connection.lane.directory, self._naming
        directory.refuse_early()
        self._search = naming.search()
        return directory.choose(naming.in_query, self.key) if self._search is None else None

    @property
    def _naming(self) -> Naming:
        head = self._plain.head
        return head.naming or head.find_naming()

    def _go(self, choice: Choice) -> None:
        if choice.rewrites:
            self._hand_on()
            return
        self._choice = choice
        # On a new connection: a kept one that turns out to be closed would take what cannot be sent again.
        self._attempts = self._connection.lane.attempts(self, choice)
        self._attempts.fresh = True
        self._attend(None)

    def _look_for_model(self, search: Search, data: bytes) -> None:
        """Look into what has just come, for as far as is looked at all."""
        lane = self._connection.lane
        start, here = self._plain.start, len(self._request)
        before = here - len(data)
        end = start + lane.model_bytes
        try:
            lane.directory.budget.take(len(data))
            self._share += len(data)
            search.feed(bytes(data[max(0, start - before) : max(0, end - before)]))
            if not search.over and not self._missing:
                search.end()
            if search.over:
                choice = lane.directory.choose(search.model or self._naming.in_query, self.key)
            elif here >= end:
                raise no_model_within(lane.model_bytes)
            else:
                return
        except AnswerableError as error:
            self._answer(error)
            return
        self._search = None
        self._give_back_share()
        self._go(choice)

    def more(self, data: bytes) -> None:
        if len(data) > self._missing:
            self._connection.hold_back(data[self._missing :])
            data = data[: self._missing]
        self._missing -= len(data)
        upstream = self.connection
        if upstream is None:
            self._request += data
            if self._search is not None:
                self._look_for_model(self._search, data)
            elif len(self._request) > _BEFORE_SENT_BYTES:
                self._connection.pause_reading()
        elif data:
            upstream.transport.write(data)
            self._sent_until_now(upstream.loop.time())

    def _send(self, connection: UpstreamConnection, now: float) -> None:
        super()._send(connection, now)
        if self._missing >= POURED_BYTES:
            self._connection.pour(connection.transport, self._missing)

    def _sent_until_now(self, now: float) -> None:
        self._request = b""
        upstream = self.connection
        if not self._missing:
            super()._sent_until_now(now)
            self._connection.read_on()
        elif upstream is not None and upstream.writing_paused:
            self._connection.pause_reading()
            upstream.when_writable(self._connection.read_on)
        else:
            self._connection.read_on()

    def _again(self, failure: ChillError) -> None:
        assert isinstance(failure, AnswerableError)
        assert self._attempts is not None
        assert self._endpoint is not None
        self._attempts.failed(failure, self._endpoint)
        self._answer(failure)
