"""What does not count: the table of routes, row by row, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator

import pytest
from aiohttp import web

from tests.scenarios.stage import FAST_LANE, Stage, echo, envelope, stage
from vllm_chill.control.knowledge import Served
from vllm_chill.core.routing import DEFAULT_WAKE_PATHS, TABLE, Route, Routes
from vllm_chill.core.target import Asleep, Draining, Failed, Ready, Waking

CHAT = "/v1/chat/completions"
PROBE = {"User-Agent": "kube-probe/1.33"}
COMMAND: Served = lambda: (["vllm", "serve", "org/a", "--served-model-name", "a", "b"], "1")  # noqa: E731

# For each row a request, and what it is answered with while the target sleeps.
REQUESTS: dict[Route, tuple[str, str, dict[str, str], int]] = {
    Route.PROXIED: ("POST", CHAT, {}, 200),
    Route.MODELS: ("GET", "/v1/models", {}, 200),
    Route.MODEL: ("GET", "/v1/models/a", {}, 200),
    Route.PREFLIGHT: ("OPTIONS", CHAT, {"Origin": "http://ui", "Access-Control-Request-Method": "POST"}, 204),
    Route.HEAD: ("HEAD", CHAT, {}, 200),
    Route.CHECKED: ("POST", CHAT, PROBE, 200),
    Route.HEALTH_CHECK: ("GET", "/", PROBE, 200),
    Route.HEALTH: ("GET", "/health", {}, 200),
    Route.READYZ: ("GET", "/readyz", {}, 200),
    Route.PING: ("POST", "/ping", {}, 200),
    Route.METRICS: ("GET", "/metrics", {}, 200),
    Route.FAVICON: ("GET", "/favicon.ico", {}, 204),
    Route.ROBOTS: ("GET", "/robots.txt", {}, 200),
    Route.PROXY_METRICS: ("GET", "/proxy/metrics", {}, 200),
    Route.PROXY_STATUS: ("GET", "/proxy/status", {}, 200),
    Route.PROXY_DASHBOARD: ("GET", "/proxy/", {}, 200),
    Route.PROXY_EVENTS: ("HEAD", "/proxy/events", {}, 200),
    Route.PROXY_REQUESTS: ("GET", "/proxy/requests", {}, 200),
    Route.PROXY_STARTS: ("GET", "/proxy/starts", {}, 200),
    Route.PROXY_CANCEL: ("POST", "/proxy/operations/cancel", {}, 400),
    Route.PROXY_VERSION: ("GET", "/proxy/version", {}, 200),
    Route.PROXY_START: ("POST", "/proxy/operations/start", {}, 200),
    Route.PROXY_STOP: ("POST", "/proxy/operations/stop", {}, 200),
    Route.PROXY_AVAILABLE: ("GET", "/proxy/models/available", {}, 200),
    Route.PROXY_RUNNING: ("GET", "/proxy/models/running", {}, 200),
    Route.PROXY_SWITCH: ("POST", "/proxy/models/switch", {}, 409),
    Route.PROXY_SCALING_METRICS: ("GET", "/proxy/scaling/metrics", {}, 200),
    Route.PROXY_SCALING_POD: ("GET", "/proxy/scaling/metrics/vllm-0", {}, 404),
    Route.PROXY_SCALING_REPLICAS: ("DELETE", "/proxy/scaling/replicas", {}, 200),
    Route.PROXY_SCALING_POLICIES: ("GET", "/proxy/scaling/policy", {}, 200),
    Route.PROXY_SCALING_POLICY: ("GET", "/proxy/scaling/policy/test/vllm", {}, 404),
    Route.PROXY_STATS: ("GET", "/proxy/stats", {}, 503),
    Route.PROXY_SAVINGS: ("GET", "/proxy/savings", {}, 200),
    Route.PROXY_LOGS: ("GET", "/proxy/logs", {}, 404),
    Route.PROXY_OPENAPI: ("GET", "/proxy/openapi.json", {}, 200),
    Route.PROXY_OTHER: ("GET", "/proxy/none", {}, 404),
    Route.OTHER: ("POST", "/nowhere", {}, 404),
}


def _name(route: Route) -> str:
    return route.name


@pytest.fixture(autouse=True, params=[True, False], ids=["fast lane", "base"])
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything passes both ways."""
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


async def ask(s: Stage, route: Route) -> tuple[int, bytes]:
    method, path, headers, _ = REQUESTS[route]
    async with s.session.request(method, s.url + path, headers=headers) as response:
        return response.status, await response.read()


async def idle_since(s: Stage) -> float:
    await s.until(lambda: s.phase_is(Ready) and not s.controller.target.in_flight)
    phase = s.controller.target.phase
    assert isinstance(phase, Ready)
    return phase.idle_since


