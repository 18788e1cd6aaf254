"""OpenAI's own package before an engine whose model writes its calls as text: what its user sees of them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageFunctionToolCall

from tests.scenarios.stage import stage
from tests.sdk.demo import heard
from vllm_chill.proxy.tool_call_rewrite import tool_call_rewrite

TOOLS: list[ChatCompletionFunctionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "find_train",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "seats": {"type": "integer"}}},
        },
    }
]
HERMES = 'I look.\n\n<tool_call>\n{"name": "find_train", "arguments": {"city": "Ulm", "seats": 2}}\n</tool_call>'
QWEN = """I look.

<tool_call>
<function=find_train>
<parameter=city>
Ulm
</parameter>
<parameter=seats>
2
</parameter>
</function>
</tool_call>
"""


@asynccontextmanager
async def in_front_of(text: str, **more: Any) -> AsyncIterator[AsyncOpenAI]:
    """A client before a model that answers with this, twice if two choices are asked for."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked = await request.json()
        same: dict[str, Any] = {"id": "c", "created": 1, "model": "m"}
        indexes = range(asked.get("n") or 1)
        if not asked.get("stream"):
            message = {"role": "assistant", "content": text, "tool_calls": []}
            choices = [{"index": index, "message": message, "finish_reason": "stop"} for index in indexes]
            return web.json_response({**same, "object": "chat.completion", "choices": choices})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": token}, None) for token in re.findall(r"\s*\w+|\s*\W", text)]
        deltas += [({"content": ""}, "stop")]
        for delta, reason in deltas:
            for index in indexes:
                choice = {"index": index, "delta": delta, "finish_reason": reason}
                chunk = {**same, "object": "chat.completion.chunk", "choices": [choice]}
                await response.write(b"data: %b\n\n" % json.dumps(chunk).encode())
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        last = {**same, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        await response.write(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(last).encode())
        return response

    async with (
        stage(answer, fast=False, rewrite_for=tool_call_rewrite, **{"awake": True, **more}) as proxy,
        AsyncOpenAI(base_url=proxy.url + "/v1", api_key="sk-none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("text", [HERMES, QWEN], ids=["Hermes", "Qwen3-Coder"])
@pytest.mark.parametrize("n", [1, 2])
class TestCalls:
    async def test_streamed_they_are_added_up(self, text: str, n: int) -> None:
        async with (
            in_front_of(text, awake=False, start=0.3, terms=heard()) as client,
            client.chat.completions.stream(
                model="m", messages=[{"role": "user", "content": "?"}], tools=TOOLS, n=n
            ) as stream,
        ):
            done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
            final = await stream.get_final_completion()
        assert [event.name for event in done] == ["find_train"] * n
        assert final.usage is not None
        assert final.usage.total_tokens == 3
        ids = set()
        for choice in final.choices:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content == "I look.\n\n"
            assert choice.message.tool_calls is not None
            (call,) = choice.message.tool_calls
            assert json.loads(call.function.arguments) == {"city": "Ulm", "seats": 2}
            ids.add(call.id)
        assert len(ids) == n

    async def test_whole_they_are_there(self, text: str, n: int) -> None:
        async with in_front_of(text) as client:
            answer = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "?"}], tools=TOOLS, n=n
            )
        for choice in answer.choices:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content == "I look.\n\n"
            assert choice.message.tool_calls is not None
            (call,) = choice.message.tool_calls
            assert isinstance(call, ChatCompletionMessageFunctionToolCall)
            assert call.function.name == "find_train"
            assert json.loads(call.function.arguments) == {"city": "Ulm", "seats": 2}
            assert call.id.startswith("call_")
