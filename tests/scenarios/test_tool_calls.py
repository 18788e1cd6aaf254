"""Calls that a model writes as text, rewritten on their way through a whole proxy, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.proxy.wire import settled
from tests.scenarios.stage import Stage, stage
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold
from vllm_chill.proxy.tool_call_rewrite import tool_call_rewrite

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "When does it go?"}],
    "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}],
}
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
WORDS = ["I ", "look.\n", *re.findall(r"\w+|\W", NOW), "\n"]
HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
SOON = HoldOptions(10, beat_after_seconds=0.05, beat_seconds=0.05, json=JsonHold.WHITESPACE)

Writer = Callable[[web.StreamResponse], Awaitable[None]]


def event(content: str, reason: str | None = None) -> bytes:
    chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]}
    return b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()


async def all_words(response: web.StreamResponse) -> None:
    for word in WORDS:
        await response.write(event(word))
    await response.write(event("", "stop"))
    await response.write(b"data: [DONE]\n\n")


def engine(write: Writer = all_words) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """An engine that writes the same answer to whoever asks, streamed or whole, and encodes it for whom it may."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            whole = web.json_response({"id": "c", "choices": [{"message": message, "finish_reason": "stop"}]})
            if "gzip" in request.headers.get("Accept-Encoding", ""):
                whole.enable_compression()
            return whole
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await write(response)
        return response

    return answer


@asynccontextmanager
async def in_front(write: Writer = all_words, **more: Any) -> AsyncIterator[Stage]:
    async with stage(engine(write), fast=False, rewrite_for=tool_call_rewrite, **{"awake": True, **more}) as here:
        yield here


def told(stream: str) -> tuple[str, list[str], list[str], list[str]]:
    """The text, the names of the calls, the finish reasons, and the comments."""
    text, calls, reasons = "", [], []
    for data in re.findall(r"^data: (\{.*)$", stream, re.MULTILINE):
        for choice in json.loads(data).get("choices", ()):
            text += choice["delta"].get("content") or ""
            calls += [call["function"]["name"] for call in choice["delta"].get("tool_calls", ())]
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    return text, calls, reasons, re.findall(r"^: .*$", stream, re.MULTILINE)


async def streamed(here: Stage, **more: Any) -> str:
    async with here.session.post(here.url + CHAT, json=QUESTION | {"stream": True} | more) as response:
        assert response.status == 200
        return await response.text()


