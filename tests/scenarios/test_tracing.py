"""Traces of requests and wakes, exported to a collector over real sockets."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web

from tests.collector import CLIENT, INTERNAL, SERVER, Collector, collector, grpc_collector
from tests.engines import ask, ask_streamed, question
from tests.scenarios.stage import Stage, echo, stage
from tests.serving import serving
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.telemetry.tracing import Tracing, exporter_of

CHAT = "/v1/chat/completions"
SERVER_SPAN = f"POST {CHAT}"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
DEMO_ENGINE = (
    sys.executable,
    "-m",
    "vllm_chill.demo_engine",
    "--port",
    "{port}",
    "--load-seconds",
    "1.5",
    "--tokens-per-second",
    "200",
)
LOADING_ENGINE = (sys.executable, str(Path(__file__).parent / "engine_that_loads.py"), "{port}", "1.5")
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(params=[True, False], ids=["fast lane", "base"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are exported soon."""
    for name, value in SOON.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def found() -> AsyncIterator[Collector]:
    async with collector() as found:
        yield found


@asynccontextmanager
async def traced(found: Collector, **options: object) -> AsyncIterator[Stage]:
    """A proxy whose traces go there; they have when it ends."""
    endpoint = f"{found.url}/v1/traces"
    tracing = Tracing(exporter_of(endpoint, "http/protobuf"), endpoint, "1.2.3")
    try:
        async with stage(tracing=tracing, **options) as s:  # type: ignore[arg-type] # whatever a stage takes
            yield s
    finally:
        await tracing.aclose()


class TestAColdRequest:
    @pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
    async def test_its_trace_shows_the_wake_and_the_whole_stream(self, protocol: str) -> None:
        opened = grpc_collector() if protocol == "grpc" else collector()
        async with opened as found:
            flags = ("--otlp-traces-endpoint", found.url, "--idle-timeout", "5m")
            environment = {**SOON, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol, "OTEL_SERVICE_NAME": "chill-test"}
            async with serving(*flags, command=LOADING_ENGINE, environment=environment) as proxy:
                assert (await proxy.until_logged("tracing"))["protocol"] == protocol
                pieces = await ask_streamed(proxy.url, question("What holds the request?"))
                assert pieces == ["0", "1", "2", "3", "4"]
                await found.until(lambda found: bool(found.named(SERVER_SPAN)))
                assert await proxy.stop() == 0

        request = found.one(SERVER_SPAN)
        assert (request.kind, request.parent, request.failed) == (SERVER, "", False)
        assert request.resource["service.name"] == "chill-test"
        assert request.attributes["http.request.method"] == "POST"
        assert request.attributes["url.path"] == CHAT
        assert request.attributes["http.response.status_code"] == 200
        assert request.attributes["server.address"] == "127.0.0.1"
        assert request.attributes["gen_ai.request.model"] == "tiny"
        hold, upstream = found.children(request)
        assert (hold.name, hold.kind, upstream.name, upstream.kind) == ("hold", INTERNAL, "POST", CLIENT)
        assert request.start <= hold.start < hold.end <= upstream.start < upstream.end <= request.end + 0.001
        assert request.end - upstream.end < 0.05, "the whole stream, to its last byte"
        [(name, first_byte, _)] = upstream.events
        assert name == "first_byte"
        assert upstream.start < first_byte < upstream.end

        [wake] = found.children(hold)
        assert wake.name.startswith("wake process/python")
        assert wake.attributes["vllm_chill.outcome"] == "ready"
        stages = found.children(wake)
        assert {stage.name for stage in stages} >= {"starting", "loading", "first_token"}
        assert stages[-1].name == "first_token"
        assert upstream.end - first_byte > 0.15, "the pieces came one after the other"
        for one, other in pairwise(stages):
            assert other.start == pytest.approx(one.end, abs=0.001), "at every moment it is in one stage"
        assert wake.start == pytest.approx(stages[0].start, abs=0.001)
        assert wake.end == pytest.approx(first_byte, abs=0.05)
        assert [name for name in hold.event_names if name != "first_token"] == [
            stage.name for stage in stages if stage.name != "first_token"
        ]
        assert {span.trace for span in found.spans} == {request.trace}


