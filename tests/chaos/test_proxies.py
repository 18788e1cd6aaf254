"""Two proxies under load, of which one fails, is cut off or is replaced: the target stays awake for as long as anybody
uses it, each change of its scale is one write, and nobody notices but the clients of a proxy that is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.chaos.load import Load
from tests.chaos.stage import Proxy, Stage, answered, now
from tests.chaos.table import Row, came, latency
from tests.chaos.test_api_server import NOTICED_P50, NOTICED_P99
from tests.cluster.peers import peers_of, until_they_know

_IDLE = ("--idle-timeout", "4s")
_FAILURE_SECONDS = 25.0
"""Longer than a Lease is good for, 15 s, and shorter than a proxy is waited for, 30 s."""
_LED_SECONDS = 20.0
_FORGOTTEN_SECONDS = 50.0
_BROKEN = {"reset", "cut", "refused"}
"""What the clients of a proxy may see that is killed."""


@asynccontextmanager
async def killed(proxy: Proxy) -> AsyncIterator[None]:
    os.kill(proxy.serving.process.pid, signal.SIGKILL)
    yield


@asynccontextmanager
async def hung(proxy: Proxy) -> AsyncIterator[None]:
    os.kill(proxy.serving.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(proxy.serving.process.pid, signal.SIGCONT)


@asynccontextmanager
async def parted(proxy: Proxy) -> AsyncIterator[None]:
    """Parted from the API server, not from its clients and the engine."""
    proxy.network.hold()
    try:
        yield
    finally:
        proxy.network.release()


@dataclass(frozen=True)
class Failure:
    """What happens to one of two proxies: to the one that leads, or to the other. Who is killed has no clients then."""

    name: str
    of: Callable[[Proxy], AbstractAsyncContextManager[None]]
    leads: bool

    @property
    def ends_it(self) -> bool:
        return self.of is killed


FAILURES = [
    Failure("the leader is killed", killed, leads=True),
    Failure("the other is killed", killed, leads=False),
    Failure("the leader hangs", hung, leads=True),
    Failure("the leader is parted from the API server", parted, leads=True),
    Failure("the other is parted from the API server", parted, leads=False),
]


async def leads_after(proxy: Proxy) -> float:
    """How long it takes until a proxy leads."""
    begun = now()
    async with asyncio.timeout(_FORGOTTEN_SECONDS):
        while not (await peers_of(proxy.serving)).leads:  # noqa: ASYNC110 - another process says so
            await asyncio.sleep(0.1)
    return now() - begun


@pytest.mark.parametrize("failure", [pytest.param(failure, id=failure.name) for failure in FAILURES])
async def test_one_of_two_proxies_fails(failure: Failure, stage: Stage, rows: list[Row]) -> None:
    target = (await stage.targets("shared", awake=("shared",)))["shared"]
    leader, other = await stage.two(target, *_IDLE)
    failing, staying = (leader, other) if failure.leads else (other, leader)
    for proxy in (failing, staying):
        assert (await answered(proxy.url))[0] == 200

    theirs, ours = Load(failing.url, per_second=20), Load(staying.url, per_second=20)
    async with AsyncExitStack() as loads:
        # The clients of one that is killed are with the other soon: a Service knows who is gone.
        clients = await loads.enter_async_context(AsyncExitStack())
        await loads.enter_async_context(ours)
        await clients.enter_async_context(theirs)
        await asyncio.sleep(4)
        theirs.interval = ours.interval = "during"
        begun = now()
        async with failure.of(failing):
            if failure.ends_it:
                await asyncio.sleep(0.5)
                await clients.aclose()
            led = f"{await leads_after(staying):.0f} s" if failure.leads else "it leads"
            await asyncio.sleep(begun + _FAILURE_SECONDS - now())
        theirs.interval = ours.interval = "after"
        await asyncio.sleep(6)
        assert await stage.scaled() == 0

    used = now()
    await stage.replicas_become(target, 0, _FORGOTTEN_SECONDS)
    slept = now() - used
    assert await stage.scaled() == 1
    alive = [staying] if failure.ends_it else [staying, failing]
    assert [status for status, _, _ in await asyncio.gather(*(answered(one.url) for one in alive))] == [200] * len(
        alive
    )
    assert await stage.scaled() == 2

    cells = {**came(ours), "its failed": came(theirs)["failed"], "during": latency(ours.latency("during"))}
    rows.append(Row("proxies", failure.name, {**cells, "leads after": led, "writes": "0", "sleeps": f"{slept:.0f} s"}))
    assert ours.failures() == {}
    assert set(theirs.failures()) <= (_BROKEN if failure.ends_it else set())
    assert ours.latency("during").p50 < ours.latency("before").p50 + NOTICED_P50
    assert ours.latency("during").p99 < ours.latency("before").p99 + NOTICED_P99


async def test_both_are_called_at_zero(stage: Stage, rows: list[Row]) -> None:
    target = (await stage.targets("shared", load_seconds=3))["shared"]
    proxies = await stage.two(target, *_IDLE)
    async with AsyncExitStack() as stack:
        loads = [await stack.enter_async_context(Load(proxy.url, per_second=20)) for proxy in proxies]
        await proxies[1].until(lambda status: status["phase"] == "ready")
        for load in loads:
            load.interval = "during"
        await asyncio.sleep(15)
        assert await stage.scaled() == 1
    used = now()
    await stage.replicas_become(target, 0)
    slept = now() - used
    assert await stage.scaled() == 2
    assert [load.failures() for load in loads] == [Counter(), Counter()]
    cells = {**came(*loads), "its failed": "-", "during": latency(loads[0].latency("during"))}
    rows.append(
        Row(
            "proxies",
            "both are called at zero",
            {**cells, "leads after": "-", "writes": "1", "sleeps": f"{slept:.0f} s"},
        )
    )


async def test_a_rolling_update(stage: Stage, rows: list[Row]) -> None:
    """One that has 50 callers held, and then the other, that has 50 streams, are replaced."""
    target = (await stage.targets("shared", load_seconds=6))["shared"]
    old = await stage.two(target, *_IDLE)
    held = [asyncio.create_task(whole_stream(old[0], 100)) for _ in range(50)]
    await old[0].until(lambda status: status["waiting"] == 50)

    async def replaced(proxy: Proxy) -> Proxy:
        new = await stage.proxy(target, *_IDLE)
        proxy.serving.process.send_signal(signal.SIGTERM)
        return new

    load = Load(old[1].url, per_second=20)
    async with load:
        first = await replaced(old[0])
        assert Counter(await asyncio.gather(*held)) == {"whole": 50}
        assert await old[0].serving.process.wait() == 0
    # A Service sends nobody new to one that ends, so the load has gone before.
    streams = [asyncio.create_task(whole_stream(old[1], 300)) for _ in range(50)]
    await old[1].until(lambda status: status["in_flight"] == 50)
    later = Load(first.url, per_second=20)
    async with later:
        second = await replaced(old[1])
        later.interval = "during"
        assert Counter(await asyncio.gather(*streams)) == {"whole": 50}
        assert await old[1].serving.process.wait() == 0
        later.interval = "after"
        begun = now()
        await until_they_know(first.serving, second.serving)
        led = f"{now() - begun:.0f} s"
    assert await stage.scaled() == 1
    used = now()
    await stage.replicas_become(target, 0)
    slept = now() - used
    assert await stage.scaled() == 2
    assert (load.failures(), later.failures()) == ({}, {})
    cells = {
        **came(load, later),
        "its failed": "0 of 50 held and 50 streams",
        "during": latency(later.latency("during")),
    }
    rows.append(
        Row("proxies", "both are replaced", {**cells, "leads after": led, "writes": "1", "sleeps": f"{slept:.0f} s"})
    )


async def whole_stream(proxy: Proxy, tokens: int) -> str:
    """What became of one streamed request."""
    try:
        status, body, _ = await answered(proxy.url, tokens=tokens, stream=True)
    except OSError as error:
        return type(error).__name__
    whole = status == 200 and body.count(b'"delta"') == tokens and body.endswith(b"data: [DONE]\n\n")
    return "whole" if whole else str(status)
