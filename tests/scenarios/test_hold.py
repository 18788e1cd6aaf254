"""The hold as its callers see it, over real sockets: bounded, fair, heard of, and free again whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.scenarios.stage import FAST_LANE, Stage, stage
from vllm_chill.control.lease import Bounds
from vllm_chill.core.target import Asleep, Draining, Observation, SleepReason, Waking
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold

CHAT = "/v1/chat/completions"
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
SOON = HoldOptions(10, beat_after_seconds=0.05, beat_seconds=0.05)
SPACES = HoldOptions(10, beat_after_seconds=0.05, beat_seconds=0.05, json=JsonHold.WHITESPACE)


@pytest.fixture(autouse=True, params=[True, False], ids=["fast lane", "base"])
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every scenario both ways."""
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


async def events(request: web.BaseRequest) -> web.StreamResponse:
    """Streams three events, or one document, as is asked for."""
    body = await request.json()
    if not body.get("stream"):
        return web.json_response({"answer": body["messages"][0]["content"]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for number in range(3):
        await response.write(b'data: {"n": %d}\n\n' % number)
    await response.write(b"data: [DONE]\n\n")
    return response


async def text(here: Stage, **more: Any) -> tuple[int, str, str]:
    """What a caller gets, its content type and the whole body."""
    async with here.session.post(here.url + CHAT, json=QUESTION | more) as response:
        return response.status, response.content_type, await response.text()


def parts(stream: str) -> tuple[list[str], list[str]]:
    """The comments of a stream, and its events' data."""
    lines = stream.split("\n")
    return [line[2:] for line in lines if line.startswith(": ")], [line[6:] for line in lines if line[:6] == "data: "]


@asynccontextmanager
async def callers(
    here: Stage, count: int, **headers: str
) -> AsyncIterator[list[asyncio.Task[tuple[int, dict[str, Any]]]]]:
    """So many callers that wait, in this order."""
    before = here.controller.target.waiting
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(here.post(CHAT, json=QUESTION, headers=headers)))
        await here.until(lambda n=number: here.controller.target.waiting == before + n + 1)  # type: ignore[misc]
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class TestBounded:
    async def test_more_than_may_wait_are_answered_429_with_the_time_that_a_start_takes(self) -> None:
        async with stage(events, start=0.3, bounds=Bounds(waiting=2)) as here:
            async with callers(here, 2) as waiting:
                async with here.session.post(here.url + CHAT, json=QUESTION) as response:
                    assert response.status == 429
                    assert int(response.headers["Retry-After"]) >= 1
                    assert (await response.json())["error"]["code"] == "too_many_waiting"
                assert [(await caller)[0] for caller in waiting] == [200, 200]
            assert (await here.post(CHAT, json=QUESTION))[0] == 200

    async def test_the_answer_comes_without_the_body(self) -> None:
        async with stage(events, start=30, bounds=Bounds(waiting=1)) as here, callers(here, 1):
            reader, writer = await asyncio.open_connection(*here.address)
            writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\nonly this".encode())
            assert (await asyncio.wait_for(reader.readline(), 2)).startswith(b"HTTP/1.1 429 ")
            writer.close()

    async def test_held_bodies_have_a_budget(self) -> None:
        body = QUESTION | {"padding": "x" * 40_000}
        async with stage(events, start=0.4, terms=HoldOptions(10, body_budget=100_000)) as here:
            held = [asyncio.create_task(here.post(CHAT, json=body)) for _ in range(2)]
            await here.until(lambda: here.controller.target.waiting == 2)
            status, answer = await here.post(CHAT, json=body)
            assert (status, answer["error"]["code"]) == (503, "hold_budget_spent")
            assert (await here.post(CHAT, json=QUESTION))[0] == 200
            assert [(await one)[0] for one in held] == [200, 200]
            assert (await here.post(CHAT, json=body))[0] == 200

    async def test_a_replica_never_has_more_than_it_may(self) -> None:
        now = most = 0

        async def slow(request: web.BaseRequest) -> web.StreamResponse:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            return web.json_response({})

        async with stage(slow, start=0.05, bounds=Bounds(in_flight=3)) as here:
            answers = await asyncio.gather(*(here.post(CHAT, json=QUESTION) for _ in range(40)))
            assert {status for status, _ in answers} == {200}
            assert most == 3


class TestFair:
    async def test_keys_take_turns_and_a_class_is_for_those_who_may_have_it(self) -> None:
        order: list[str] = []

        async def upstream(request: web.BaseRequest) -> web.StreamResponse:
            order.append(request.headers["X-Name"])
            return web.json_response({})

        terms = HoldOptions(10, priority_keys=frozenset({"vip"}))
        async with stage(upstream, start=0.5, terms=terms, bounds=Bounds(in_flight=1)) as here:
            tasks = []
            said = [("a1", "a", ""), ("a2", "a", ""), ("a3", "a", "high"), ("b1", "b", ""), ("v1", "vip", "high")]
            for number, (name, key, priority) in enumerate(said):
                headers = {"X-Name": name, "Authorization": f"Bearer {key}"} | (
                    {"X-Priority": priority} if priority else {}
                )
                tasks.append(asyncio.create_task(here.post(CHAT, json=QUESTION, headers=headers)))
                await here.until(lambda n=number: here.controller.target.waiting == n + 1)  # type: ignore[misc]
            await asyncio.gather(*tasks)
        assert order == ["v1", "a1", "b1", "a2", "a3"]


class TestHeard:
    async def test_a_stream_hears_of_its_hold_and_gets_its_events(self) -> None:
        async with stage(events, start=0.3, terms=SOON) as here:
            status, kind, body = await text(here, stream=True)
            assert (status, kind) == (200, "text/event-stream")
            comments, data = parts(body)
            assert sum(comment.startswith("waking: ") for comment in comments) >= 3
            assert any("position 1" in comment for comment in comments)
            assert data == ['{"n": 0}', '{"n": 1}', '{"n": 2}', "[DONE]"]
            assert here.metric("vllm_chill_requests_total", method="POST", route="proxied", status="200") == 1

    async def test_a_comment_says_how_long_it_will_take_once_that_is_known(self) -> None:
        async with stage(events, start=0.3, terms=SOON) as here:
            await text(here)
            await here.post("/proxy/operations/stop")
            comments, _ = parts((await text(here, stream=True))[2])
            assert any("left" in comment for comment in comments)

    async def test_a_short_hold_is_not_heard_of(self) -> None:
        async with stage(events, start=0.05, terms=HoldOptions(10, beat_after_seconds=5)) as here:
            comments, data = parts((await text(here, stream=True))[2])
            assert (comments, len(data)) == ([], 4)

    async def test_zero_is_never(self) -> None:
        async with stage(events, start=0.2, terms=HoldOptions(10, beat_after_seconds=0, beat_seconds=0.01)) as here:
            assert parts((await text(here, stream=True))[2])[0] == []

    async def test_a_failure_after_that_is_an_event_and_counted_as_what_it_is(self) -> None:
        async with stage(events, start=0.2, terms=SOON) as here:
            here.backend.fail_start = "CUDA out of memory"
            status, _, body = await text(here, stream=True)
            comments, data = parts(body)
            assert (status, len(comments) > 1, data[1:]) == (200, True, ["[DONE]"])
            error = json.loads(data[0])["error"]
            assert error["code"] == "wake_failed"
            assert "CUDA out of memory" in error["message"]
            assert here.metric("vllm_chill_requests_total", method="POST", route="proxied", status="503") == 1

    async def test_an_error_of_the_engine_after_that_is_an_event_too(self) -> None:
        async def refuses(request: web.BaseRequest) -> web.StreamResponse:
            return web.json_response({"error": {"message": "no such model", "code": 404}}, status=404)

        async with stage(refuses, start=0.2, terms=SOON) as here:
            _, data = parts((await text(here, stream=True))[2])
            assert json.loads(data[0]) == {"error": {"message": "no such model", "code": 404}}
            assert data[1:] == ["[DONE]"]
            assert here.metric("vllm_chill_requests_total", method="POST", route="proxied", status="404") == 1

    async def test_a_hold_that_expires_after_that_is_an_event(self) -> None:
        async with stage(events, start=30, terms=HoldOptions(0.3, beat_after_seconds=0.05, beat_seconds=0.05)) as here:
            _, data = parts((await text(here, stream=True))[2])
            assert json.loads(data[0])["error"]["code"] == "model_waking"
            assert here.phase_is(Waking)

    async def test_an_engine_that_dies_before_its_answer_is_asked_again_behind_the_comments(self) -> None:
        async def dies_first(request: web.BaseRequest) -> web.StreamResponse:
            if len(here.hits) == 1:
                assert request.transport is not None
                request.transport.abort()
            return await events(request)

        async with stage(dies_first, start=0.2, terms=SOON) as here:
            comments, data = parts((await text(here, stream=True))[2])
            assert comments
            assert data[-1] == "[DONE]"
            assert len(data) == 4

    async def test_the_connection_goes_on_behind_a_stream_that_was_held(self) -> None:
        async with stage(events, start=0.2, terms=SOON) as here:
            body = json.dumps(QUESTION | {"stream": True})
            request = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            reader, writer = await asyncio.open_connection(*here.address)
            for _ in range(3):
                writer.write(request)
                assert b": waking" in await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5) or here.hits
            assert len(here.hits) == 3
            writer.close()

    async def test_a_client_of_http_1_0_gets_the_same_without_chunks(self) -> None:
        async with stage(events, start=0.2, terms=SOON) as here:
            body = json.dumps(QUESTION | {"stream": True})
            head = f"POST {CHAT} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            answer = (await here.raw((head + body).encode())).decode()
            fields, _, stream = answer.partition("\r\n\r\n")
            assert "chunked" not in fields
            comments, data = parts(stream)
            assert comments
            assert data == ['{"n": 0}', '{"n": 1}', '{"n": 2}', "[DONE]"]


