"""A request has one id, from its head to its last byte, on both lanes."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.scenarios.stage import Stage, echo, stage
from vllm_chill.core.keys import Keys
from vllm_chill.proxy.gate import Gate
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.web.doorkeeper import Doorkeeper

CHAT = "/v1/chat/completions"
MADE = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")


@pytest.fixture(params=[True, False], ids=["fast lane", "base"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def told(body: Any) -> list[str]:
    """The ids that the engine was told."""
    return [value for name, value in body["headers"] if name.lower() == "x-request-id"]


async def asked(s: Stage, *said: str, path: str = CHAT, **more: Any) -> tuple[int, list[str], Any]:
    """The status, the ids in the answer's head, and its body."""
    headers = [("X-Request-Id", each) for each in said]
    async with s.session.post(s.url + path, json={}, headers=headers, **more) as response:
        return response.status, response.headers.getall("X-Request-Id", []), await response.json(content_type=None)


class TestTheEngine:
    async def test_it_is_told_what_the_client_says_and_so_is_the_client(self, fast: bool) -> None:
        async with stage(awake=True, fast=fast) as s:
            for said in ("req-1", "req-2", "7c6a1fd2-0d3c-4f0a-9f0e-3f0f9a6a2a51"):
                status, ids, body = await asked(s, said)
                assert (status, ids, told(body)) == (200, [said], [said])

    async def test_it_is_told_another_one_where_that_is_none(self, fast: bool) -> None:
        async with stage(awake=True, fast=fast) as s:
            for said in ((), ("a b",), ("x" * 200,), ("one", "two")):
                _, [made], body = await asked(s, *said)
                assert MADE.fullmatch(made)
                assert told(body) == [made]

    async def test_no_two_requests_have_the_same(self, fast: bool) -> None:
        async with stage(fast=fast, start=0.1) as s:
            answers = await asyncio.gather(*(asked(s) for _ in range(10)))
        assert len({made for _, [made], _ in answers}) == 10
        assert all(told(body) == ids for _, ids, body in answers)

    async def test_what_goes_through_at_once_gets_none_on_the_fast_lane_as_each_would_pay_for_it(
        self, fast: bool
    ) -> None:
        async with stage(awake=True, fast=fast) as s:
            await asked(s)  # this one makes the connection
            _, ids, body = await asked(s)
            assert len(ids) == (0 if fast else 1)
            assert told(body) == ids

    async def test_what_it_says_itself_stands(self, fast: bool) -> None:
        async def says(request: web.BaseRequest) -> web.StreamResponse:
            await request.read()
            return web.json_response({}, headers={"x-request-id": "the engine's"})

        async with stage(says, awake=True, fast=fast) as s:
            assert (await asked(s, "mine"))[1] == ["the engine's"]
            assert (await asked(s))[1] == ["the engine's"]

    async def test_a_stream_and_an_upload_have_one_too(self, fast: bool) -> None:
        async def streams(request: web.BaseRequest) -> web.StreamResponse:
            await request.read()
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for _ in range(3):
                await response.write(b"data: {}\n\n")
            await response.write(b"data: [DONE]\n\n")
            return response

        async with stage(streams, awake=True, fast=fast, replay_bytes=1000) as s:
            for body in (b"{}", b"x" * 5000):
                async with s.session.post(s.url + CHAT, data=body) as response:
                    assert (await response.read()).endswith(b"data: [DONE]\n\n")
                    assert MADE.fullmatch(response.headers["X-Request-Id"])

    async def test_another_attempt_has_the_same(self, fast: bool) -> None:
        seen: list[str] = []

        async def resets(request: web.BaseRequest) -> web.StreamResponse:
            seen.append(request.headers["X-Request-Id"])
            if len(seen) == 1:
                assert request.transport is not None
                request.transport.abort()
            return await echo(request)

        async with stage(resets, awake=True, fast=fast) as s:
            _, [made], _ = await asked(s)
        assert seen == [made, made]


