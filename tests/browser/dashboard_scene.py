"""A proxy in the middle of a working day, for pictures and for tests of how the dashboard looks: four models, one that
is being started while some wait for it, one in use, one asleep, one that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.web.several import Several, several
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.cold_start import ColdStart, Outcome
from vllm_chill.core.keys import Key, Keys
from vllm_chill.core.past_starts import PastStarts
from vllm_chill.core.target import Failed, Progress, Ready, Stage, TargetRef, Waking
from vllm_chill.proxy.gate import Gate
from vllm_chill.web.doorkeeper import Doorkeeper

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

CODER, CHAT, EMBED, BIG = "qwen3-coder-30b", "llama-3.3-70b", "bge-m3", "deepseek-r1-distill-32b"
PAST = PastStarts.parse(
    '{"version":1,"whole":92.0,"stages":{"requested":[0.1,1],"scheduling":[4,1],"creating":[3,1],'
    '"starting":[21,1],"loading":[62,1],"listing":[2,1]}}'
)
CAUSE = (
    "the container ended with status 1; its last output was: Loading safetensors checkpoint shards: 43%\n"
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
)
OUTPUT = """\
INFO 11-22 09:41:07 [core.py:77] Initializing a V1 LLM engine (v0.32.0) with config: model='Qwen/Qwen3-Coder-30B-A3B'
INFO 11-22 09:41:09 [parallel_state.py:1076] rank 0 in world size 2 is assigned as DP rank 0, PP rank 0, TP rank 0
INFO 11-22 09:41:11 [gpu_model_runner.py:2392] Starting to load model Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8...
INFO 11-22 09:41:12 [cuda.py:288] Using Flash Attention backend on V1 engine.
Loading safetensors checkpoint shards:  63% Completed | 5/8 [00:24<00:14,  4.81s/it]
"""


def model(served: str, **more: Any) -> ModelEntry:
    """A model that is served by a name of its own."""
    return ModelEntry(served, TargetRef("ai-apps", f"vllm-{served}"), served, f"weights/{served}", **more)


MODELS = (
    model(CODER, aliases=("coder",), group="rtx3090", gpus=2, created="1"),
    model(CHAT, gpus=4, created="2"),
    model(EMBED, created="3"),
    model(BIG, group="rtx3090", gpus=2, created="4"),
)


def start(
    ago: float, now: float, outcome: Outcome, *stages: tuple[Stage, float], cause: str | None = None
) -> ColdStart:
    """A start that began so long ago and had these stages, one after the other."""
    at = now - ago
    one = ColdStart.begun(at)
    for stage, seconds in stages:
        one = one.moved(Progress(stage), at)
        at += seconds
    return one.over(outcome, at, cause)


def usual(ago: float, now: float, load: float, pull: float = 0.0) -> ColdStart:
    """A start as most are."""
    stages = [(Stage.REQUESTED, 0.3), (Stage.SCHEDULING, 4.1), (Stage.PULLING, pull), (Stage.CREATING, 2.7)]
    rest = [(Stage.STARTING, 20.5), (Stage.LOADING, load), (Stage.LISTING, 1.2), (Stage.ANSWERING, 0.9)]
    return start(ago, now, Outcome.READY, *(one for one in (*stages, *rest) if one[1]))


SAVINGS: Mapping[str, Any] = {
    "since": "2026-11-08T00:00:00Z",
    "currency": "USD",
    "gpu_hour_price": 2.5,
    "total": {
        "asleep_gpu_hours": 2290.4, "awake_gpu_hours": 734.2, "saved": 5726.0, "waited_seconds": 8160.0,
        "callers_waited": 212, "wakes": 97,
    },
    "models": [
        {
            "target": f"ai-apps/vllm-{name}", "model": name, "gpus": gpus,
            "total": {
                "asleep_gpu_hours": asleep, "awake_gpu_hours": awake, "saved": asleep * 2.5, "waited_seconds": waited,
                "callers_waited": callers, "wakes": wakes,
            },
            "days": [
                {
                    "day": f"2026-11-{day:02}", "asleep_gpu_hours": asleep / 14 * (0.5 + (day * 7 % 10) / 10),
                    "awake_gpu_hours": awake / 14, "saved": 1.0, "waited_seconds": 1.0, "callers_waited": 1, "wakes": 1,
                }
                for day in range(9, 23)
            ],
        }
        for name, gpus, asleep, awake, waited, callers, wakes in (
            (CODER, 2, 512.6, 159.4, 3912.0, 104, 44), (CHAT, 4, 903.1, 441.0, 2520.0, 61, 21),
            (EMBED, 1, 289.0, 46.9, 312.0, 33, 27), (BIG, 2, 585.7, 86.9, 1416.0, 14, 5),
        )
    ],
}  # fmt: skip


async def tell(page: Page, *, savings: Mapping[str, Any] | None = SAVINGS, output: str | None = OUTPUT) -> None:
    """Have the page be told this of savings and of the engines' output; None: the proxy has no such route."""
    missing = {"error": {"message": "there is nothing.", "type": "x", "code": "not_found", "param": None}}

    async def tell_savings(route: Route) -> None:
        await route.fulfill(status=404 if savings is None else 200, json=missing if savings is None else savings)

    async def tell_output(route: Route) -> None:
        if output is None:
            await route.fulfill(status=404, json=missing)
        else:
            body = CAUSE if BIG in route.request.url else output
            await route.fulfill(status=200, content_type="text/plain; charset=utf-8", body=body)

    await page.route("**/proxy/savings*", tell_savings)
    await page.route("**/proxy/logs*", tell_output)


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Several]:
    """The proxy, as it is then. Three requests wait for CODER and two are answered by CHAT."""
    keys = [Key(name, hashlib.sha256(name.encode()).digest()) for name in ("ci", "ada", "open-webui")]
    gate = Gate(Keys(keys), asyncio.get_running_loop().time)
    async with several(MODELS, awake=[CHAT], default=CHAT, start=3600, doorkeeper=Doorkeeper(gate), hold=120) as s:
        await asyncio.sleep(0.05)
        for served in s.directory:
            served.starts.starts = replace(served.starts.starts, past=PAST)
        await _fail(s)
        _remember(s)
        asked = await _wait(s)
        leases = [s.controller(CHAT).lease_now() for _ in range(2)]
        try:
            yield s
        finally:
            for lease in leases:
                if lease is not None:
                    lease.release()
            for request in asked:
                request.cancel()
            await asyncio.wait(asked)