class TestJson:
    async def test_it_is_held_in_silence(self) -> None:
        async with stage(events, start=0.2, terms=SOON) as here:
            status, _, body = await text(here)
            assert (status, body) == (200, '{"answer": "hello"}')

    async def test_with_spaces_it_is_valid_all_the_same(self) -> None:
        async with stage(events, start=0.3, terms=SPACES) as here:
            status, kind, body = await text(here)
            assert (status, kind) == (200, "application/json")
            assert body.startswith("   ")
            assert json.loads(body) == {"answer": "hello"}

    async def test_with_spaces_a_failure_is_a_document(self) -> None:
        async with stage(events, start=0.2, terms=SPACES) as here:
            here.backend.fail_start = "no room"
            assert json.loads((await text(here))[2])["error"]["code"] == "wake_failed"

    async def test_it_can_be_refused_at_once_while_the_target_wakes(self) -> None:
        async with stage(events, start=0.2, terms=HoldOptions(10, json=JsonHold.FAIL)) as here:
            async with here.session.post(here.url + CHAT, json=QUESTION) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) >= 1
                assert (await response.json())["error"]["code"] == "model_waking"
            assert here.phase_is(Waking)
            assert len(parts((await text(here, stream=True))[2])[1]) == 4
            assert (await text(here))[0] == 200
            assert here.backend.writes == [1]

    @pytest.mark.parametrize("headers", [{"Prefer": "wait=0"}, {"X-Wake-Timeout": "0"}])
    async def test_a_request_may_ask_for_that(self, headers: dict[str, str]) -> None:
        async with stage(events, start=30) as here:
            status, body = await here.post(CHAT, json=QUESTION, headers=headers)
            assert (status, body["error"]["code"]) == (503, "model_waking")
            assert here.phase_is(Waking)

    @pytest.mark.parametrize("headers", [{"Prefer": "wait=1"}, {"X-Wake-Timeout": "200ms"}])
    async def test_or_for_a_shorter_hold(self, headers: dict[str, str]) -> None:
        async with stage(events, start=30) as here:
            begun = asyncio.get_running_loop().time()
            status, body = await here.post(CHAT, json=QUESTION, headers=headers)
            assert (status, body["error"]["code"]) == (503, "model_waking")
            assert asyncio.get_running_loop().time() - begun < 2

    async def test_a_time_that_is_none_is_400_and_wakes_nothing(self) -> None:
        async with stage(events) as here:
            status, body = await here.post(CHAT, json=QUESTION, headers={"X-Wake-Timeout": "soon"})
            assert (status, body["error"]["code"]) == (400, "bad_request")
            assert here.phase_is(Asleep)

    async def test_a_crash_is_not_waited_out_twice(self) -> None:
        async with stage(events, start=0.05, terms=HoldOptions(10, json=JsonHold.FAIL)) as here:
            here.backend.fail_start = "no room"
            await here.post(CHAT, json=QUESTION)
            await here.until(lambda: "no room" in str(here.controller.target.phase))
            for _ in range(10):
                status, body = await here.post(CHAT, json=QUESTION)
                assert (status, body["error"]["code"]) == (503, "wake_failed")
            assert here.backend.writes.count(1) == 1


