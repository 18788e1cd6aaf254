"""What a caller sees, one sentence a test, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import aiohttp
import pytest
from aiohttp import web

from tests.scenarios.stage import FAST_LANE, echo, envelope, stage
from vllm_chill.core.target import Asleep, Endpoint, Failed, Observation, Ready, Waking
from vllm_chill.errors import BackendRefused, BackendUnavailable

CHAT = "/v1/chat/completions"
FILES = "/v1/audio/transcriptions"


@pytest.fixture(autouse=True, params=[True, False], ids=["fast lane", "base"])
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything passes both ways."""
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


async def stream_slowly(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(20):
        await response.write(b"data: %d\n\n" % number)
        await asyncio.sleep(0.05)
    await response.write(b"data: [DONE]\n\n")
    return response


def forward_to(endpoint: Endpoint) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server that answers a connection's first request as the endpoint does, and closes."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection(endpoint.host, endpoint.port)
        upstream.write(await reader.read(65536))
        writer.write(await upstream_reader.read(65536))
        for each in (writer, upstream):
            each.close()
            await each.wait_closed()

    return forward


def hang_up(transport: asyncio.BaseTransport | None) -> None:
    assert isinstance(transport, asyncio.Transport)
    transport.abort()


class TestHolding:
    async def test_five_hundred_callers_at_zero_cause_one_scale_write_and_all_are_answered(self) -> None:
        async with stage(start=0.3) as s:
            answers = await asyncio.gather(*(s.post(CHAT, json={"n": n}) for n in range(500)))
            assert {status for status, _ in answers} == {200}
            assert [body["body"] for _, body in answers] == [f'{{"n": {n}}}' for n in range(500)]
            assert s.backend.writes == [1]
            assert (
                s.metric("vllm_chill_scale_operations_total", target="test/vllm", direction="up", outcome="success")
                == 1
            )
            assert s.metric("vllm_chill_hold_duration_seconds_count", target="test/vllm") == 500

    async def test_a_failed_wake_fails_all_of_them_with_its_reason(self) -> None:
        async with stage() as s:
            s.backend.fail_start = "CUDA out of memory"
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(s.post(CHAT, json={})) for _ in range(50)]
            for task in asked:
                status, body = task.result()
                assert status == 503
                assert "CUDA out of memory" in body["error"]["message"]

    async def test_a_caller_that_leaves_abandons_only_its_own_wait(self) -> None:
        async with stage(start=0.3) as s:
            stays = asyncio.create_task(s.post(CHAT, json={}))
            with pytest.raises(TimeoutError):
                await s.post(CHAT, json={}, timeout=aiohttp.ClientTimeout(total=0.1))
            await s.until(lambda: s.controller.target.waiting == 1)
            assert (await stays)[0] == 200
            await s.until(lambda: s.controller.target.in_flight == 0)
            assert s.metric("vllm_chill_requests_total", method="POST", route="proxied", status="499") == 1

    async def test_when_all_callers_have_left_the_wake_goes_on(self) -> None:
        async with stage(start=0.2) as s:
            with pytest.raises(TimeoutError):
                await s.get(CHAT, timeout=aiohttp.ClientTimeout(total=0.05))
            await s.until(lambda: s.phase_is(Ready))

    async def test_a_hold_that_expires_is_answered_with_retry_after_and_openais_envelope(self) -> None:
        async with stage(start=60, hold=0.1) as s, s.session.post(s.url + CHAT, json={}) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert response.content_type == "application/json"
            error = envelope(await response.read())
            assert error["code"] == "model_waking"
            assert "retry" in error["message"]
            assert s.phase_is(Waking)

    async def test_a_backend_that_says_no_is_told_to_the_caller(self) -> None:
        async with stage() as s:
            s.backend.fail_next = [BackendRefused("no right to scale")]
            status, body = await s.post(CHAT, json={})
            assert status == 503
            assert "no right to scale" in body["error"]["message"]

    async def test_a_backend_that_is_away_for_a_moment_is_not_noticed(self) -> None:
        async with stage() as s:
            s.backend.fail_next = [BackendUnavailable("connection refused")]
            assert (await s.post(CHAT, json={}))[0] == 200

    async def test_a_warm_request_waits_for_nothing(self) -> None:
        async with stage(awake=True) as s:
            assert (await s.post(CHAT, json={}))[0] == 200
            assert s.metric("vllm_chill_hold_duration_seconds_count", target="test/vllm") == 0
            assert s.backend.writes == []


