"""A proxy in this process before an engine that speaks OpenAI's API, and what there is to ask it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

from aiohttp import web

from tests.scenarios.stage import Stage, stage
from vllm_chill.core.target import Ready
from vllm_chill.demo_engine import DemoEngine, Refused
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold

WORDS = "This is vllm-chill's demo engine, not a model"
QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "Are you there?"}]}


def heard(json: JsonHold = JsonHold.SILENT) -> HoldOptions:
    """A hold of which a client hears soon and often."""
    return HoldOptions(seconds=10.0, beat_after_seconds=0.1, beat_seconds=0.05, json=json)


@contextlib.asynccontextmanager
async def demo(*, start: float = 0.5, **more: Any) -> AsyncIterator[Stage]:
    """A stage whose upstream is the demo engine, which takes so long to start; `more` as a stage has it."""
    engine = DemoEngine("demo", tokens_per_second=1000)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await engine.chat(cast("web.Request", request))
        except Refused as refused:
            return web.json_response(refused.envelope, status=refused.status)

    async with stage(answer, start=start, **more) as here:
        yield here


async def learn(here: Stage) -> None:
    """Have the proxy see one start, so that it knows how long one takes, and sleep again."""
    assert (await here.post("/v1/chat/completions", json=QUESTION))[0] == 200
    assert (await here.post("/proxy/operations/stop"))[0] == 200
    assert not here.phase_is(Ready)
