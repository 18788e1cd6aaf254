"""Several proxies in front of one Deployment, on a real API server: one write that counts, and nobody is cut."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from tests.cluster.cluster import Cluster
from tests.cluster.peers import LEASE, until_they_know
from tests.cluster.serving import Answer, ask, in_front_of
from tests.serving import Serving

IDLE = "3s"


@asynccontextmanager
async def several(cluster: Cluster, count: int, *flags: str) -> AsyncIterator[list[Serving]]:
    address = await cluster.create_service()
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(
                in_front_of(cluster, "--idle-timeout", IDLE, *LEASE, *flags, address=address)
            )
            for _ in range(count)
        ]
        yield await until_they_know(*proxies)


async def outcome(proxy: Serving, tokens: int) -> str:
    """What became of one streamed request."""
    try:
        answer: Answer = await ask(proxy.url, tokens, stream=True)
    except (aiohttp.ClientError, ConnectionError) as error:
        return type(error).__name__
    whole = answer.status == 200 and answer.chunks == tokens and answer.body.endswith(b"data: [DONE]\n\n")
    return "whole" if whole else f"{answer.status}"


async def test_callers_at_two_proxies_wake_it_with_one_write_and_it_sleeps_with_one(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=1)
    before = await cluster.generation()
    async with several(cluster, 2) as proxies:
        told = await asyncio.gather(*(outcome(proxy, 5) for proxy in proxies for _ in range(50)))
        assert Counter(told) == {"whole": 100}
        assert await cluster.generation() == before + 1
        await asyncio.gather(*(proxy.until_logged("asleep") for proxy in proxies))
        assert await cluster.generation() == before + 2


async def test_a_stream_through_one_that_does_not_lead_outlasts_the_idle_timeout(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_TOKENS_PER_SECOND": "10"})
    async with several(cluster, 2) as (leader, other):
        before = await cluster.generation()
        assert await outcome(other, 120) == "whole"
        assert await cluster.generation() == before + 1
        await asyncio.gather(leader.until_logged("asleep"), other.until_logged("asleep"))
        assert await cluster.generation() == before + 2
        assert [line["replicas"] for line in other.log if line["event"] == "scaled"] == [1]


async def test_when_the_leader_is_killed_the_other_serves_on_and_leads(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=0, env={"STUB_TOKENS_PER_SECOND": "10"})
    async with several(cluster, 2) as (leader, other):
        ours = [asyncio.create_task(outcome(other, 200)) for _ in range(20)]
        theirs = [asyncio.create_task(outcome(leader, 200)) for _ in range(20)]
        await other.until(lambda target: target["in_flight"] == 20)
        await leader.until(lambda target: target["in_flight"] == 20)
        before = await cluster.generation()
        leader.process.send_signal(signal.SIGKILL)
        assert "whole" not in await asyncio.gather(*theirs)
        assert Counter(await asyncio.gather(*ours)) == {"whole": 20}
        assert await cluster.generation() == before
        [led] = await until_they_know(other)
        assert led is other
        await other.until_logged("asleep", seconds=40)
        assert await cluster.generation() == before + 1


async def test_a_rolling_update_cuts_no_stream_and_serves_the_held(cluster: Cluster) -> None:
    await cluster.create_deployment(load_seconds=4, env={"STUB_TOKENS_PER_SECOND": "10"})
    address = await cluster.create_service()
    flags = ("--idle-timeout", IDLE, *LEASE)
    async with in_front_of(cluster, *flags, address=address) as old:
        await until_they_know(old)
        held = [asyncio.create_task(outcome(old, 100)) for _ in range(50)]
        await old.until(lambda target: target["waiting"] == 50)
        async with in_front_of(cluster, *flags, address=address) as new:
            await until_they_know(old, new)
            streams = [asyncio.create_task(outcome(new, 100)) for _ in range(50)]
            old.process.send_signal(signal.SIGTERM)
            assert Counter(await asyncio.gather(*held, *streams)) == {"whole": 100}
            assert await old.process.wait() == 0
            # Nobody waits for one that has said goodbye.
            await until_they_know(new, seconds=3)
            await new.until_logged("asleep")
