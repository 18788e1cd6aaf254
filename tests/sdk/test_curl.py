"""The real curl before a sleeping engine: what somebody at a terminal sees of a hold."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.scenarios.stage import Stage, envelope
from tests.sdk.demo import QUESTION, WORDS, demo, heard, learn
from vllm_chill.core.target import Ready, Waking

CURL = shutil.which("curl")
CHAT = "/v1/chat/completions"
STREAM = json.dumps({**QUESTION, "stream": True})

pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not on this machine")


@asynccontextmanager
async def curl(here: Stage, *arguments: str, stdin: str | None = None) -> AsyncIterator[Process]:
    """A curl that asks for a completion; it is ended afterwards."""
    assert CURL is not None
    process = await asyncio.create_subprocess_exec(
        *(CURL, "--silent", "--show-error", "--max-time", "20", *arguments, here.url + CHAT),
        stdin=DEVNULL if stdin is None else PIPE, stdout=PIPE,
    )  # fmt: skip
    try:
        if process.stdin is not None:
            process.stdin.write((stdin or "").encode())
            process.stdin.close()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 10)).decode().rstrip("\n")


async def rest_of(process: Process) -> str:
    assert process.stdout is not None
    text = (await asyncio.wait_for(process.stdout.read(), 10)).decode()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    return text


def text_in(events: str) -> str:
    """The answer in the events of a stream, which ends as it should."""
    *data, end = [line.removeprefix("data: ") for line in events.split("\n") if line.startswith("data: ")]
    assert end == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in data)


async def test_a_stream_shows_phase_place_and_time_left_and_then_the_answer() -> None:
    async with demo(start=1, terms=heard()) as here:
        await learn(here)
        async with curl(here, "-N", "-d", STREAM) as first:
            await here.until(lambda: here.controller.target.waiting == 1)
            async with curl(here, "-N", "-d", STREAM) as second:
                comment = await line_of(second)
                assert here.phase_is(Waking), "it is shown while it is so"
                assert re.fullmatch(r": waking: starting the engine, position 2, about \ds left", comment), comment
                assert await line_of(second) == ""
                answers = [await rest_of(first), await rest_of(second)]
        for answer in answers:
            assert text_in(answer).startswith(WORDS)
        assert ": waking: starting the engine, position 1, about " in answers[0]


async def test_of_an_unknown_start_it_shows_the_time_that_has_gone() -> None:
    async with demo(terms=heard()) as here, curl(here, "-N", "-d", STREAM) as process:
        comment = await line_of(process)
        assert re.fullmatch(r": waking: starting the engine, position 1, \ds so far", comment), comment
        assert text_in(await rest_of(process)).startswith(WORDS)


async def test_json_from_a_pipe_is_held_in_silence_and_answered() -> None:
    async with (
        demo(terms=heard()) as here,
        curl(here, "-d", "@-", "-w", "%{http_code}", stdin=json.dumps(QUESTION)) as process,
    ):
        assert process.stdout is not None
        first = await asyncio.wait_for(process.stdout.read(1), 10)
        assert here.phase_is(Ready)
        answer = (first.decode() + await rest_of(process)).removesuffix("200")
        assert json.loads(answer)["choices"][0]["message"]["content"].startswith(WORDS)


async def test_a_failure_is_the_last_event_of_the_stream() -> None:
    async with demo(terms=heard()) as here:
        here.backend.fail_start = "torch.OutOfMemoryError: no memory"
        async with curl(here, "-N", "-d", STREAM) as process:
            *comments, error, done = [line for line in (await rest_of(process)).split("\n") if line]
        assert done == "data: [DONE]"
        assert "no memory" in envelope(error.removeprefix("data: "))["message"]
        assert comments
        assert all(comment.startswith(": ") for comment in comments)


async def test_its_own_retry_waits_for_as_long_as_it_is_told() -> None:
    async with demo() as here:
        await learn(here)
        tries = ("--retry", "3", "-H", "Prefer: wait=0", "-w", " %{http_code}")
        async with curl(here, "-d", json.dumps(QUESTION), *tries) as process:
            text = await rest_of(process)
        assert text.endswith(" 200")
        assert WORDS in text
        assert here.metric("vllm_chill_requests_total", route="proxied", method="POST", status="503") == 1
