"""An API server that fails in every way, under load: who is warm notices nothing, nobody is put to sleep for what is no
longer known to be so, who waits hears the cause, and the return needs no restart.

Four targets, each with two proxies of its own: `warm` has the load; `idle` falls idle within the failure; `kept` falls
idle within it too, and is in use again before it ends; `cold` has nobody, and two callers come within the failure: one
whose hold ends before it does, and at the other proxy one whose hold lasts.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.chaos import sick_server
from tests.chaos.load import Load
from tests.chaos.sick_server import GONE, Sickness
from tests.chaos.stage import Proxy, Stage, answered, now
from tests.chaos.table import Row, load_cells
from tests.cluster.api_server import answers, away

FAILURE_SECONDS = 15.0
IDLE_SECONDS = 4.0
RECOVERY_SECONDS = 10.0
NOTICED_P50, NOTICED_P99 = 0.02, 0.5
"""How much longer warm requests may take meanwhile, in seconds; one that waited for an API server takes seconds."""

_BEFORE_SECONDS = 3
_AFTER_SECONDS = 3.0


Happening = Callable[[Stage], AbstractAsyncContextManager[None]]
"""What happens to the API server while the block lasts, once for all proxies; it ends when the server can be asked."""


@asynccontextmanager
async def killed(stage: Stage) -> AsyncIterator[None]:
    async with away(stage.control_plane):
        yield
    await answers(stage.cluster.api)


@asynccontextmanager
async def hung(stage: Stage) -> AsyncIterator[None]:
    server = int((stage.control_plane / "apiserver.pid").read_text())
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server, signal.SIGCONT)


@asynccontextmanager
async def parted(stage: Stage) -> AsyncIterator[None]:
    for proxy in stage.proxies:
        proxy.network.hold()
    try:
        yield
    finally:
        for proxy in stage.proxies:
            proxy.network.release()


@asynccontextmanager
async def silent_watches(stage: Stage) -> AsyncIterator[None]:
    for proxy in stage.proxies:
        proxy.network.freeze()
    yield
    for proxy in stage.proxies:
        proxy.network.cut()


@asynccontextmanager
async def expired(stage: Stage) -> AsyncIterator[None]:
    """Each proxy's token is refused until its file has another one."""
    new = [proxy.token for proxy in stage.proxies]
    for proxy in stage.proxies:
        (proxy.folder / "token").write_text("a token that has expired")
        proxy.api.sickness = sick_server.refusing_tokens_but("")
        proxy.api.end_watches()
    yield
    for proxy, token in zip(stage.proxies, new, strict=True):
        proxy.api.sickness = sick_server.refusing_tokens_but(token)
        (proxy.folder / "token").write_text(token)


def ill(sickness: Callable[[], Sickness], last_words: bytes = b"") -> Happening:
    """An API server that has a sickness, for all proxies; watches that are open end with its beginning."""

    @asynccontextmanager
    async def being_ill(stage: Stage) -> AsyncIterator[None]:
        stage.fall_ill(sickness(), last_words=last_words)
        yield
        stage.fall_ill(None)

    return being_ill


@dataclass(frozen=True)
class Failure:
    """One way to fail. `cause` is what a caller is told whose hold ends within it; None: calls go through, if with
    trouble, so callers are served and what is idle is put to sleep.
    """

    name: str
    of: Happening
    cause: str | None


FAILURES = [
    Failure("killed", killed, "cannot be reached"),
    Failure("hung (SIGSTOP)", hung, r"did not answer within 10 s|took no connection within 5 s"),
    Failure("slow: 5 s a call", ill(lambda: sick_server.slow(5)), None),
    Failure(
        "429 with Retry-After",
        ill(lambda: sick_server.answering(429, "too many requests", Retry_After="1")),
        "could not be scaled just now: too many requests",
    ),
    Failure("500", ill(lambda: sick_server.answering(500, "etcdserver: leader changed")), r"\(500\).*leader changed"),
    Failure("503", ill(lambda: sick_server.answering(503, "apiserver is shutting down")), r"\(503\).*shutting down"),
    Failure("watches end with 410", ill(sick_server.forgetting, GONE), None),
    Failure("watches silent", silent_watches, None),
    Failure(
        "409 on the scale",
        ill(lambda: sick_server.answering(409, "the object has been modified", only="PATCH /scale")),
        "could not be scaled just now: the object has been modified",
    ),
    Failure("token expired", expired, "does not accept the credentials"),
    Failure("parted from it", parted, r"did not answer within 10 s|took no connection within 5 s"),
    Failure("answers of nonsense", ill(sick_server.nonsense), "."),
]


