"""What several proxies of one target know of one another."""

from __future__ import annotations

import asyncio

import msgspec

from tests.cluster.serving import get
from tests.serving import Serving
from vllm_chill.api.status import PeersStatus, ProxyStatus

LEASE = ("--lease-duration", "6s")
"""A short one, where the test waits for it."""


async def peers_of(proxy: Serving) -> PeersStatus:
    _, text = await get(proxy.url + "/proxy/status")
    peers = msgspec.json.decode(text, type=ProxyStatus).peers
    assert peers is not None
    return peers


async def until_they_know(*proxies: Serving, seconds: float = 30) -> list[Serving]:
    """The proxies, the one that leads first, once each knows of all the others."""
    async with asyncio.timeout(seconds):
        while True:
            stands = [await peers_of(proxy) for proxy in proxies]
            if all(len(one.others) == len(proxies) - 1 for one in stands) and any(one.leads for one in stands):
                order = sorted(range(len(proxies)), key=lambda i: not stands[i].leads)
                return [proxies[i] for i in order]
            await asyncio.sleep(0.1)
