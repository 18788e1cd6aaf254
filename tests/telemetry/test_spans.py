"""The spans of a wake are its stages, as the record of the start has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext
from prometheus_client import CollectorRegistry

from vllm_chill.core.cold_start import STAGE_NAMES
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Endpoint,
    Failed,
    Observation,
    Progress,
    Ready,
    SleepReason,
    Stage,
    Target,
    TargetRef,
    Waking,
)
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.spans import RequestSpans, WakeSpans
from vllm_chill.telemetry.start_record import StartRecord

REF = TargetRef("ai-apps", "vllm")
ASLEEP = Target(REF, Asleep(0), observed=Observation(0, 0))
WAKING = Target(REF, Waking(0, confirmed=False), waiting=1, observed=Observation(0, 0))
BEFORE_READY = [stage for stage in Stage if stage is not Stage.ANSWERING]


class Traces:
    """What is exported of the wakes of a target, and of requests."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.now = 0.0
        self.record = StartRecord(REF, Metrics(CollectorRegistry(), "1"))
        self.wakes = WakeSpans(self.tracer, REF, lambda: self.now)
        self.record.on_change = self.wakes.changed

    def begins(self) -> None:
        self.record.changed(ASLEEP, WAKING, self.now)

    def comes_to(self, stage: Stage, detail: str = "") -> None:
        self.record.progressed(self.at(stage, detail), self.now)

    def at(self, stage: Stage, detail: str = "") -> Target:
        seen = Observation(1, 1, progress=Progress(stage, detail))
        return Target(REF, Waking(0, confirmed=True), waiting=1, observed=seen)

    def is_ready(self, *, waiting: int = 1) -> None:
        ready = Target(REF, Ready(self.now, self.now), waiting=waiting, observed=Observation(1, 1))
        self.record.changed(WAKING, ready, self.now)

    def request(self, **fields: str) -> RequestSpans:
        return RequestSpans.begun(self.tracer, "POST", "/v1/x", None, fields.get)

    @property
    def wake(self) -> ReadableSpan:
        [wake] = [span for span in self.exporter.get_finished_spans() if span.name == f"wake {REF}"]
        return wake

    @property
    def stages(self) -> Sequence[ReadableSpan]:
        found = [
            s for s in self.exporter.get_finished_spans() if s.parent is not None and s.parent == self.wake.context
        ]
        return sorted(found, key=lambda span: span.start_time or 0)


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


async def test_each_stage_that_took_time_is_a_span_with_its_detail() -> None:
    traces = Traces()
    with traces.request().hold(traces.wakes):
        traces.begins()
        for stage, detail, lasts in (
            (Stage.SCHEDULING, "3 Insufficient nvidia.com/gpu", 9.0),
            (Stage.PULLING, "", 30.0),
            (Stage.LOADING, "", 20.0),
        ):
            traces.now += 1
            traces.comes_to(stage, detail)
            traces.now += lasts - 1
        traces.is_ready()
    traces.now += 0.25
    traces.record.answered(traces.now)
    found = {stage.name: (round(seconds(stage), 2), dict(stage.attributes or {})) for stage in traces.stages}
    assert found == {
        "requested": (1, {}),
        "scheduling": (9, {"detail": "3 Insufficient nvidia.com/gpu"}),
        "pulling": (30, {}),
        "loading": (19, {}),
        "first_token": (0.25, {}),
    }
    assert round(seconds(traces.wake), 2) == 59.25
    assert (traces.wake.attributes or {})["vllm_chill.outcome"] == "ready"
    [hold] = [span for span in traces.exporter.get_finished_spans() if span.name == "hold"]
    assert traces.wake.parent == hold.context
    assert [event.name for event in hold.events] == ["requested", "scheduling", "pulling", "loading", "first_token"]


@given(st.lists(st.tuples(st.sampled_from(BEFORE_READY), st.floats(0, 100, width=16)), max_size=12), st.booleans())
def test_the_stages_add_up_to_the_wake_whatever_they_are(told: list[tuple[Stage, float]], fails: bool) -> None:
    async def check() -> None:
        traces = Traces()
        traces.begins()
        for stage, lasts in told:
            traces.comes_to(stage)
            traces.now += lasts
        if fails:
            traces.record.changed(
                WAKING, Target(REF, Failed(traces.now, "no", 0, confirmed=True), waiting=1), traces.now
            )
        else:
            traces.is_ready()
            traces.now += 1
            traces.record.answered(traces.now)
        last = traces.record.last
        assert last is not None
        assert last.ended is not None
        spent: dict[str, float] = {}
        for stage_span in traces.stages:
            spent[stage_span.name] = spent.get(stage_span.name, 0) + seconds(stage_span)
        expected = {STAGE_NAMES[stage]: took for stage, took in last.seconds(last.ended).items()}
        assert spent == pytest.approx(expected, abs=1e-3)
        assert seconds(traces.wake) == pytest.approx(last.elapsed(last.ended), abs=1e-3)
        for one, other in pairwise(traces.stages):
            assert (other.start_time or 0) / 1e9 == pytest.approx((one.end_time or 0) / 1e9, abs=1e-3)

    asyncio.run(check())


async def test_one_that_is_stopped_and_one_that_nobody_is_answered_by_are_over() -> None:
    traces = Traces()
    traces.begins()
    traces.now += 5
    traces.record.changed(WAKING, Target(REF, Draining(5, SleepReason.STOPPED, confirmed=True)), traces.now)
    assert (traces.wake.attributes or {})["vllm_chill.outcome"] == "stopped"
    traces.exporter.clear()
    traces.begins()
    traces.now += 5
    traces.is_ready(waiting=0)
    assert (traces.wake.attributes or {})["vllm_chill.outcome"] == "ready"
    assert round(seconds(traces.wake), 2) == 5


async def test_a_wake_belongs_to_a_hold_that_somebody_will_see() -> None:
    traces = Traces()
    unseen = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    with traces.request(traceparent=unseen).hold(traces.wakes), traces.request().hold(traces.wakes):
        traces.begins()
        traces.wakes.close()
    [hold] = [span for span in traces.exporter.get_finished_spans() if span.name == "hold"]
    assert traces.wake.parent == hold.context


async def test_an_attempt_that_nobody_will_see_makes_no_span_and_says_so_on() -> None:
    traces = Traces()
    spans = traces.request(traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", tracestate="a=b")
    said = spans.ask(Endpoint("10.0.0.1", 8000)).decode()
    assert said.startswith("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-")
    assert said.endswith("-00\r\ntracestate: a=b\r\n")
    assert spans.is_asking
    spans.ended(200)
    assert traces.exporter.get_finished_spans() == ()


def test_what_is_no_trace_at_all_says_nothing() -> None:
    traces_tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    spans = RequestSpans(traces_tracer, NonRecordingSpan(SpanContext(0, 0, is_remote=False)), "POST")
    assert spans.ask(Endpoint("10.0.0.1", 8000)) == b""
