"""The spans of one request, and of a target's wakes. Imported only where tracing is on.

A request's span has two children: `hold`, if it had to wait, and one for each attempt at an engine. A wake is a child
of the hold that it began in, or a trace of its own, and has one child for each stage that took time; other holds that
wait for it have a link to it. The names are those of OpenTelemetry's conventions for HTTP, where these have one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vllm_chill.core.cold_start import STAGE_NAMES, ColdStart, Outcome
from vllm_chill.core.starts import Starts
from vllm_chill.core.target import Endpoint, Stage, TargetRef
from vllm_chill.errors import AnswerableError, ChillError

_NO_CONTEXT = Context()
_W3C = TraceContextTextMapPropagator()
_CLIENT_LEFT = 499
_FIRST_ERROR, _FIRST_SERVER_ERROR = 400, 500


def context_of(field: Callable[[str], str | None]) -> Context:
    """The trace that a request belongs to, by its fields; none if it says none."""
    parent = field("traceparent")
    if parent is None:
        return _NO_CONTEXT
    carrier = {"traceparent": parent}
    if (state := field("tracestate")) is not None:
        carrier["tracestate"] = state
    return _W3C.extract(carrier, _NO_CONTEXT)


class RequestSpans:
    """The spans of one request, until `ended`. `recording` says whether anybody will see them."""

    __slots__ = (
        "_answered",
        "_attempt",
        "_attempts",
        "_context",
        "_method",
        "_span",
        "_tracer",
        "failure",
        "recording",
    )

    def __init__(self, tracer: Tracer, span: Span, method: str) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        self._context = set_span_in_context(span, _NO_CONTEXT)
        self._attempt: Span | None = None
        self._attempts = 0
        self._answered = False
        self.failure: ChillError | None = None
        """What the request came to, where that is not the engine's answer."""
        self.recording = span.is_recording()

    @classmethod
    def begun(
        cls, tracer: Tracer, method: str, path: str, route: str | None, field: Callable[[str], str | None]
    ) -> RequestSpans:
        """Those of a request to this path, which goes by `route` among the known ones; `field` has its fields."""
        name = method if route is None else f"{method} {route}"
        at_first = {"http.request.method": method, "url.path": path}
        return cls(tracer, tracer.start_span(name, context_of(field), SpanKind.SERVER, at_first), method)

    def tell(self, said: Mapping[str, str | int | None]) -> None:
        """Say of the request what is known, by the attributes' names; what is None is not."""
        self._span.set_attributes({name: value for name, value in said.items() if value is not None})

    @contextmanager
    def hold(self, wakes: WakeSpans | None) -> Iterator[None]:
        """While the request is held, for the wakes of this target."""
        span = self._tracer.start_span("hold", self._context)
        held = _Hold(span, set_span_in_context(span, self._context))
        if wakes is not None:
            wakes.joined(held)
        try:
            yield
        except asyncio.CancelledError:
            span.set_attribute("vllm_chill.client_left", True)
            raise
        except ChillError as error:
            _fail(span, error)
            raise
        finally:
            if wakes is not None:
                wakes.left(held)
            span.end()

    @property
    def is_asking(self) -> bool:
        """Whether an attempt is under way."""
        return self._attempt is not None

    def ask(self, endpoint: Endpoint) -> bytes:
        """Begin an attempt at this endpoint; the fields for it, each with its line end, that say which it is."""
        span = self._span  # which stands for its attempts where nobody will see them
        if self.recording:
            said: dict[str, str | int] = {
                "http.request.method": self._method,
                "server.address": endpoint.host,
                "server.port": endpoint.port,
            }
            if self._attempts:
                said["http.request.resend_count"] = self._attempts
            span = self._tracer.start_span(self._method, self._context, SpanKind.CLIENT, said)
        self._attempt = span
        self._attempts += 1
        context = span.get_span_context()
        if not context.is_valid:
            return b""
        fields = f"traceparent: 00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}\r\n"
        if context.trace_state:
            fields += f"tracestate: {context.trace_state.to_header()}\r\n"
        return fields.encode("ascii", "ignore")

    def answered(self) -> None:
        """The first byte of the engine's answer is here."""
        if self.recording and self._attempt is not None and not self._answered:
            self._answered = True
            self._attempt.add_event("first_byte")

    def lost(self, failure: ChillError) -> None:
        """The attempt has failed; there may be another one."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            _fail(attempt, failure)
            attempt.end()

    def ended(self, status: int) -> None:
        """The last byte is on its way, after this status; or the client has left (499)."""
        span, attempt, failure = self._span, self._attempt, self.failure
        if self.recording:
            if status == _CLIENT_LEFT:
                span.set_attribute("vllm_chill.client_left", True)
            span.set_attribute("http.response.status_code", status)
            if failure is not None:
                _fail(span, failure, of_server=True)
            elif status >= _FIRST_SERVER_ERROR:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)
            if attempt is not None:
                if failure is not None:
                    _fail(attempt, failure)
                elif self._answered:
                    attempt.set_attribute("http.response.status_code", status)
                    if status >= _FIRST_ERROR and status != _CLIENT_LEFT:
                        attempt.set_attribute("error.type", str(status))
                        attempt.set_status(StatusCode.ERROR)
        if attempt is not None:
            attempt.end()
        span.end()


def _fail(span: Span, failure: ChillError, *, of_server: bool = False) -> None:
    """Say on a span what went wrong; of a server's span, what is its client's fault is no error."""
    told = failure if isinstance(failure, AnswerableError) else None
    span.set_attribute("error.type", type(failure).__name__ if told is None else told.code)
    if not of_server or told is None or told.status >= _FIRST_SERVER_ERROR:
        span.set_status(StatusCode.ERROR, failure.message)


class _Hold:
    """One request's hold."""

    __slots__ = ("context", "span")

    def __init__(self, span: Span, context: Context) -> None:
        self.span = span
        self.context = context

    def sees(self, start: ColdStart) -> None:
        """Say how far the start is that it waits for."""
        self.span.add_event(STAGE_NAMES[start.stage], {"detail": start.detail} if start.detail else None)


