"""What follows when a replica fails: the same on both lanes, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tests.proxy.wire import saying, upstream_of
from tests.scenarios.stage import Stage, stage
from vllm_chill.core.target import Endpoint, Observation
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

CHAT = "/v1/chat/completions"


@pytest.fixture(params=[True, False], ids=["fast lane", "base"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def dead() -> Iterator[Endpoint]:
    """An endpoint that takes no connection."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield Endpoint(*bound.getsockname())


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[Endpoint]:
    """The endpoints to which connections were to be made."""
    made: list[Endpoint] = []
    connect = UpstreamPool.connect

    async def counted(self: UpstreamPool, endpoint: Endpoint, timeout_seconds: float) -> UpstreamConnection:
        made.append(endpoint)
        return await connect(self, endpoint, timeout_seconds)

    monkeypatch.setattr(UpstreamPool, "connect", counted)
    return made


def ready(s: Stage, *endpoints: Endpoint) -> None:
    s.controller.observed(Observation(len(endpoints), len(endpoints), endpoints))


async def test_a_replica_that_takes_no_connection_costs_no_request_while_there_is_another(
    fast: bool, dead: Endpoint, connects: list[Endpoint]
) -> None:
    async with stage(awake=True, fast=fast) as s:
        alive = s.controller.endpoints
        for order in ((dead, *alive), (*alive, dead)):
            ready(s, *order)
            answers = await asyncio.gather(*(s.post(CHAT, json={}) for _ in range(10)))
            assert [status for status, _ in answers] == [200] * 10
        assert connects.count(dead) <= 20
        assert s.controller.target.in_flight == 0


async def test_replicas_that_take_no_connection_are_not_asked_without_a_pause(
    fast: bool, dead: Endpoint, connects: list[Endpoint]
) -> None:
    async with stage(awake=True, fast=fast) as s:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            ready(s, dead, Endpoint(*bound.getsockname()))
            status, body = await s.post(CHAT, json={})
        assert (status, body["error"]["code"]) == (502, "upstream_refused")
        assert set(connects) == set(s.controller.endpoints)
        assert len(connects) < 30


async def test_a_replica_that_hangs_up_is_not_the_one_that_is_asked_again_while_there_is_another(fast: bool) -> None:
    async with upstream_of(saying(b"")) as ill, stage(awake=True, fast=fast) as s:
        ready(s, ill.endpoint, *s.controller.endpoints)
        async with asyncio.timeout(0.9):
            assert (await s.post(CHAT, json={}))[0] == 200
        assert ill.connections == 1
        assert s.metric("vllm_chill_replays_total") == 1
