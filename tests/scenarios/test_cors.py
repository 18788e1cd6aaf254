"""Pages of other origins, on both lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import web

from tests.scenarios.stage import FAST_LANE, echo, stage
from tests.scenarios.test_access import doors, key, said
from vllm_chill.core.target import Asleep
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.web.cors import Cors

CHAT = "/v1/chat/completions"
UI = "https://ui.example"
ASKS = {"Origin": UI, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture(params=[True, False], ids=["fast lane", "base"], autouse=True)
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


async def open_engine(request: web.BaseRequest) -> web.StreamResponse:
    """As vLLM's own middleware does by default."""
    response = await echo(request)
    if "Origin" in request.headers:
        response.headers["Access-Control-Allow-Origin"] = "*"
    return response


@pytest.mark.parametrize("awake", [True, False], ids=["awake", "asleep"])
async def test_a_preflight_is_answered_by_the_proxy_without_a_key_and_wakes_nothing(awake: bool) -> None:
    async with stage(open_engine, doorkeeper=doors(key("a")), cors=Cors([UI]), awake=awake) as proxy:
        async with proxy.session.options(proxy.url + CHAT, headers=ASKS) as response:
            assert response.status == 204
            headers = response.headers
        assert headers["Access-Control-Allow-Origin"] == UI
        assert headers["Access-Control-Allow-Methods"] == "POST"
        assert headers["Access-Control-Allow-Headers"] == "authorization"
        assert headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in headers
        assert not proxy.hits
        assert awake or proxy.phase_is(Asleep)


async def test_another_origin_may_not() -> None:
    async with stage(open_engine, cors=Cors([UI]), awake=True) as proxy:
        async with proxy.session.options(proxy.url + CHAT, headers=ASKS | {"Origin": "https://other"}) as response:
            assert response.status == 204
            assert not [name for name in response.headers if name.lower().startswith("access-control")]
        async with proxy.session.post(proxy.url + CHAT, json={}, headers={"Origin": "https://other"}) as response:
            assert response.status == 200
            assert "Access-Control-Allow-Origin" not in response.headers, "nor by the engine's word"


@pytest.mark.parametrize(("origins", "allowed"), [([UI], UI), (["*"], "*")])
async def test_an_answer_says_once_that_the_page_may_read_it(origins: list[str], allowed: str) -> None:
    async with stage(open_engine, cors=Cors(origins)) as proxy:
        for _ in range(2):
            async with proxy.session.post(proxy.url + CHAT, json={}, headers={"Origin": UI}) as response:
                assert response.status == 200
                assert response.headers.getall("Access-Control-Allow-Origin") == [allowed]
                seen = await response.json()
            assert "Origin" not in dict(seen["headers"])
        async with proxy.session.get(proxy.url + "/v1/models", headers={"Origin": UI}) as response:
            assert response.headers.getall("Access-Control-Allow-Origin") == [allowed]


async def test_who_is_no_page_is_told_nothing_of_it() -> None:
    async with stage(open_engine, cors=Cors([UI]), awake=True) as proxy:
        async with proxy.session.post(proxy.url + CHAT, json={}) as response:
            assert response.status == 200
            assert not [name for name in response.headers if name.lower().startswith("access-control")]
        assert bool(getattr(proxy.server._runner.server, "fast", False)) is FAST_LANE.get(), "and is on the fast lane"


async def test_an_error_can_be_read_too() -> None:
    async with (
        stage(doorkeeper=doors(key("a")), cors=Cors([UI])) as proxy,
        proxy.session.post(proxy.url + CHAT, json={}, headers={"Origin": UI}) as response,
    ):
        assert response.status == 401
        assert response.headers["Access-Control-Allow-Origin"] == UI
        assert response.headers["Access-Control-Expose-Headers"] == "Retry-After"


async def test_a_stream_that_is_held_says_it_in_its_head() -> None:
    async def engine(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: x\n\n")
        return response

    terms = HoldOptions(10, beat_after_seconds=0.01, beat_seconds=0.02)
    async with stage(engine, cors=Cors([UI]), terms=terms, start=0.1) as proxy:
        headers = {"Origin": UI, "Content-Type": "application/json"}
        async with proxy.session.post(proxy.url + CHAT, data=b'{"stream": true}', headers=headers) as response:
            assert response.headers.getall("Access-Control-Allow-Origin") == [UI]
            body = await response.read()
        assert body.startswith(b": ")
        assert body.endswith(b"data: x\n\n")
        assert b"Access-Control" not in body


async def test_the_proxys_own_paths_are_for_no_page() -> None:
    async with stage(cors=Cors(["*"])) as proxy:
        async with proxy.session.get(proxy.url + "/proxy/status", headers={"Origin": UI}) as response:
            assert response.status == 200
            assert "Access-Control-Allow-Origin" not in response.headers
        async with proxy.session.options(proxy.url + "/proxy/operations/stop", headers=ASKS) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_without_origins_the_engine_has_the_word() -> None:
    async with (
        stage(open_engine, awake=True) as proxy,
        proxy.session.post(proxy.url + CHAT, json={}, headers={"Origin": UI}) as response,
    ):
        assert response.headers.getall("Access-Control-Allow-Origin") == ["*"]
        assert dict((await response.json())["headers"])["Origin"] == UI


async def test_with_a_key_it_is_served() -> None:
    async with stage(doorkeeper=doors(key("a")), cors=Cors([UI])) as proxy:
        asked = said("a") | {"Origin": UI}
        async with asyncio.timeout(5), proxy.session.post(proxy.url + CHAT, json={}, headers=asked) as response:
            assert response.status == 200
