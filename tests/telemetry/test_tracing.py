"""What is told of a collector that does not take spans, and what is exported at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from vllm_chill.telemetry import tracing as module
from vllm_chill.telemetry.tracing import Tracing


class Exporter(SpanExporter):
    """One that takes spans or does not, and says so each time, as OTLP's do."""

    def __init__(self) -> None:
        self.takes = True
        self.takes_seconds = 0.0
        self.taken: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        time.sleep(self.takes_seconds)
        if not self.takes:
            logging.getLogger("opentelemetry.exporter").error("no\nroute to %s", "it")
            return SpanExportResult.FAILURE
        self.taken += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


async def exported(tracing: Tracing, *names: str) -> None:
    for name in names:
        tracing.tracer.start_span(name).end()
    await asyncio.to_thread(tracing._processor.force_flush)


async def test_a_collector_that_is_gone_is_told_of_once_and_so_is_its_return() -> None:
    exporter = Exporter()
    with capture_logs() as log:
        tracing = Tracing(exporter, "http://there", "1")
        await exported(tracing, "a")
        for there in (False, False, True, True, False):
            exporter.takes = there
            await exported(tracing, "b")
        await tracing.aclose()
    assert [line["event"] for line in log] == [
        "traces cannot be exported",
        "traces are exported again",
        "traces cannot be exported",
    ]
    assert (log[0]["endpoint"], log[0]["cause"]) == ("http://there", "no route to it")


async def test_what_does_not_fit_in_the_queue_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    exporter = Exporter()
    exporter.takes_seconds = 0.2
    with capture_logs() as log:
        tracing = Tracing(exporter, "http://there", "1")
        begun = time.monotonic()
        for number in range(1000):
            tracing.tracer.start_span(str(number)).end()
        assert time.monotonic() - begun < 5
        await tracing.aclose()
    assert 0 < len(exporter.taken) < 1000
    assert log == []


async def test_the_end_waits_for_what_there_is_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.3)
    exporter = Exporter()
    tracing = Tracing(exporter, "http://there", "1")
    tracing.tracer.start_span("last").end()
    await tracing.aclose()
    assert exporter.taken == ["last"]

    exporter.takes_seconds = 1.5
    tracing = Tracing(exporter, "http://there", "1")
    tracing.tracer.start_span("late").end()
    begun = time.monotonic()
    with capture_logs() as log:
        await tracing.aclose()
    assert time.monotonic() - begun < 1.4
    assert [line["event"] for line in log] == ["traces were not exported in time, and some are lost"]


async def test_the_libraries_speak_for_themselves_again_once_it_is_over() -> None:
    library = logging.getLogger("opentelemetry")
    before = list(library.handlers), library.propagate
    tracing = Tracing(Exporter(), "http://there", "1")
    assert not library.propagate
    await tracing.aclose()
    assert (list(library.handlers), library.propagate) == before


@pytest.mark.parametrize(
    ("environment", "name"),
    [({}, "vllm-chill"), ({"OTEL_SERVICE_NAME": "a"}, "a"), ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=b"}, "b")],
    ids=["nobody", "its variable", "an attribute"],
)
async def test_the_service_is_called_as_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    tracing = Tracing(Exporter(), "http://there", "1.2")
    span = tracing.tracer.start_span("a")
    assert isinstance(span, ReadableSpan)
    assert span.resource.attributes["service.name"] == name
    assert span.resource.attributes["service.version"] == "1.2"
    await tracing.aclose()