async def warm(s: Stage) -> None:
    """Have a connection to the target in the pool, so that the fast lane takes what is plain."""
    assert (await s.post(CHAT, json={}))[0] == 200
    await s.until(lambda: not s.controller.target.in_flight)


class TestTheTable:
    def test_each_row_has_its_request(self) -> None:
        for route, (method, path, headers, _) in REQUESTS.items():
            assert Routes().route_for(method, path, headers.get("User-Agent", "")) is route
        assert set(REQUESTS) == set(TABLE)

    @pytest.mark.parametrize("route", TABLE, ids=_name)
    async def test_asleep(self, route: Route) -> None:
        entry = TABLE[route]
        async with stage(served=COMMAND, start=0.01) as s:
            status, body = await ask(s, route)
            assert status == REQUESTS[route][3]
            if status >= 400:
                envelope(body)
            await asyncio.sleep(0.01)
            assert s.backend.writes == ([1] if entry.wakes else [])
            assert bool(s.hits) == (entry.asleep is None)

    @pytest.mark.parametrize("route", [route for route in TABLE if route is not Route.PROXY_STOP], ids=_name)
    async def test_awake(self, route: Route) -> None:
        entry = TABLE[route]
        async with stage(awake=True) as s:
            await warm(s)
            del s.hits[:]
            before = await idle_since(s)
            await ask(s, route)
            assert (await idle_since(s) > before) == entry.prolongs
            assert bool(s.hits) == (entry.awake is None)

    @pytest.mark.parametrize("route", [route for route, entry in TABLE.items() if not entry.prolongs], ids=_name)
    async def test_what_does_not_count_is_no_end_of_idleness_however_often_it_comes(self, route: Route) -> None:
        async with stage(awake=True, idle=0.15) as s:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            while s.phase_is(Ready):
                await ask(s, route)
                assert loop.time() - begun < 3
            await s.until(lambda: s.phase_is(Asleep))
            for _ in range(3):
                await ask(s, route)
            assert s.backend.writes == [0]

    async def test_an_operators_stop_ends_the_idleness_at_once(self) -> None:
        async with stage(awake=True) as s:
            assert (await ask(s, Route.PROXY_STOP))[0] == 200
            assert s.phase_is(Asleep)

    @pytest.mark.parametrize("path", [path.replace("*", "x") for path in DEFAULT_WAKE_PATHS])
    async def test_every_path_that_wakes_does(self, path: str) -> None:
        async with stage(start=0.01) as s:
            status, body = await s.post(path, json={})
            assert (status, body["target"]) == (200, path)
            assert s.backend.writes == [1]


class TestWakePaths:
    async def test_another_list_is_followed_on_both_lanes(self) -> None:
        async with stage(wake_paths="/completion", start=0.01) as s:
            assert (await s.post(CHAT, json={}))[0] == 404
            assert s.backend.writes == []
            assert (await s.post("/completion", json={}))[0] == 200
            for _ in range(2):
                before = await idle_since(s)
                assert (await s.post(CHAT, json={}))[0] == 200
                assert await idle_since(s) == before
                assert (await s.post("/completion", json={}))[0] == 200
                assert await idle_since(s) > before

    async def test_a_path_that_does_not_wake_says_how_it_would(self) -> None:
        async with stage() as s:
            status, body = await s.post("/" + "x" * 1000, json={})
            assert status == 404
            assert body["error"]["code"] == "not_found"
            assert "--wake-paths" in body["error"]["message"]
            assert len(body["error"]["message"]) < 400


class TestHealthCheckers:
    async def test_one_on_a_connection_that_has_been_used_does_not_count_either(self) -> None:
        async with stage(awake=True) as s:
            await warm(s)
            before = await idle_since(s)
            for _ in range(3):
                async with s.session.post(s.url + CHAT, json={}, headers=PROBE) as response:
                    assert response.status == 200
            assert await idle_since(s) == before
            assert s.metric("vllm_chill_requests_total", method="POST", route="checked", status="200") == 3

    async def test_while_the_proxy_shuts_down_it_is_told_to_send_nothing_here(self) -> None:
        async with stage() as s:
            draining = asyncio.create_task(s.server.drain(0.2, 1))
            await asyncio.sleep(0.02)
            async with s.session.get(s.url + "/", headers=PROBE) as response:
                assert response.status == 503
            await draining


