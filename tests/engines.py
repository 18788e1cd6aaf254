"""Real engines for tests, and how to ask them. Fixtures here are for a conftest to import."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.engine import tiny_gguf

_SERVE_LLAMA_CPP = Path(__file__).parent / "engine" / "serve_llama_cpp.py"


@pytest.fixture(scope="session")
def llama_cpp_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of llama.cpp's own server with a tiny model called "tiny", ready in a fraction of a second.

    `{port}` stands where its port goes. At temperature 0 its answers are the same on each start.
    """
    model = tmp_path_factory.mktemp("llama.cpp") / "tiny.gguf"
    tiny_gguf.make(model)
    return [sys.executable, str(_SERVE_LLAMA_CPP), str(model), "{port}"]


def running(argument: str) -> list[int]:
    """The process ids of the commands that run with this argument, a path of this test run say."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if argument in _arguments(path)]


def _arguments(cmdline: Path) -> list[str]:
    try:
        return cmdline.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []  # it has ended meanwhile


def question(prompt: str, *, max_tokens: int = 32, model: str = "tiny", **more: Any) -> dict[str, Any]:
    """The body of a chat completion that has one answer only."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "seed": 1, **more}


async def ask(url: str, body: dict[str, Any]) -> str:
    """The answer of the engine or proxy at `url`, as a whole."""
    async with aiohttp.ClientSession(url) as session, session.post("/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        content: str = (await response.json())["choices"][0]["message"]["content"]
        return content


async def ask_streamed(url: str, body: dict[str, Any]) -> list[str]:
    """The pieces of the answer as they were streamed; raises AssertionError if the stream does not end with [DONE]."""
    async with (
        aiohttp.ClientSession(url) as session,
        session.post("/v1/chat/completions", json={**body, "stream": True}) as response,
    ):
        response.raise_for_status()
        assert response.content_type == "text/event-stream"
        *events, end, rest = (await response.text()).split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]
