"""A real engine as the scale target of the process backend: from nothing to an answer and back, twice."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from tests.adapters.contract import Seen, is_gone, is_ready
from tests.engines import ask, ask_streamed, question, running
from tests.probing import probed
from vllm_chill.adapters.process import Command, ProcessBackend
from vllm_chill.core.target import TargetRef
from vllm_chill.proxy.upstream import UpstreamPool

REF = TargetRef("local", "llama.cpp")


async def test_it_starts_answers_stops_and_leaves_nothing_again_and_again(llama_cpp_command: list[str]) -> None:
    model = llama_cpp_command[-2]
    lines: list[str] = []
    seen, answers = Seen(), []
    async with (
        ProcessBackend(Command(tuple(llama_cpp_command)), lines.append) as process,
        aclosing(UpstreamPool()) as pool,
    ):
        backend = probed(process, pool)
        watching = asyncio.create_task(backend.watch(REF, seen))
        for _ in range(2):
            assert running(model) == []
            await backend.scale(REF, 1)
            (endpoint,) = (await seen.until(is_ready)).endpoints
            answers.append(await ask(f"http://{endpoint}", question("Are you awake?")))
            answers.append("".join(await ask_streamed(f"http://{endpoint}", question("Are you awake?"))))
            assert len(running(model)) == 2, "the engine and its guard"
            await backend.scale(REF, 0)
            await seen.until(is_gone)
        watching.cancel()
    assert running(model) == []
    assert len(set(answers)) == 1
    assert lines.count("llama.cpp was told to stop") == 2
    assert all(observation.failure is None for observation in seen.observations)


async def test_a_model_that_is_not_there_is_explained_by_the_engine(llama_cpp_command: list[str]) -> None:
    interpreter, script, model, port = llama_cpp_command
    seen = Seen()
    async with ProcessBackend(Command((interpreter, script, f"{model}.away", port)), lambda _: None) as backend:
        watching = asyncio.create_task(backend.watch(REF, seen))
        await backend.scale(REF, 1)
        failed = await seen.until(lambda o: o.failure is not None)
        watching.cancel()
    assert failed.failure is not None
    assert failed.failure.startswith("the command exited with status 1; its last output was: ")
    assert "tiny.gguf.away" in failed.failure