class TestWhatIsNotHeld:
    async def test_malformed_json_is_400_and_wakes_nothing(self) -> None:
        async with stage(events) as here:
            status, body = await here.post(CHAT, data=b'{"model": ', headers={"Content-Type": "application/json"})
            assert (status, body["error"]["type"]) == (400, "invalid_request_error")
            assert here.phase_is(Asleep)

    async def test_a_model_that_the_engine_does_not_have_is_404_with_those_it_has(self) -> None:
        argv = ("vllm", "serve", "Qwen/Qwen3-0.6B", "--served-model-name", "small")
        async with stage(events, served=lambda: (argv, "1")) as here:
            status, body = await here.post(CHAT, json=QUESTION | {"model": "large"})
            assert (status, body["error"]["code"]) == (404, "model_not_found")
            assert "small" in body["error"]["message"]
            assert here.phase_is(Asleep)
            assert (await here.post(CHAT, json=QUESTION | {"model": "small"}))[0] == 200

    async def test_awake_the_engine_itself_is_asked(self) -> None:
        async with stage(awake=True, served=lambda: (("vllm", "serve", "small"), "1")) as here:
            await here.post(CHAT, json=QUESTION | {"model": "large"})
            assert len(here.hits) == 1


class TestChanges:
    async def test_a_caller_that_leaves_frees_its_place_at_once(self) -> None:
        async with stage(events, start=30, bounds=Bounds(waiting=1)) as here:
            async with callers(here, 1):
                assert (await here.post(CHAT, json=QUESTION))[0] == 429
            await here.until(lambda: not here.controller.target.waiting, 1)
            assert here.phase_is(Waking)
            async with callers(here, 1):
                pass

    async def test_a_caller_that_leaves_a_hold_it_has_heard_of_frees_its_place_too(self) -> None:
        async with stage(events, start=30, terms=SOON) as here:
            async with here.session.post(here.url + CHAT, json=QUESTION | {"stream": True}) as response:
                assert (await response.content.readline()).startswith(b": waking")
            await here.until(lambda: not here.controller.target.waiting, 1)

    async def test_a_wake_that_nobody_waits_for_is_given_up_where_that_is_wanted(self) -> None:
        async with stage(events, start=30, keep_abandoned=False) as here:
            async with callers(here, 2):
                pass
            await here.until(lambda: here.phase_is(Asleep), 1)
            assert here.backend.writes == [1, 0]

    async def test_a_stream_of_a_replica_that_is_gone_does_not_hang(self) -> None:
        async def falls_silent(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"n": 0}\n\n')
            await asyncio.sleep(30)
            return response

        async with stage(falls_silent, awake=True, orphan=0.2) as here:
            reading = asyncio.create_task(text(here, stream=True))
            await here.until(lambda: here.controller.target.in_flight == 1 and bool(here.hits))
            await asyncio.sleep(0.3)
            assert not reading.done()
            here.controller.observed(Observation(1, 1, ()))
            _, data = parts((await asyncio.wait_for(reading, 3))[2])
            assert data[0] == '{"n": 0}'
            assert "gone" in json.loads(data[1])["error"]["message"]
            assert data[2:] == ["[DONE]"]
            assert here.metric("vllm_chill_responses_cut_total") == 1

    @pytest.mark.parametrize("stream", [True, False])
    async def test_an_answer_that_the_engine_gives_up_is_counted(self, stream: bool) -> None:
        said = b'{"choices":[{"index":0,"finish_reason":"abort"}]}'

        async def aborts(request: web.BaseRequest) -> web.StreamResponse:
            if not stream:
                return web.Response(body=said, content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: " + said + b"\n\ndata: [DONE]\n\n")
            return response

        async with stage(aborts, awake=True) as here:
            await text(here, stream=stream)
            await here.until(lambda: here.metric("vllm_chill_responses_aborted_total") == 1)
            assert here.metric("vllm_chill_responses_cut_total") == 0

    async def test_a_wake_that_is_given_up_says_why(self) -> None:
        async with stage(events, start=30, stop=30, keep_abandoned=False) as here:
            async with callers(here, 1):
                pass
            await here.until(lambda: here.phase_is(Draining))
            phase = here.controller.target.phase
            assert isinstance(phase, Draining)
            assert phase.reason is SleepReason.ABANDONED