async def _fail(s: Several) -> None:
    backend = s.backends[BIG]
    backend.start_seconds, backend.fail_start = 0.01, CAUSE
    await s.controller(BIG).wake(wait=False)
    await s.until(BIG, Failed)


def _remember(s: Several) -> None:
    now = s.controller(CODER).now()
    for name, starts in {
        CODER: [usual(93600, now, 64.0, 214.0), usual(29000, now, 66.1), usual(10400, now, 58.9)],
        CHAT: [
            start(61000, now, Outcome.STOPPED, (Stage.REQUESTED, 0.4), (Stage.SCHEDULING, 96.0), cause="stopped"),
            usual(7900, now, 121.0),
        ],
        EMBED: [usual(5200, now, 6.2)],
    }.items():
        served = s.directory.find(name)
        assert served is not None
        served.starts.newest.extend(starts)
        served.starts.starts = replace(served.starts.starts, last=starts[-1])


async def _wait(s: Several) -> list[asyncio.Task[Any]]:
    controller, backend = s.controller(CODER), s.backends[CODER]
    asked = []
    clock = controller._clock
    for ago, key, path in (
        (48, "ci", "/v1/chat/completions"),
        (31, "ada", "/v1/chat/completions"),
        (9, "open-webui", "/v1/completions"),
    ):
        controller._clock = lambda ago=ago: clock() - ago  # type: ignore[misc]
        headers = {"Authorization": f"Bearer {key}"}
        asked.append(asyncio.create_task(s.post(path, json={"model": CODER}, headers=headers)))
        count = len(asked)
        async with asyncio.timeout(5):
            while controller.target.waiting < count:  # noqa: ASYNC110 - it comes over a socket
                await asyncio.sleep(0.005)
        if count == 1:
            await s.until(CODER, Waking)
            async with asyncio.timeout(5):
                while backend.seen.replicas != 1:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.005)
    controller._clock = lambda: clock() - 26
    controller.observed(replace(backend.seen, progress=Progress(Stage.LOADING)))
    controller._clock = clock
    assert isinstance(s.controller(CHAT).target.phase, Ready)
    return asked
