"""Requests with spans: what the handler and the fast lane are where there is tracing. Imported only there.

The rule: a request takes the way that it takes without. Its spans are told of the turns that it comes to: a hold, an
attempt, the first byte, the end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import hdrs, web
from opentelemetry.trace import Tracer

from vllm_chill.control.lease import Lease
from vllm_chill.core.naming import naming_of
from vllm_chill.core.routing import Routes
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import AnswerableError, ChillError
from vllm_chill.proxy.aiohttp_seam import Relayed, message_of, peer_of
from vllm_chill.proxy.attempts import Attempts
from vllm_chill.proxy.door import Refusal
from vllm_chill.proxy.fast_exchange import Connection, Counter, FastExchange, FastLane, FastUpload
from vllm_chill.proxy.fast_grammar import KnownHeads, PlainRequest
from vllm_chill.proxy.handler import ProxyHandler, SlowCaller
from vllm_chill.proxy.hold import Caller
from vllm_chill.proxy.relay import ADDED, Added, added_to
from vllm_chill.proxy.request_id import id_of, text_of
from vllm_chill.proxy.served import Choice
from vllm_chill.proxy.upstream import UpstreamConnection
from vllm_chill.telemetry.spans import RequestSpans

_CONTEXT = frozenset({b"traceparent", b"tracestate"})
_CONTEXT_FIELDS = re.compile(rb"\r\n(?:traceparent|tracestate):[^\r\n]*", re.IGNORECASE)
_CLIENT_LEFT, _BUG = 499, 500

SPANS: web.RequestKey[RequestSpans] = web.RequestKey("vllm_chill.spans", RequestSpans)
"""Where a request of aiohttp's server has its spans."""


class Requests:
    """Begins the spans of requests: for each its target (the path with the query), its id, the client's address and
    scheme, and its fields.
    """

    def __init__(self, tracer: Tracer, routes: Routes) -> None:
        self._tracer = tracer
        self._routes = routes

    def begin(
        self, method: str, target: str, request_id: bytes, peer: tuple[str, str], field: Callable[[str], str | None]
    ) -> RequestSpans:
        """The spans of a request that begins now."""
        path = target.partition("?")[0]
        spans = RequestSpans.begun(self._tracer, method, path, self._routes.wake_path(path), field)
        if spans.recording:
            address, scheme = peer
            host, _, port = (field(hdrs.HOST) or "").rpartition(":")
            if not port.isdigit():
                host, port = field(hdrs.HOST) or "", ""
            spans.tell(
                {
                    "vllm_chill.request_id": text_of(request_id),
                    "url.scheme": scheme,
                    "client.address": address or None,
                    "server.address": host or None,
                    "server.port": int(port) if port else None,
                    "user_agent.original": field(hdrs.USER_AGENT),
                }
            )
        return spans


def _tell_where(spans: RequestSpans, caller: Caller, choice: Choice, target: str) -> None:
    """Say where a request goes, and which model it names, as far as its body is here."""
    if not spans.recording:
        return
    model = None
    try:
        naming = naming_of(target, caller.field(hdrs.CONTENT_TYPE), caller.field(hdrs.CONTENT_ENCODING))
        model = naming.model(caller.body)
    except AnswerableError:
        pass  # the engine says what is wrong with it
    if model is None and choice.served.entry is not None:
        model = choice.served.entry.served
    spans.tell({"vllm_chill.target": str(choice.served.controller.target.ref), "gen_ai.request.model": model})


class TracedAttempts(Attempts):
    """The attempts of a request that has spans; `asked` is told what each says to the engine of its trace."""

    __slots__ = ("_asked", "_spans", "_wakes")

    def __init__(self, spans: RequestSpans, asked: Callable[[bytes], None], choice: Choice, *rest: Any) -> None:
        super().__init__(choice, *rest)
        self._spans = spans
        self._asked = asked
        self._wakes = choice.served.wakes

    async def _hold(self, *, again: bool) -> Lease:
        with self._spans.hold(self._wakes):
            return await super()._hold(again=again)

    async def prepare(self, endpoint: Endpoint) -> None:
        await super().prepare(endpoint)
        self._asked(self._spans.ask(endpoint))

    def answered(self) -> None:
        self._spans.answered()
        super().answered()

    def failed(self, failure: ChillError, lost: Endpoint) -> None:
        self._spans.lost(failure)
        super().failed(failure, lost)