class TestIdleness:
    async def test_a_stream_longer_than_the_idle_timeout_is_never_cut(self) -> None:
        async with stage(stream_slowly, awake=True, idle=0.2) as s:
            async with s.session.post(s.url + CHAT) as response:
                text = await response.text()
            assert text.endswith("data: [DONE]\n\n")
            assert s.backend.writes == []
            await s.until(lambda: s.phase_is(Asleep))

    async def test_asleep_again_it_is_woken_again(self) -> None:
        async with stage(idle=0.1) as s:
            for _ in range(3):
                assert (await s.post(CHAT, json={}))[0] == 200
                await s.until(lambda: s.phase_is(Asleep))
            assert s.backend.writes == [1, 0] * 3

    async def test_a_request_while_it_is_put_to_sleep_is_answered(self) -> None:
        async with stage(awake=True, idle=0.05, stop=0.2) as s:
            await s.until(lambda: s.backend.writes == [0])
            assert (await s.post(CHAT, json={}))[0] == 200

    async def test_traffic_at_the_pace_of_the_idle_timeout_loses_nothing(self) -> None:
        async with stage(idle=0.03, start=0.01, stop=0.01) as s:
            for n in range(40):
                assert (await s.post(CHAT, json={}))[0] == 200
                await asyncio.sleep(0.025 + n % 10 * 0.001)


