"""An OpenTelemetry collector that keeps what it gets: OTLP over HTTP or gRPC, on a real socket, decoded by OTLP's own
messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1 import trace_pb2

SERVER, CLIENT, INTERNAL = (
    trace_pb2.Span.SPAN_KIND_SERVER,
    trace_pb2.Span.SPAN_KIND_CLIENT,
    trace_pb2.Span.SPAN_KIND_INTERNAL,
)
ERROR = trace_pb2.Status.STATUS_CODE_ERROR


@dataclass(frozen=True)
class Exported:
    """A span as it came. Ids are in hexadecimal, `parent` is empty for a root; times are in seconds."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    start: float
    end: float
    attributes: dict[str, Any]
    events: tuple[tuple[str, float, dict[str, Any]], ...]
    links: tuple[tuple[str, str], ...]
    failed: bool
    said: str
    state: str
    resource: dict[str, Any]

    @property
    def event_names(self) -> list[str]:
        return [name for name, _, _ in self.events]


@dataclass
class Collector:
    """What came, and how the next exports are answered: with an HTTP status, 200 for taken."""

    url: str = ""
    spans: list[Exported] = field(default_factory=list)
    exports: int = 0
    status: int = 200

    def named(self, name: str) -> list[Exported]:
        """The spans of this name, by their beginning."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    def one(self, name: str) -> Exported:
        [span] = self.named(name)
        return span

    def children(self, parent: Exported) -> list[Exported]:
        """The spans within this one, by their beginning."""
        return sorted(
            (span for span in self.spans if span.parent == parent.id), key=lambda span: (span.start, span.end)
        )

    async def until(self, holds: Callable[[Collector], bool], seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while not holds(self):  # noqa: ASYNC110 - exports come when they come
                await asyncio.sleep(0.01)

    def take(self, request: ExportTraceServiceRequest) -> None:
        self.exports += 1
        for of_resource in request.resource_spans:
            resource = _attributes(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [_exported(span, resource) for span in of_scope.spans]

    async def post(self, request: web.BaseRequest) -> web.StreamResponse:
        """OTLP over HTTP."""
        body = await request.read()
        if self.status != 200:
            return web.Response(status=self.status)
        assert (request.method, request.path) == ("POST", "/v1/traces")
        assert request.headers["Content-Type"] == "application/x-protobuf"
        self.take(ExportTraceServiceRequest.FromString(body))
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _exported(span: trace_pb2.Span, resource: dict[str, Any]) -> Exported:
    return Exported(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        _attributes(span.attributes),
        tuple((event.name, event.time_unix_nano / 1e9, _attributes(event.attributes)) for event in span.events),
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        span.status.code == ERROR,
        span.status.message,
        span.trace_state,
        resource,
    )


@contextlib.asynccontextmanager
async def collector(port: int = 0) -> AsyncIterator[Collector]:
    """A collector that speaks OTLP over HTTP."""
    found = Collector()
    runner = web.ServerRunner(web.Server(found.post, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        found.url = "http://{}:{}".format(*runner.addresses[0])
        yield found
    finally:
        await runner.cleanup()


class _Service(TraceServiceServicer):
    def __init__(self, found: Collector) -> None:
        self._found = found

    async def Export(  # noqa: N802 - as OTLP calls it
        self, request: ExportTraceServiceRequest, context: Any
    ) -> ExportTraceServiceResponse:
        self._found.take(request)
        return ExportTraceServiceResponse()


@contextlib.asynccontextmanager
async def grpc_collector() -> AsyncIterator[Collector]:
    """A collector that speaks OTLP over gRPC."""
    found = Collector()
    server = grpc.aio.server()
    add_TraceServiceServicer_to_server(_Service(found), server)  # type: ignore[no-untyped-call] # generated
    found.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield found
    finally:
        await server.stop(0)
