"""Traces, by OpenTelemetry: where spans go, and how they are made. Imported only where tracing is on.

The rule: no request waits for a collector. Spans are handed over in a thread of their own, from a queue that is
bounded; what does not fit is dropped, and a collector that takes none is told of once in the log, until it does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer

from vllm_chill.core.target import TargetRef
from vllm_chill.telemetry.spans import WakeSpans

Protocol = Literal["http/protobuf", "grpc"]

_END_SECONDS = 5.0
"""As long as the proxy's end waits for spans to be taken."""

_CAUSE_CHARACTERS = 300
_LIBRARY = "opentelemetry"


class Tracing:
    """Makes spans, and has them exported until `aclose`."""

    def __init__(self, exporter: SpanExporter, endpoint: str, version: str) -> None:
        """`endpoint` is what the collector is called in the log."""
        self._told = _ToldOnce(exporter, endpoint)
        self._processor = BatchSpanProcessor(self._told)
        # What the environment says of the service (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) comes first.
        ours = Resource({"service.name": "vllm-chill", "service.version": version})
        said = {key: value for key, value in Resource.create().attributes.items() if not _is_unsaid(key, value)}
        provider = TracerProvider(resource=ours.merge(Resource(said)), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self.tracer: Tracer = provider.get_tracer("vllm_chill", version)

    def wakes(self, ref: TargetRef, now: Callable[[], float]) -> WakeSpans:
        """What makes the spans of a target's wakes; `now` is the clock of its phases, in seconds."""
        return WakeSpans(self.tracer, ref, now)

    async def aclose(self) -> None:
        """Have what there is exported, if that does not take too long."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call] # theirs
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(over.set)

        # A daemon, as a collector that says nothing must not keep the process from ending.
        threading.Thread(target=shut_down, name="tracing-end", daemon=True).start()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await over.wait()
        except TimeoutError:
            self._told.give_up()
        self._told.close()


def _is_unsaid(key: str, value: object) -> bool:
    return key == "service.name" and str(value).startswith("unknown_service")


def exporter_of(endpoint: str, protocol: Protocol) -> SpanExporter:
    """What speaks to the collector at this URL, set up by OTEL_EXPORTER_OTLP_* besides. Raises ImportError where what
    it takes is not installed.
    """
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp(endpoint=endpoint)


class _ToldOnce(SpanExporter):
    """An exporter of whose trouble the log is told once, and once when it is over, in place of what the libraries say
    each time.
    """

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._fails = False
        self._log = structlog.get_logger("vllm_chill.tracing")
        self._words = _Words()
        self._library = logging.getLogger(_LIBRARY)
        self._library.addHandler(self._words)
        self._before, self._library.propagate = self._library.propagate, False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._words.first = ""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._fails:
                self._fails = False
                self._log.info("traces are exported again", endpoint=self._endpoint)
        elif not self._fails:
            self._fails = True
            self._log.warning(
                "traces cannot be exported",
                endpoint=self._endpoint,
                cause=self._words.first,
                hint="requests go on; what the collector does not take is dropped",
            )
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def give_up(self) -> None:
        """Take that some spans are lost with the process."""
        if not self._fails:
            self._log.warning("traces were not exported in time, and some are lost", endpoint=self._endpoint)

    def close(self) -> None:
        """Let the libraries speak for themselves again."""
        self._library.removeHandler(self._words)
        self._library.propagate = self._before


class _Words(logging.Handler):
    """Keeps what was said first of the trouble with an export, on one line; what is said at last is that it is over."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or " ".join(record.getMessage().split())[:_CAUSE_CHARACTERS]