class TestUpstreamTrouble:
    async def test_refused_is_502(self) -> None:
        async with stage(awake=True) as s:
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                s.backend.endpoint = type(s.backend.endpoint)("127.0.0.1", unused.getsockname()[1])
                s.backend.ready()
                status, body = await s.post(CHAT, json={})
            assert status == 502
            assert body["error"]["code"] == "upstream_refused"

    async def test_a_service_that_knows_of_a_ready_pod_later_than_the_proxy_costs_no_request(self) -> None:
        async with stage(start=0.1) as s, stage() as other:
            with socket.socket() as later:
                later.bind(("127.0.0.1", 0))
                s.backend.endpoint = type(s.backend.endpoint)(*later.getsockname())
                asked = [asyncio.create_task(s.post(CHAT, json={"n": n})) for n in range(20)]
                await s.until(lambda: s.phase_is(Ready))
                await asyncio.sleep(0.3)
                assert not any(task.done() for task in asked)
                later.listen()
                server = await asyncio.start_server(forward_to(other.backend.endpoint), sock=later)
                assert [(await task)[0] for task in asked] == [200] * 20
                server.close()
            assert s.metric("vllm_chill_replays_total") == 0

    async def test_reset_before_the_head_is_502_after_one_replay(self) -> None:
        async def resets(request: web.BaseRequest) -> web.StreamResponse:
            hang_up(request.transport)
            return web.Response()

        async with stage(resets, awake=True) as s:
            status, body = await s.post(CHAT, json={})
            assert status == 502
            assert body["error"]["code"] == "upstream_reset"
            assert len(s.hits) == 2
            assert s.metric("vllm_chill_replays_total") == 1

    async def test_silence_is_504(self) -> None:
        async def silent(request: web.BaseRequest) -> web.StreamResponse:
            await asyncio.sleep(5)
            return web.Response()

        async with stage(silent, awake=True, response=0.1) as s:
            status, body = await s.post(CHAT, json={})
            assert status == 504
            assert body["error"]["code"] == "upstream_silent"
            assert len(s.hits) == 1

    async def test_scaled_down_under_a_request_it_is_held_again_and_replayed_once(self) -> None:
        async with stage(awake=True, start=0.1) as s:
            first = True

            async def dies_once(request: web.BaseRequest) -> web.StreamResponse:
                nonlocal first
                if first:
                    first = False
                    hang_up(request.transport)
                    asyncio.get_running_loop().call_later(0.05, s.backend.set_replicas, 0)
                return await echo(request)

            async with stage(dies_once) as other:
                s.backend.endpoint = other.backend.endpoint
                s.backend.ready()
                status, body = await s.post(CHAT, data=b"a body that must arrive whole")
            assert status == 200
            assert body["body"] == "a body that must arrive whole"
            assert s.backend.writes == [1]
            assert s.metric("vllm_chill_replays_total") == 1

    async def test_a_body_larger_than_is_kept_streams_and_is_not_replayed(self) -> None:
        async def resets(request: web.BaseRequest) -> web.StreamResponse:
            await request.content.readexactly(200_000)
            hang_up(request.transport)
            return web.Response()

        async with stage(resets, awake=True, replay_bytes=100_000) as s:
            status, _ = await s.post(CHAT, data=b"x" * 300_000)
            assert status == 502
            assert len(s.hits) == 1

    @pytest.mark.parametrize("kind", ["text/plain", "text/event-stream"])
    async def test_after_the_first_byte_never_and_the_caller_cannot_take_it_for_the_whole(self, kind: str) -> None:
        async def dies_within(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": kind})
            await response.prepare(request)
            await response.write(b"data: 0\n\n")
            await asyncio.sleep(0.05)
            hang_up(request.transport)
            return response

        async with stage(dies_within, awake=True) as s:
            async with s.session.post(s.url + CHAT, json={}) as response:
                assert response.status == 200
                if kind == "text/plain":
                    with pytest.raises(aiohttp.ClientError):
                        await response.read()
                else:
                    first, error, done = (await response.read()).decode().split("data: ")[1:]
                    assert first.startswith("0\n\n")
                    assert json.loads(error)["error"]["code"] == "upstream_reset"
                    assert done == "[DONE]\n\n"
            assert len(s.hits) == 1
            await s.until(lambda: s.metric("vllm_chill_responses_cut_total") == 1)
            assert s.controller.target.in_flight == 0

    async def test_errors_of_the_upstream_pass_untouched(self) -> None:
        async def not_found(request: web.BaseRequest) -> web.StreamResponse:
            return web.json_response({"error": {"message": "no such model"}}, status=404, headers={"X-Why": "vllm"})

        async with stage(not_found, awake=True) as s, s.session.post(s.url + CHAT, json={}) as response:
            assert response.status == 404
            assert response.headers["X-Why"] == "vllm"
            assert await response.json() == {"error": {"message": "no such model"}}

    async def test_a_client_that_leaves_a_stream_frees_the_upstream(self) -> None:
        left = asyncio.Event()

        async def endless(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(b"x")
                    await asyncio.sleep(0.01)
            finally:
                left.set()

        async with stage(endless, awake=True) as s:
            response = await s.session.post(s.url + CHAT)
            await response.content.readexactly(3)
            response.close()
            await asyncio.wait_for(left.wait(), 2)
            await s.until(lambda: s.controller.target.in_flight == 0)


class TestForwarding:
    @pytest.mark.parametrize(
        "target",
        [
            "/v1/models/org%2Fname",
            "/v1//models",
            "/v1/models?",
            "/v1/models?a=%20b&a=+c&&d",
            "/v1/../v1/models",
            "/v1/models;x=1",
            "/%E4%BD%A0?q=%zz",
            "/a?b?c",
        ],
    )
    async def test_path_and_query_are_forwarded_untouched(self, target: str) -> None:
        async with stage(awake=True) as s:
            answer = await s.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 200")
            assert s.hits == [f"GET {target}"]

    async def test_hop_by_hop_headers_and_those_that_connection_names_are_dropped(self) -> None:
        async with stage(awake=True) as s:
            headers = {"Connection": "x-secret, keep-alive", "X-Secret": "1", "TE": "trailers", "X-Kept": "2"}
            _, body = await s.get("/v1/models", headers={**headers, "X-Forwarded-For": "10.1.1.1"})
            sent = {name.lower(): value for name, value in body["headers"]}
            assert not sent.keys() & {"x-secret", "te", "keep-alive"}
            assert sent["x-kept"] == "2"
            assert sent["x-forwarded-for"] == "10.1.1.1, 127.0.0.1"
            assert sent["x-forwarded-proto"] == "http"
            assert sent["x-forwarded-host"] == s.url.removeprefix("http://")
            assert sent["host"] == str(s.backend.endpoint)

    async def test_a_large_body_arrives_whole(self) -> None:
        async def measure(request: web.BaseRequest) -> web.StreamResponse:
            size = 0
            async for piece in request.content.iter_any():
                size += len(piece)
            return web.json_response({"size": size})

        async with stage(measure, awake=True) as s:
            _, body = await s.post(FILES, data=io.BytesIO(b"x" * (20 << 20)))
            assert body == {"size": 20 << 20}

    async def test_a_body_of_unknown_length_arrives_whole(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 10_000

        async with stage() as s:
            _, body = await s.post(FILES, data=chunks())
            assert body["size"] == 1_000_000

    async def test_expect_100_continue_is_answered_before_anything_wakes(self) -> None:
        async with stage(start=0.2) as s:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            )
            interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)
            assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert s.phase_is(Asleep)
            writer.write(b"hello")
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)).startswith(b"HTTP/1.1 200 OK")
            writer.close()
            await writer.wait_closed()

    async def test_an_expectation_that_nobody_knows_is_417(self) -> None:
        async with stage(awake=True) as s:
            answer = await s.raw(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nConnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 417")

    @pytest.mark.parametrize("target", ["OPTIONS *", "CONNECT vllm:80"])
    async def test_what_has_no_path_is_a_bad_request(self, target: str) -> None:
        async with stage() as s:
            answer = await s.raw(f"{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 400")
            assert s.phase_is(Asleep)


class TestLocalRoutes:
    async def test_they_neither_wake_nor_keep_awake(self) -> None:
        async with stage(idle=0.4) as s:
            asked = ["/health", "/readyz", "/metrics", "/proxy/status", "/proxy/version", "/proxy/metrics", "/proxy/x"]
            for path in asked:
                await s.session.get(s.url + path)
                await s.session.head(s.url + path)
                await s.session.get(s.url + "/proxy/operations/start")
            assert s.phase_is(Asleep)
            await s.post(CHAT)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            while s.phase_is(Ready):
                for path in asked:
                    await s.session.get(s.url + path)
                await asyncio.sleep(0.01)
            assert loop.time() - begun < 1.5
            assert s.hits.count("GET /metrics") > 0

    async def test_health_is_200_while_the_process_lives(self) -> None:
        async with stage() as s, s.session.head(s.url + "/health") as response:
            assert response.status == 200

    async def test_readyz_is_503_until_the_first_sync(self) -> None:
        async with stage() as s:
            assert (await s.session.get(s.url + "/readyz")).status == 200
        async with stage(awake=True) as s:
            s.controller._target = type(s.controller.target)(s.controller.target.ref)
            s.controller.lost("the API server refuses connections")
            async with s.session.get(s.url + "/readyz") as response:
                assert response.status == 503
                assert "refuses connections" in await response.text()
            status, body = await s.post(CHAT, json={})
            assert status == 503
            assert body["error"]["code"] == "backend_unavailable"
            s.controller.observed(Observation(0, 0))

    async def test_metrics_asleep_is_a_comment(self) -> None:
        async with stage() as s, s.session.get(s.url + "/metrics") as response:
            assert response.status == 200
            assert (await response.text()).startswith("# ")
            assert s.hits == []

    async def test_metrics_awake_is_the_targets(self) -> None:
        async with stage(awake=True) as s:
            assert (await s.get("/metrics"))[1]["target"] == "/metrics"

    async def test_status_tells_it_all(self) -> None:
        async with stage(awake=True, idle=100) as s:
            _, body = await s.get("/proxy/status")
            [target] = body["targets"]
            assert target["target"] == "test/vllm"
            assert target["phase"] == "ready"
            assert 90 < target["sleeps_in_seconds"] <= 100
            assert target["waiting"] == target["in_flight"] == 0

    async def test_own_metrics_by_negotiation(self) -> None:
        async with stage() as s:
            async with s.session.get(s.url + "/proxy/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain")
                assert 'vllm_chill_vllm_state{target="test/vllm"} 0.0' in await response.text()
            accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
            async with s.session.get(s.url + "/proxy/metrics", headers=accept) as response:
                assert response.headers["Content-Type"].startswith("application/openmetrics-text")
                assert (await response.text()).endswith("# EOF\n")

    async def test_a_path_of_the_proxy_that_is_not_there_is_404_and_lists_those_that_are(self) -> None:
        async with stage() as s:
            status, body = await s.post("/proxy/operations/halt")
            assert status == 404
            assert "/proxy/operations/stop" in body["error"]["message"]

    async def test_a_method_that_a_path_does_not_take_is_405(self) -> None:
        async with stage() as s, s.session.get(s.url + "/proxy/operations/stop") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
            assert "POST" in envelope(await response.text())["message"]


class TestOperations:
    async def test_start_answers_when_ready(self) -> None:
        async with stage(start=0.1) as s:
            status, body = await s.post("/proxy/operations/start")
            assert (status, body["target"]["phase"]) == (200, "ready")

    async def test_start_says_why_not(self) -> None:
        async with stage() as s:
            s.backend.fail_start = "no such model"
            status, body = await s.post("/proxy/operations/start")
            assert status == 503
            assert "no such model" in body["error"]["message"]

    async def test_start_need_not_wait(self) -> None:
        async with stage(start=0.1) as s:
            status, body = await s.post("/proxy/operations/start?wait=false")
            assert (status, body["target"]["phase"]) == (202, "waking")
            await s.until(lambda: s.phase_is(Ready))

    async def test_a_wish_that_is_no_wish_is_a_bad_request(self) -> None:
        async with stage() as s:
            assert (await s.post("/proxy/operations/start?wait=perhaps"))[0] == 400
            assert s.phase_is(Asleep)

    async def test_stop_lets_a_stream_end_then_sleeps_and_says_so(self) -> None:
        async with stage(stream_slowly, awake=True) as s:
            async with s.session.post(s.url + CHAT) as response:
                await response.content.readany()
                stopping = asyncio.create_task(s.post("/proxy/operations/stop"))
                text = await response.text()
            assert text.endswith("[DONE]\n\n")
            status, body = await stopping
            assert (status, body["message"]) == (200, "test/vllm is asleep.")

    async def test_stop_of_a_wake_fails_its_callers_with_the_reason(self) -> None:
        async with stage(start=60) as s:
            caller = asyncio.create_task(s.post(CHAT, json={}))
            await s.until(lambda: s.backend.writes == [1])
            assert (await s.post("/proxy/operations/stop"))[0] == 200
            status, body = await caller
            assert status == 503
            assert "operator" in body["error"]["message"]
            await s.until(lambda: s.backend.writes == [1, 0])

    async def test_stop_asleep_is_already_done(self) -> None:
        async with stage() as s:
            assert (await s.post("/proxy/operations/stop"))[0] == 200


class TestTheEnd:
    async def test_readyz_says_so_and_what_is_there_finishes(self) -> None:
        async with stage(stream_slowly, awake=True) as s:
            async with s.session.post(s.url + CHAT) as response:
                await response.content.readany()
                draining = asyncio.create_task(s.server.drain(0.2, 10))
                await asyncio.sleep(0.05)
                assert (await s.session.get(s.url + "/readyz")).status == 503
                assert (await s.session.get(s.url + "/health")).status == 200
                assert (await response.text()).endswith("[DONE]\n\n")
            assert await draining
            async with aiohttp.ClientSession() as other:
                with pytest.raises(aiohttp.ClientError):
                    await other.get(s.url + "/health")

    async def test_a_quiet_moment_before_is_not_the_end(self) -> None:
        async with stage(stream_slowly, awake=True) as s:
            draining = asyncio.create_task(s.server.drain(0.2, 10))
            await asyncio.sleep(0.05)
            assert (await s.session.get(s.url + "/health")).status == 200
            async with s.session.post(s.url + CHAT) as response:
                await response.content.readany()
                await asyncio.sleep(0.3)
                assert not draining.done()
                assert (await response.text()).endswith("[DONE]\n\n")
            assert await draining

    async def test_a_held_request_is_answered_before_the_end(self) -> None:
        async with stage(start=0.3) as s:
            caller = asyncio.create_task(s.post(CHAT, json={}))
            await s.until(lambda: s.controller.target.waiting == 1)
            assert await s.server.drain(0, 10)
            assert (await caller)[0] == 200

    async def test_what_takes_too_long_is_cut_off(self) -> None:
        async with stage(stream_slowly, awake=True) as s, s.session.post(s.url + CHAT) as response:
            await response.content.readany()
            assert not await s.server.drain(0, 0.05)

    async def test_a_failed_target_can_be_read_off_the_status(self) -> None:
        async with stage() as s:
            s.backend.fail_start = "no such model"
            await s.post(CHAT, json={})
            assert s.phase_is(Failed)
            _, body = await s.get("/proxy/status")
            assert body["targets"][0]["phase"] == "failed"
            assert body["targets"][0]["cause"] == "no such model"