class TestTheContextOfTheClient:
    async def test_the_engine_gets_a_child_of_what_the_client_said(self, found: Collector, fast: bool) -> None:
        async with traced(found, awake=True, fast=fast) as s:
            _, seen = await s.post(CHAT, json={"model": "m"}, headers=CONTEXT)
        request = found.one(SERVER_SPAN)
        [upstream] = found.children(request)
        said = {name.lower(): value for name, value in seen["headers"]}
        assert (request.trace, request.parent, request.state) == (TRACE, PARENT, "vendor=1")
        assert said["traceparent"] == f"00-{TRACE}-{upstream.id}-01"
        assert said["tracestate"] == "vendor=1"
        assert [name.lower() for name, _ in seen["headers"]].count("traceparent") == 1
        assert request.attributes["gen_ai.request.model"] == "m"

    async def test_what_is_not_sampled_is_not_exported_and_says_so_on(self, found: Collector, fast: bool) -> None:
        async with traced(found, awake=True, fast=fast) as s:
            unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
            _, seen = await s.post(CHAT, json={}, headers=unsampled)
            await s.post(CHAT, json={})
        said = {name.lower(): value for name, value in seen["headers"]}
        version, trace, _, flags = said["traceparent"].split("-")
        assert (version, trace, flags) == ("00", TRACE, "00")
        assert len(found.named(SERVER_SPAN)) == 1

    async def test_what_is_no_context_begins_a_trace(self, found: Collector, fast: bool) -> None:
        async with traced(found, awake=True, fast=fast) as s:
            _, seen = await s.post(CHAT, json={}, headers={"traceparent": "00-nothing-of-the-kind"})
        request = found.one(SERVER_SPAN)
        assert request.parent == ""
        [said] = [value for name, value in seen["headers"] if name.lower() == "traceparent"]
        assert said.startswith(f"00-{request.trace}-{found.children(request)[0].id}-")

    async def test_a_sampler_of_the_environment_decides(
        self, found: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        async with traced(found, awake=True) as s:
            await s.post(CHAT, json={})
            await s.post(CHAT, json={}, headers=CONTEXT)
        assert [span.trace for span in found.named(SERVER_SPAN)] == [TRACE]


class TestWhatWentWrong:
    async def test_a_failed_wake_is_on_all_spans_that_it_failed(self, found: Collector, fast: bool) -> None:
        async with traced(found, fast=fast) as s:
            s.backend.fail_start = "it does not fit"
            status, body = await s.post(CHAT, json={})
        assert status == 503
        request = found.one(SERVER_SPAN)
        [hold] = found.children(request)
        [wake] = found.children(hold)
        for span in (request, hold, wake):
            assert (span.failed, span.attributes["error.type"]) == (True, "wake_failed")
        assert "it does not fit" in wake.said
        assert request.attributes["http.response.status_code"] == 503
        assert request.attributes["vllm_chill.request_id"] == body["error"]["request_id"]

    async def test_an_attempt_that_fails_is_a_span_of_its_own(self, found: Collector, fast: bool) -> None:
        async def resets(request: web.BaseRequest) -> web.StreamResponse:
            if len(s.hits) == 1:
                assert request.transport is not None
                request.transport.abort()
            return await echo(request)

        async with traced(found, awake=True, upstream=resets, fast=fast) as s:
            status, _ = await s.post(CHAT, json={})
        assert status == 200
        request = found.one(SERVER_SPAN)
        first, second = (span for span in found.children(request) if span.kind == CLIENT)
        assert (first.failed, first.attributes["error.type"]) == (True, "upstream_reset")
        assert (second.failed, second.attributes["http.request.resend_count"]) == (False, 1)
        assert not request.failed

    async def test_an_answer_that_breaks_off_is_an_error(self, found: Collector, fast: bool) -> None:
        async def breaks_off(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.abort()
            return response

        async with traced(found, awake=True, upstream=breaks_off, fast=fast) as s:
            with pytest.raises(Exception):  # noqa: B017, PT011 - of whatever kind
                await s.post(CHAT, json={})
        request = found.one(SERVER_SPAN)
        [upstream] = found.children(request)
        assert (request.failed, upstream.failed) == (True, True)
        assert upstream.event_names == ["first_byte"]

    async def test_an_engines_error_is_one_of_the_spans(self, found: Collector, fast: bool) -> None:
        async def fails(request: web.BaseRequest) -> web.StreamResponse:
            await request.read()
            return web.json_response({}, status=400 if len(s.hits) == 1 else 500)

        async with traced(found, awake=True, upstream=fails, fast=fast) as s:
            for _ in range(2):
                await s.post(CHAT, json={})
        bad, broken = found.named(SERVER_SPAN)
        assert (bad.failed, broken.failed) == (False, True), "a server has not failed whose client has"
        assert [found.children(span)[0].failed for span in (bad, broken)] == [True, True]

    async def test_a_client_that_leaves_its_hold_ends_it(self, found: Collector, fast: bool) -> None:
        async with traced(found, start=60, fast=fast) as s:
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(0.2):
                    await s.post(CHAT, json={})
            await s.until(lambda: not s.controller.target.waiting)
        request = found.one(SERVER_SPAN)
        [hold] = found.children(request)
        assert request.attributes["vllm_chill.client_left"] is True
        assert hold.attributes["vllm_chill.client_left"] is True


class TestTheWake:
    async def test_those_who_wait_for_the_same_one_have_a_link_to_it(self, found: Collector, fast: bool) -> None:
        async with traced(found, start=0.2, fast=fast) as s:
            await asyncio.gather(*(s.post(CHAT, json={}) for _ in range(5)))
        [wake] = [span for span in found.spans if span.name.startswith("wake ")]
        holds = found.named("hold")
        assert len(holds) == 5
        assert [hold.id for hold in holds if not hold.links] == [wake.parent]
        assert {link for hold in holds for link in hold.links} == {(wake.trace, wake.id)}
        for hold in holds:
            assert "starting" in hold.event_names

    async def test_one_without_a_request_is_a_trace_of_its_own(self, found: Collector) -> None:
        async with traced(found) as s:
            status, _ = await s.post("/proxy/operations/start")
            assert status == 200
        [wake] = [span for span in found.spans if span.name.startswith("wake ")]
        assert (wake.parent, wake.attributes["vllm_chill.outcome"]) == ("", "ready")
        assert [span.name for span in found.children(wake)] == ["requested", "starting"]
        assert {span.trace for span in found.spans} == {wake.trace}

    async def test_one_that_the_end_of_the_proxy_meets_is_not_lost(self, found: Collector) -> None:
        async with traced(found, start=60) as s:
            await s.post("/proxy/operations/start?wait=false")
            await s.until(lambda: s.starts.current is not None)
            wakes = s.wakes
            assert wakes is not None
            wakes.close()
        [wake] = [span for span in found.spans if span.name.startswith("wake ")]
        assert wake.attributes["vllm_chill.outcome"] == "unknown"


async def test_what_is_no_use_of_the_model_has_no_spans(found: Collector) -> None:
    async with traced(found, awake=True) as s:
        for path in ("/health", "/proxy/status", "/v1/models", "/metrics", "/anything"):
            await s.get(path) if path == "/proxy/status" else await (await s.session.get(s.url + path)).read()
        await s.post(CHAT, json={})
    assert {span.name for span in found.spans} == {SERVER_SPAN, "POST"}


async def test_a_committed_hold_that_fails_is_an_error(found: Collector, fast: bool) -> None:
    terms = HoldOptions(10.0, beat_after_seconds=0.05, beat_seconds=0.05)
    async with traced(found, start=0.3, terms=terms, fast=fast) as s:
        s.backend.fail_start = "it does not fit"
        async with s.session.post(s.url + CHAT, json={"stream": True}) as response:
            assert response.status == 200
            told = await response.text()
            said = response.headers["X-Request-Id"]
    request = found.one(SERVER_SPAN)
    assert request.failed
    assert said in told
    assert request.attributes["vllm_chill.request_id"] == said


async def test_an_upload_has_the_same_spans(found: Collector, fast: bool) -> None:
    async with traced(found, awake=True, replay_bytes=1000, fast=fast) as s:
        status, seen = await s.post(CHAT, data=b"x" * 200_000, headers=CONTEXT)
    assert (status, seen["size"]) == (200, 200_000)
    request = found.one(SERVER_SPAN)
    [upstream] = found.children(request)
    assert dict(seen["headers"])["traceparent"] == f"00-{TRACE}-{upstream.id}-01"


class TestACollectorThatIsNotThere:
    async def test_no_request_fails_or_waits_and_the_log_says_so_once(self) -> None:
        async with collector() as gone:
            port = int(gone.url.rpartition(":")[2])
        environment = {**SOON, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "3"}
        flags = ("--otlp-traces-endpoint", gone.url)
        async with serving(*flags, command=DEMO_ENGINE, environment=environment) as proxy:
            for _ in range(20):
                await ask(proxy.url, question("Is anybody there?", model="demo", max_tokens=1))
            said = await proxy.until_logged("traces cannot be exported")
            assert said["level"] == "warning"
            assert "refused" in said["cause"]
            async with collector(port) as back:
                await ask(proxy.url, question("And now?", model="demo", max_tokens=1))
                await proxy.until_logged("traces are exported again")
                assert back.spans
            assert await proxy.stop() == 0
            events = [line["event"] for line in proxy.log]
            assert events.count("traces cannot be exported") <= 2, "once for each time that it was gone"
            assert "raw" not in {line["level"] for line in proxy.log}
            assert all(not line["logger"].startswith("opentelemetry") for line in proxy.log)