class WakeSpans:
    """The wakes of one target as spans, and who waits for them. At most one wake is under way."""

    def __init__(self, tracer: Tracer, ref: TargetRef, now: Callable[[], float]) -> None:
        """`now` is the clock of the target's phases, in seconds."""
        self._tracer = tracer
        self._target = str(ref)
        self._now = now
        self._holds: dict[_Hold, None] = {}  # in the order in which they came
        self._wake: Span | None = None
        self._start: ColdStart | None = None
        self._context = _NO_CONTEXT
        self._zero = 0  # when the clock was at zero, in Unix time; one for all of a wake, so that its stages meet

    def joined(self, hold: _Hold) -> None:
        """Take that a request is held."""
        self._holds[hold] = None
        if self._wake is not None and self._start is not None:
            hold.span.add_link(self._wake.get_span_context())
            hold.sees(self._start)

    def left(self, hold: _Hold) -> None:
        """Take that it no longer is."""
        self._holds.pop(hold, None)

    def changed(self, before: Starts, after: Starts) -> None:
        """Take what the starts have come to: StartRecord.on_change."""
        was, start = before.current, after.current
        self._start = start
        if was is not None:
            if start is not None and start.began == was.began:
                self._moved(was, start)
            elif after.last is not None and after.last.began == was.began:
                self._moved(was, after.last)
                self._over(after.last)
        if start is not None and (was is None or start.began != was.began):
            self._begin(start)

    def close(self) -> None:
        """End what is under way, as the proxy ends."""
        if self._wake is not None:
            self._wake.set_attribute("vllm_chill.outcome", "unknown")
            self._wake.end()
            self._wake = None

    def _begin(self, start: ColdStart) -> None:
        self.close()
        self._zero = time.time_ns() - round(self._now() * 1e9)
        cause = next((hold for hold in self._holds if hold.span.is_recording()), None)
        wake = self._wake = self._tracer.start_span(
            f"wake {self._target}",
            _NO_CONTEXT if cause is None else cause.context,
            attributes={"vllm_chill.target": self._target, "vllm_chill.waiting": len(self._holds)},
            start_time=self._at(start.began),
        )
        self._context = set_span_in_context(wake, _NO_CONTEXT)
        for hold in self._holds:
            if hold is not cause:
                hold.span.add_link(wake.get_span_context())
            hold.sees(start)

    def _moved(self, was: ColdStart, start: ColdStart) -> None:
        """It is in another stage than it was, or the same."""
        if start.stage is not was.stage:
            self._spent(was.stage, was.detail, was.since, start.since)
            if start.ended is None:
                for hold in self._holds:
                    hold.sees(start)

    def _over(self, start: ColdStart) -> None:
        wake, self._wake = self._wake, None
        assert start.ended is not None
        assert start.outcome is not None
        self._spent(start.stage, start.detail, start.since, start.ended)
        if wake is None:
            return
        wake.set_attribute("vllm_chill.outcome", start.outcome.value)
        if start.outcome is Outcome.FAILED:
            wake.set_attribute("error.type", "wake_failed")
            wake.set_status(StatusCode.ERROR, start.cause)
        wake.end(self._at(start.ended))

    def _spent(self, stage: Stage, detail: str, since: float, until: float) -> None:
        """A stage that is over, if it took time."""
        if until > since:
            said = {"detail": detail} if detail else None
            start_time, name = self._at(since), STAGE_NAMES[stage]
            self._tracer.start_span(name, self._context, attributes=said, start_time=start_time).end(self._at(until))

    def _at(self, seconds: float) -> int:
        return self._zero + round(seconds * 1e9)