class TestAStream:
    async def test_its_calls_are_calls(self) -> None:
        async with in_front() as here:
            for _ in range(2):
                assert told(await streamed(here)) == ("I look.\n", ["now"], ["tool_calls"], [])

    async def test_without_tools_it_is_what_the_engine_said(self) -> None:
        async with in_front() as here:
            sent = b"".join([*map(event, WORDS), event("", "stop"), b"data: [DONE]\n\n"]).decode()
            assert await streamed(here, tools=[]) == sent
            assert await streamed(here, tool_choice="none") == sent

    async def test_each_event_is_passed_on_when_it_comes(self) -> None:
        turns: asyncio.Queue[None] = asyncio.Queue()

        async def in_turns(response: web.StreamResponse) -> None:
            for word in WORDS:
                await turns.get()
                await response.write(event(word))

        async with (
            in_front(in_turns) as here,
            here.session.post(here.url + CHAT, json=QUESTION | {"stream": True}) as response,
        ):
            for _ in WORDS:
                turns.put_nowait(None)
                assert (await response.content.readuntil(b"\n\n")).startswith(b'data: {"id"')

    async def test_that_is_held_is_heard_of_first(self) -> None:
        async with in_front(awake=False, start=0.2, terms=SOON) as here:
            text, calls, reasons, comments = told(await streamed(here))
            assert (text, calls, reasons) == ("I look.\n", ["now"], ["tool_calls"])
            assert comments

    @pytest.mark.parametrize("awake", [True, False])
    async def test_that_loses_its_engine_ends_with_all_its_text_and_an_error(self, awake: bool) -> None:
        async def dies(response: web.StreamResponse) -> None:
            for word in WORDS[:8]:
                await response.write(event(word))
            await asyncio.sleep(0.05)
            assert response._req is not None
            assert response._req.transport is not None
            response._req.transport.abort()

        async with in_front(dies, awake=awake, start=0.2, terms=SOON) as here:
            out = await streamed(here)
            assert told(out)[:3] == ("".join(WORDS[:8]), [], [])
            assert re.search(r'data: \{"error":.*\n\ndata: \[DONE\]\n\n$', out)
            assert here.metric("vllm_chill_responses_cut_total") == 1

    async def test_that_the_engine_gives_up_is_counted(self) -> None:
        async def aborts(response: web.StreamResponse) -> None:
            for word in WORDS[:8]:
                await response.write(event(word))
            await response.write(event("", "abort"))
            await response.write(b"data: [DONE]\n\n")

        async with in_front(aborts) as here:
            assert told(await streamed(here))[:3] == ("".join(WORDS[:8]), [], ["abort"])
            await here.until(lambda: here.metric("vllm_chill_responses_aborted_total") == 1)

    async def test_a_client_that_does_not_read_stops_the_engine(self) -> None:
        written = 0

        async def much(response: web.StreamResponse) -> None:
            nonlocal written
            for _ in range(400):
                await response.write(event("<" + "x" * 100_000) + event(NOW))
                written += 1

        async with in_front(much) as here:
            body = json.dumps(QUESTION | {"stream": True}).encode()
            reader, writer = await asyncio.open_connection(*here.address, limit=1 << 16)
            writer.write(HEAD % (CHAT.encode(), len(body)) + body)
            assert await settled(lambda: written) < 300
            out = await reader.read(-1)
            assert out.count(b'"tool_calls"') == written == 400
            writer.close()

    async def test_a_client_that_leaves_gives_its_lease_back(self) -> None:
        gone = asyncio.Event()

        async def endless(response: web.StreamResponse) -> None:
            try:
                while True:
                    await response.write(event(NOW[:20]))
                    await asyncio.sleep(0.01)
            finally:
                gone.set()

        async with in_front(endless) as here:
            response = await here.session.post(here.url + CHAT, json=QUESTION | {"stream": True})
            await response.content.readany()
            response.close()
            await here.until(lambda: here.controller.target.in_flight == 0)
            await asyncio.wait_for(gone.wait(), 5)


class TestADocument:
    @pytest.mark.parametrize("awake", [True, False])
    async def test_its_calls_are_calls(self, awake: bool) -> None:
        async with in_front(awake=awake, start=0.2, terms=SOON) as here:
            for _ in range(2):
                status, answer = await here.post(CHAT, json=QUESTION, headers={"Accept-Encoding": "gzip"})
                assert status == 200
                (choice,) = answer["choices"]
                assert choice["finish_reason"] == "tool_calls"
                assert choice["message"]["content"] == "I look.\n"
                assert [call["function"] for call in choice["message"]["tool_calls"]] == [
                    {"name": "now", "arguments": "{}"}
                ]

    async def test_it_says_how_long_it_is(self) -> None:
        async with in_front() as here:
            body = json.dumps(QUESTION).encode()
            head, _, answer = (await here.raw(HEAD % (CHAT.encode(), len(body)) + body)).partition(b"\r\n\r\n")
            length = re.search(rb"\r\nContent-Length: (\d+)", head)
            assert length is not None
            assert int(length[1]) == len(answer)
            assert b"chunked" not in head
            assert json.loads(answer)["choices"][0]["message"]["tool_calls"]

    async def test_on_other_paths_nothing_is_rewritten(self) -> None:
        async with in_front() as here:
            _, answer = await here.post("/v1/completions", json=QUESTION)
            assert answer["choices"][0]["message"]["content"] == "".join(WORDS)

    async def test_of_an_engine_that_is_silent_for_longer_than_it_may_only_the_head_counts(self) -> None:
        async def slow(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            await asyncio.sleep(0.3)
            await response.write(b'{"choices": []}')
            return response

        async with stage(slow, awake=True, fast=False, response=0.1, rewrite_for=tool_call_rewrite) as here:
            assert await here.post(CHAT, json=QUESTION) == (200, {"choices": []})
