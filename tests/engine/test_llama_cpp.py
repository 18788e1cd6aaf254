"""The real engine of the ordinary test run, asked directly: what the scenarios may rely on."""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.engines import ask, ask_streamed, question
from vllm_chill.core.engine_page import engine_sample


@asynccontextmanager
async def engine(command: list[str]) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    argv = [argument.replace("{port}", str(port)) for argument in command]
    process = await asyncio.create_subprocess_exec(*argv, stderr=DEVNULL, stdout=PIPE)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == f"llama.cpp listens on http://127.0.0.1:{port}\n".encode()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


async def test_it_speaks_as_vllm_does(llama_cpp_command: list[str]) -> None:
    async with engine(llama_cpp_command) as url, aiohttp.ClientSession(url) as session:
        async with session.get("/health") as health:
            assert health.status == 200
        async with session.get("/v1/models") as models:
            assert [model["id"] for model in (await models.json())["data"]] == ["tiny"]
        async with session.get("/metrics") as metrics:
            sample = engine_sample(await metrics.read())
    assert sample is not None
    assert (sample.running, sample.waiting, sample.generation_tokens, sample.prompt_tokens) == (0, 0, 0, 0)


async def test_its_answer_is_the_same_whole_and_streamed_and_on_each_start(llama_cpp_command: list[str]) -> None:
    answers = []
    for _ in range(2):
        async with engine(llama_cpp_command) as url:
            answers.append(await ask(url, question("Why is the sky blue?")))
            answers.append("".join(await ask_streamed(url, question("Why is the sky blue?"))))
            assert await ask(url, question("Why is the grass green?")) not in answers
    assert len(set(answers)) == 1
    assert len(answers[0]) >= 32
    assert answers[0].isprintable()
