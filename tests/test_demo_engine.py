from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest


@contextmanager
def demo_engine(*flags: str) -> Iterator[int]:
    """Runs the demo engine as users get it and yields its port, on which nobody may listen yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    argv = [sys.executable, "-m", "vllm_chill.demo_engine", "--port", str(port), *flags]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        yield port
        process.terminate()
        assert process.stderr is not None
        assert "demo engine" in process.stderr.read()
    assert process.returncode == 0


def refuses(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)):
            return False
    except ConnectionRefusedError:
        return True


def wait_for(port: int) -> float:
    began = time.monotonic()
    while refuses(port):
        assert time.monotonic() - began < 20
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def fast_engine() -> Iterator[str]:
    with demo_engine("--load-seconds", "0", "--tokens-per-second", "1000") as port:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def engine(fast_engine: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fast_engine) as session:
        yield session


async def post(engine: aiohttp.ClientSession, path: str, body: object) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with engine.post(path, data=data) as response:
        return response.status, await response.json()


async def streamed(engine: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with engine.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        *events, end, rest = (await response.text()).split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def metrics(engine: aiohttp.ClientSession) -> dict[str, float]:
    async with engine.get("/metrics") as response:
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def until_running(engine: aiohttp.ClientSession, answers: int) -> None:
    while (await metrics(engine))[RUNNING] != answers:  # noqa: ASYNC110 - another process can only be asked
        await asyncio.sleep(0.01)


RUNNING = 'vllm:num_requests_running{engine="0",model_name="demo"}'
HELLO = {"model": "demo", "messages": [{"role": "user", "content": "Hello there"}]}


async def test_it_says_that_it_is_a_demo_wherever_it_is_asked(engine: aiohttp.ClientSession) -> None:
    async with engine.get("/health") as health:
        assert health.status == 200
    async with engine.get("/version") as version:
        assert "demo engine" in (await version.json())["version"]
    async with engine.get("/v1/models") as models:
        (model,) = (await models.json())["data"]
    assert (model["id"], model["owned_by"]) == ("demo", "vllm-chill-demo")
    _, answer = await post(engine, "/v1/chat/completions", HELLO)
    assert "vllm-chill's demo engine, not a model" in answer["choices"][0]["message"]["content"]


async def test_health_knows_no_head_as_in_vllm(engine: aiohttp.ClientSession) -> None:
    async with engine.head("/health") as health:
        assert health.status == 405


async def test_a_chat_is_answered_whole_and_streamed_alike(engine: aiohttp.ClientSession) -> None:
    status, whole = await post(engine, "/v1/chat/completions", HELLO)
    assert status == 200
    assert whole["object"] == "chat.completion"
    assert '"Hello there"' in whole["choices"][0]["message"]["content"]
    assert whole["choices"][0]["finish_reason"] == "stop"

    chunks = await streamed(engine, "/v1/chat/completions", HELLO | {"stream_options": {"include_usage": True}})
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    *pieces, last = chunks
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert last["usage"]["completion_tokens"] == len(pieces) - 1


async def test_a_completion_is_answered_whole_and_streamed_alike(engine: aiohttp.ClientSession) -> None:
    body = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 7}
    _, whole = await post(engine, "/v1/completions", body)
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11}
    chunks = await streamed(engine, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["length"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_that_ignores_its_end_goes_on_to_max_tokens(engine: aiohttp.ClientSession, name: str) -> None:
    _, answer = await post(engine, "/v1/chat/completions", HELLO | {name: 200, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 200
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        pytest.param("/v1/chat/completions", HELLO | {"model": "x"}, 404, "NotFoundError", "model", id="unknown model"),
        pytest.param("/v1/completions", b"{", 400, "BadRequestError", None, id="bad JSON"),
        pytest.param("/v1/completions", b"\xff", 400, "BadRequestError", None, id="not even text"),
        pytest.param("/v1/completions", [], 400, "BadRequestError", None, id="not an object"),
        pytest.param("/v1/completions", {}, 400, "BadRequestError", "prompt", id="no prompt"),
        pytest.param("/v1/chat/completions", {}, 400, "BadRequestError", "messages", id="no messages"),
        pytest.param(
            "/v1/chat/completions", HELLO | {"max_tokens": 0}, 400, "BadRequestError", "max_tokens", id="no tokens"
        ),
    ],
)
async def test_a_bad_request_gets_the_envelope(
    engine: aiohttp.ClientSession, path: str, body: object, status: int, kind: str, param: str | None
) -> None:
    got, answer = await post(engine, path, body)
    assert got == status
    assert answer["error"]["message"]
    assert (answer["error"]["type"], answer["error"]["param"], answer["error"]["code"]) == (kind, param, status)


async def test_a_prompt_can_be_tokenized(engine: aiohttp.ClientSession) -> None:
    _, one = await post(engine, "/tokenize", {"model": "demo", "prompt": "so it is so"})
    assert one["count"] == 4
    assert one["tokens"][0] == one["tokens"][3]
    assert (await post(engine, "/tokenize", HELLO))[1]["count"] == 2


async def test_answers_are_counted_while_they_run_and_when_they_end(engine: aiohttp.ClientSession) -> None:
    done = 'vllm:request_success_total{engine="0",finished_reason="length",model_name="demo"}'
    before = await metrics(engine)
    body = HELLO | {"max_tokens": 300, "ignore_eos": True, "stream": True}
    async with engine.post("/v1/chat/completions", json=body) as response:
        await response.content.readline()
        assert (await metrics(engine))[RUNNING] == 1
        await response.read()
    after = await metrics(engine)
    assert after[RUNNING] == 0
    assert after[done] == before[done] + 1


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_hangs_up_stops_its_answer(engine: aiohttp.ClientSession, stream: bool) -> None:
    before = await metrics(engine)
    body = HELLO | {"max_tokens": 4000, "ignore_eos": True, "stream": stream}
    asking = asyncio.create_task(post(engine, "/v1/chat/completions", body))
    async with asyncio.timeout(2):
        await until_running(engine, 1)
        asking.cancel()
        await until_running(engine, 0)
    assert await metrics(engine) == before


def test_nobody_listens_until_it_has_loaded() -> None:
    with demo_engine("--load-seconds", "0.5") as port:
        assert wait_for(port) >= 0.5