class TestPassingBy:
    async def test_a_body_of_any_length_passes_and_expect_is_answered(self) -> None:
        async with stage(awake=True) as s:
            _, body = await s.post("/nowhere", data=io.BytesIO(b"x" * 1_000_000), expect100=True)
            assert (body["target"], body["size"]) == ("/nowhere", 1_000_000)
            before = await idle_since(s)
            await s.post("/nowhere", data=b"x")
            assert await idle_since(s) == before

    async def test_a_target_that_takes_no_connection_is_502(self) -> None:
        async def hangs_up(request: web.BaseRequest) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.close()
            return web.Response()

        async with stage(hangs_up, awake=True) as s:
            status, body = await s.get("/version")
            assert status == 502
            assert body["error"]["code"] == "upstream_reset"

    async def test_it_may_be_put_to_sleep_under_a_request_that_does_not_count(self) -> None:
        async def slow(request: web.BaseRequest) -> web.StreamResponse:
            await asyncio.sleep(0.3)
            return await echo(request)

        async with stage(slow, awake=True, idle=0.1) as s:
            passing = asyncio.create_task(s.get("/docs"))
            await s.until(lambda: s.phase_is(Asleep), 0.3)
            assert (await passing)[0] == 200


class TestPreflight:
    async def test_asleep_a_browser_may_go_on(self) -> None:
        async with stage() as s:
            asked = {"Origin": "http://ui", "Access-Control-Request-Method": "POST"}
            headers = {**asked, "Access-Control-Request-Headers": "authorization,content-type"}
            async with s.session.options(s.url + CHAT, headers=headers) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == "http://ui"
                assert response.headers["Access-Control-Allow-Methods"] == "POST"
                assert response.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
                assert response.headers["Vary"] == "Origin"
            async with s.session.options(s.url + CHAT) as response:
                assert "POST" in response.headers["Allow"]
                assert "Access-Control-Allow-Origin" not in response.headers

    async def test_the_proxys_own_operations_have_none(self) -> None:
        async with stage() as s, s.session.options(s.url + "/proxy/operations/start") as response:
            assert response.status == 405


class TestModels:
    async def test_asleep_they_are_what_the_command_says_and_say_that_they_sleep(self) -> None:
        async with stage(served=COMMAND) as s:
            status, body = await s.get("/v1/models")
            assert (status, body["object"]) == (200, "list")
            assert [model["id"] for model in body["data"]] == ["a", "b"]
            for model in body["data"]:
                assert (model["object"], type(model["created"])) == ("model", int)
                assert model["vllm_chill"] == {"state": "asleep", "eta_seconds": None}

    async def test_what_the_engine_listed_is_kept_with_its_fields(self) -> None:
        async with stage(served=COMMAND) as s:
            s.knowledge.listed(b'{"data": [{"id": "org/x", "owned_by": "vllm", "max_model_len": 256}]}')
            _, body = await s.get("/v1/models")
            [model] = body["data"]
            assert (model["id"], model["max_model_len"], model["owned_by"]) == ("org/x", 256, "vllm")
            for path in ("/v1/models/org/x", "/v1/models/org%2Fx", "/v1/models/org%2Fx?y"):
                assert (await s.get(path))[1]["id"] == "org/x"

    async def test_awake_the_answer_is_the_engines_own(self) -> None:
        own = {"object": "list", "data": [{"id": "x"}]}

        async def lists(request: web.BaseRequest) -> web.StreamResponse:
            return web.json_response(own)

        async with stage(lists, awake=True, served=COMMAND) as s:
            assert await s.get("/v1/models") == (200, own)

    async def test_each_phase_is_told(self) -> None:
        async with stage(served=COMMAND, start=60, stop=60, idle=0.05) as s:

            async def state() -> str:
                return str((await s.get("/v1/models/a"))[1]["vllm_chill"]["state"])

            caller = asyncio.create_task(s.post(CHAT, json={}))
            await s.until(lambda: s.phase_is(Waking))
            assert await state() == "waking"
            s.backend.ready()
            await caller
            await s.until(lambda: s.phase_is(Draining))
            assert await state() == "draining"
        async with stage(served=COMMAND) as s:
            s.backend.fail_start = "no such model"
            await s.post(CHAT, json={})
            assert s.phase_is(Failed)
            _, body = await s.get("/v1/models/b")
            assert body["vllm_chill"]["state"] == "failed"

    async def test_one_that_is_not_known_is_404_with_those_that_are(self) -> None:
        async with stage(served=COMMAND) as s:
            status, body = await s.get("/v1/models/c")
            assert status == 404
            assert body["error"].pop("request_id")
            assert envelope(json.dumps(body)) == {
                "message": 'The model "c" does not exist; known: a, b.',
                "type": "invalid_request_error",
                "code": "model_not_found",
                "param": None,
            }
        async with stage() as s:
            assert (await s.get("/v1/models"))[1]["data"] == []
            assert (await s.get("/v1/models/c"))[0] == 404

    async def test_head_has_no_body(self) -> None:
        async with stage(served=COMMAND) as s, s.session.head(s.url + "/v1/models") as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            assert await response.read() == b""