async def said_at_the_end_of_its_hold(proxy: Proxy, hold_seconds: int) -> str:
    """What a caller is told whose hold ends before the target can be woken."""
    status, body, _ = await answered(proxy.url, hold=f"{hold_seconds}s")
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (503, "model_waking"), body
    return str(error["message"])


async def seen_again(stage: Stage, proxies: tuple[Proxy, ...]) -> float:
    """How long it takes until all of them see what somebody else writes."""
    begun = now()
    await stage.cluster.scale(2, proxies[0].target.name)
    await asyncio.gather(*(proxy.until(lambda target: target["replicas"] == 2, 60) for proxy in proxies))
    return now() - begun


@pytest.mark.parametrize("failure", [pytest.param(failure, id=failure.name) for failure in FAILURES])
async def test_a_failing_api_server(failure: Failure, stage: Stage, rows: list[Row]) -> None:
    idle_flags = ("--idle-timeout", f"{IDLE_SECONDS:g}s")
    targets = await stage.targets("warm", "idle", "kept", "cold", awake=("warm", "idle", "kept"))
    async with asyncio.TaskGroup() as starting:
        flags = {"idle": idle_flags, "kept": idle_flags}
        started = [starting.create_task(stage.two(one, *flags.get(name, ()))) for name, one in targets.items()]
    warm, idle, kept, cold = (task.result() for task in started)
    for proxy in (*warm, *idle, *kept):
        assert (await answered(proxy.url))[0] == 200
    for proxy in cold:
        await proxy.until(lambda target: target["phase"] == "asleep")
    generation = await stage.cluster.generation("kept")

    in_use = Load(*(proxy.url for proxy in kept), per_second=1, streams=1, tokens=150)
    async with Load(*(proxy.url for proxy in warm)) as load, AsyncExitStack() as using, asyncio.TaskGroup() as tasks:
        for second in range(_BEFORE_SECONDS):
            await asyncio.sleep(1)
            for pair in (idle, kept):
                assert (await answered(pair[second % 2].url))[0] == 200
        load.interval = "during"
        begun = now()
        async with failure.of(stage):
            if failure.cause is None:
                early = tasks.create_task(answered(cold[0].url))
            else:
                told = tasks.create_task(said_at_the_end_of_its_hold(cold[0], 12))
            await asyncio.sleep(begun + IDLE_SECONDS + 3 - now())
            if failure.cause is not None:
                # Both are idle, and cannot be put to sleep: who comes now is served at once.
                for proxy in (*idle, *kept):
                    status, _, seconds = await answered(proxy.url)
                    assert status == 200
                    assert seconds < 1, f"{proxy.target.name}: {seconds:.1f} s"
                await using.enter_async_context(in_use)
                await asyncio.sleep(begun + 13 - now())
                late = tasks.create_task(answered(cold[1].url))
            await asyncio.sleep(begun + FAILURE_SECONDS - now())
            assert [proxy.serving.process.returncode for proxy in stage.proxies] == [None] * 8
            if failure.cause is not None:
                assert re.search(failure.cause, await told), told.result()
                assert not any(proxy.said("asleep") for proxy in idle)
                assert not late.done()
        load.interval = "after"
        returned = now()
        recoveries = await asyncio.gather(
            stage.replicas_become(cold[0].target, 1),
            stage.replicas_become(idle[0].target, 0),
            seen_again(stage, warm),
        )
        status, body, _ = await (early if failure.cause is None else late)
        assert status == 200, body
        assert failure.cause is None or await stage.cluster.generation("kept") == generation
        await asyncio.sleep(max(0, returned + _AFTER_SECONDS - now()))

    woken, slept, seen = (f"{seconds:.1f}" for seconds in recoveries)
    rows.append(Row("api server", failure.name, {**load_cells(load), "wakes": woken, "sleeps": slept, "sees": seen}))
    assert (load.failures(), in_use.failures()) == ({}, {})
    assert max(recoveries) < RECOVERY_SECONDS
    before, during = load.latency("before"), load.latency("during")
    assert during.p50 < before.p50 + NOTICED_P50
    assert during.p99 < before.p99 + NOTICED_P99