class TracedHandler(ProxyHandler):
    """Proxies requests, with their spans."""

    def __init__(self, requests: Requests, *handling: Any) -> None:
        """`handling` is what ProxyHandler takes."""
        super().__init__(*handling)
        self._requests = requests

    def fast_lane(self, counter: Counter) -> FastLane:
        return replace(
            super().fast_lane(counter),
            exchange=partial(TracedExchange, self._requests),
            upload=partial(TracedUpload, self._requests),
            heads=KnownHeads(_CONTEXT_FIELDS),
        )

    async def proxy(self, request: web.BaseRequest) -> web.StreamResponse:
        target, field = message_of(request).path, request.headers.get
        spans = self._requests.begin(request.method, target, id_of(request), peer_of(request.protocol), field)
        request[SPANS] = spans
        status = _CLIENT_LEFT
        try:
            response = await super().proxy(request)
            status = response.status
            if isinstance(response, Relayed):
                spans.failure = response.failure
        except AnswerableError as error:
            status, spans.failure = error.status, error
            raise
        except Refusal as refusal:
            status, spans.failure = refusal.error.status, refusal.error
            raise
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            status = _BUG
            raise
        finally:
            spans.ended(status)
        return response

    def _attempts(self, caller: Caller, choice: Choice) -> Attempts:
        rest = (choice, self._adapters, self._metrics, self._options, caller)
        if isinstance(caller, TracedExchange):
            assert caller.spans is not None
            caller.tell_where(choice)
            return TracedAttempts(caller.spans, caller.asked, *rest)
        assert isinstance(caller, SlowCaller)
        request, before = caller.request, added_to(caller.request)
        spans = request[SPANS]

        def asked(said: bytes) -> None:
            _tell_where(spans, caller, choice, message_of(request).path)
            request[ADDED] = Added(before.fields + said, before.in_place_of | _CONTEXT)

        return TracedAttempts(spans, asked, *rest)


class TracedExchange(FastExchange):
    """A request on the fast lane that has spans: from `start` on, until it is over or goes another way."""

    def __init__(self, requests: Requests, connection: Connection, request: PlainRequest, begun: float) -> None:
        super().__init__(connection, request, begun)
        self.spans: RequestSpans | None = None
        self._requests = requests
        self._is_told = False

    def start(self, data: bytes, now: float) -> None:
        head, peer = self._plain.head, self._connection.peer
        self.spans = self._requests.begin(head.method, head.target.decode("ascii"), self.identify(), peer, head.field)
        super().start(data, now)

    def tell_where(self, choice: Choice) -> None:
        """Say where it goes."""
        if not self._is_told:
            self._is_told = True
            assert self.spans is not None
            _tell_where(self.spans, self, choice, self._plain.head.target.decode("ascii"))

    def asked(self, said: bytes) -> None:
        """Take what the next attempt says of its trace."""
        self._added = said if self._plain.head.request_id else self.identify() + said

    def _send(self, connection: UpstreamConnection, now: float) -> None:
        spans = self.spans
        assert spans is not None
        if not spans.is_asking:
            assert self._lease is not None
            assert self._choice is not None
            self.tell_where(self._choice)
            self.asked(spans.ask(self._lease.endpoint))
        super()._send(connection, now)

    def began(self) -> None:
        if self.spans is not None:
            self.spans.answered()
        super().began()

    def _hand_on(self) -> None:
        self.spans = None  # it begins once more there
        super()._hand_on()

    def _cut(self, failure: ChillError) -> None:
        self._failed(failure)
        super()._cut(failure)

    def _tell(self, error: AnswerableError) -> None:
        self._failed(error)
        super()._tell(error)

    def _failed(self, failure: ChillError) -> None:
        if self.spans is not None:
            self.spans.failure = failure

    def _count(self, status: int) -> float:
        spans, self.spans = self.spans, None
        if spans is not None:
            spans.ended(status)
        return super()._count(status)


class TracedUpload(TracedExchange, FastUpload):
    """The same, whose body is streamed."""