class TestErrors:
    async def test_the_head_and_the_body_say_it(self, fast: bool) -> None:
        async with stage(fast=fast, hold=0.1, start=5) as s:
            for said in ((), ("req-1",)):
                with capture_logs() as log:
                    status, ids, body = await asked(s, *said)
                assert status == 503
                assert ids == [body["error"]["request_id"]]
                assert said == () or ids == list(said)
                [line] = [line for line in log if line["event"] == "request failed"]
                assert (line["request_id"], line["code"], line["status"]) == (ids[0], "model_waking", 503)
                assert line["cause"] == body["error"]["message"]

    async def test_what_a_client_can_mend_is_logged_where_all_is(
        self, fast: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = Gate(Keys(()), lambda: 0.0)
        caplog.set_level(logging.DEBUG, "vllm_chill.server")
        with capture_logs() as log:
            async with stage(awake=True, fast=fast, doorkeeper=Doorkeeper(gate)) as s:
                status, [made], body = await asked(s)
        assert (status, body["error"]["request_id"]) == (401, made)
        [line] = [line for line in log if line["event"] == "request refused"]
        assert (line["log_level"], line["request_id"], line["code"]) == ("debug", made, "invalid_api_key")

    async def test_a_hold_that_is_heard_says_it_in_its_head_and_its_end(self, fast: bool) -> None:
        terms = HoldOptions(0.4, beat_after_seconds=0.05, beat_seconds=0.05)
        async with (
            stage(fast=fast, start=5, terms=terms) as s,
            s.session.post(s.url + CHAT, json={"stream": True}) as response,
        ):
            said = response.headers["X-Request-Id"]
            assert f'"request_id":"{said}"' in await response.text()

    async def test_a_hold_that_is_heard_has_one_field(self, fast: bool) -> None:
        async def events(request: web.BaseRequest) -> web.StreamResponse:
            seen.append(request.headers["X-Request-Id"])
            await request.read()
            headers = {"Content-Type": "text/event-stream", "X-Request-Id": "the engine's"}
            return web.Response(body=b"data: [DONE]\n\n", headers=headers)

        seen: list[str] = []
        terms = HoldOptions(5, beat_after_seconds=0.05, beat_seconds=0.05)
        async with (
            stage(events, fast=fast, start=0.3, terms=terms) as s,
            s.session.post(s.url + CHAT, json={"stream": True}) as response,
        ):
            assert (await response.text()).endswith("data: [DONE]\n\n")
            assert response.headers.getall("X-Request-Id") == seen

    async def test_a_response_that_is_cut_is_in_the_log_with_its_own(self, fast: bool) -> None:
        async def breaks_off(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.abort()
            return response

        with capture_logs() as log:
            async with stage(breaks_off, awake=True, fast=fast) as s:
                answer = await s.raw(b"POST %b HTTP/1.1\r\nHost: a\r\nX-Request-Id: r1\r\n\r\n" % CHAT.encode())
        assert b"\r\nX-Request-Id: r1\r\n" in answer
        [line] = [line for line in log if line["event"] == "response cut"]
        assert line["request_id"] == "r1"

    async def test_a_bug_says_in_the_log_whose_it_was(self, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        async with stage(fast=fast) as s:

            async def broken(*_: object, **__: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(s.desk, "lease", broken)
            with capture_logs() as log:
                status, [made], body = await asked(s)
        assert (status, body["error"]["request_id"]) == (500, made)
        assert [(line["event"], line["request_id"]) for line in log] == [("a bug in vllm-chill", made)]


async def test_the_proxys_own_pages_say_one() -> None:
    async with stage() as s:
        for path in ("/health", "/proxy/status", "/v1/models", "/nothing", "/proxy/nothing"):
            async with s.session.get(s.url + path, headers={"X-Request-Id": "mine"}) as response:
                assert response.headers.getall("X-Request-Id") == ["mine"]
            async with s.session.get(s.url + path) as response:
                assert MADE.fullmatch(response.headers["X-Request-Id"])


async def test_an_upgrade_has_one_on_its_way_to_the_engine() -> None:
    async with stage(awake=True) as s:
        request = b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        async with asyncio.timeout(5):
            answer = await s.raw(request)
        assert re.search(rb'\["X-Request-Id", "[0-9a-f]{12}-00000001"\]', answer)
