"""`GET /proxy/logs` over real sockets: who reads, who follows, and who may."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.scenarios.stage import Stage, envelope, stage
from vllm_chill.adapters.output_log import OutputLog
from vllm_chill.core.access import Operators
from vllm_chill.core.engine_output import Line
from vllm_chill.core.keys import Key, Keys
from vllm_chill.core.target import Asleep
from vllm_chill.errors import BackendRefused, BackendUnavailable
from vllm_chill.ports import OutputObserver
from vllm_chill.proxy.gate import Gate
from vllm_chill.web import engine_logs
from vllm_chill.web.doorkeeper import Doorkeeper

LOGS = "/proxy/logs"


def written(*texts: str, replica: str = "run-1") -> OutputLog:
    log = OutputLog()
    for text in texts:
        log.wrote(Line(replica, text))
    return log


@asynccontextmanager
async def following(proxy: Stage, query: str = "") -> AsyncIterator[aiohttp.StreamReader]:
    async with proxy.session.get(f"{proxy.url}{LOGS}?follow=true{query}") as response:
        assert (response.status, response.content_type) == (200, "text/plain")
        yield response.content


async def text_of(proxy: Stage, query: str = "", **more: Any) -> str:
    async with proxy.session.get(f"{proxy.url}{LOGS}{query}", **more) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Cache-Control"] == "no-store"
        return await response.text()


async def test_the_last_lines_are_told_with_who_wrote_them_and_nothing_wakes() -> None:
    log = written("one", "two", "three")
    async with stage(output=log) as proxy:
        assert await text_of(proxy) == "==> run-1 <==\none\ntwo\nthree\n"
        log.wrote(Line("run-2", "four"))
        assert await text_of(proxy, "?lines=2") == "==> run-1 <==\nthree\n==> run-2 <==\nfour\n"
        assert await text_of(proxy, "?replica=run-2") == "==> run-2 <==\nfour\n"
        assert await text_of(proxy, "?model=any") == await text_of(proxy)
        async with proxy.session.head(proxy.url + LOGS + "?follow=true") as response:
            assert (response.status, await response.read()) == (200, b"")
        assert proxy.phase_is(Asleep)
        assert not proxy.backend.writes


@pytest.mark.parametrize(
    ("query", "status", "code", "says"),
    [
        ("?lines=0", 400, "bad_request", "a whole number from 1 to 2000"),
        ("?lines=9999", 400, "bad_request", "a whole number from 1 to 2000"),
        ("?lines=x", 400, "bad_request", "a whole number from 1 to 2000"),
        ("?follow=perhaps", 400, "bad_request", "give true or false"),
        ("?replica=run-9", 404, "replica_not_found", "run-1"),
        ("?follow=true&replica=run-9", 404, "replica_not_found", "run-1"),
    ],
)
async def test_what_is_not_understood_is_an_error(query: str, status: int, code: str, says: str) -> None:
    async with stage(output=written("x")) as proxy, proxy.session.get(proxy.url + LOGS + query) as response:
        error = envelope(await response.read())
        assert (response.status, error["code"]) == (status, code)
        assert says in error["message"]


async def test_where_nothing_tells_the_output_it_says_so() -> None:
    async with stage() as proxy, proxy.session.get(proxy.url + LOGS) as response:
        assert (response.status, envelope(await response.read())["code"]) == (404, "no_logs")


class Broken(OutputLog):
    """Output that cannot be read."""

    async def read(self, lines: int, replica: str | None = None) -> list[Line]:
        raise BackendRefused("the right is missing; grant it")

    async def follow(self, lines: int, observer: OutputObserver, replica: str | None = None) -> None:
        await self.read(lines)


@pytest.mark.parametrize("query", ["", "?follow=true"])
async def test_a_right_of_the_proxy_that_is_missing_is_an_answer(query: str) -> None:
    async with stage(output=Broken()) as proxy, proxy.session.get(proxy.url + LOGS + query) as response:
        error = envelope(await response.read())
        assert (response.status, error["code"]) == (503, "logs_unavailable")
        assert error["message"] == "the right is missing; grant it"


async def test_who_follows_is_told_what_comes_and_is_no_use_of_the_model() -> None:
    log = written("old", "one")
    async with stage(output=log) as proxy, following(proxy, "&lines=1") as content:
        assert [await content.readline() for _ in range(2)] == [b"==> run-1 <==\n", b"one\n"]
        log.wrote(Line("run-1", "two"))
        assert await content.readline() == b"two\n"
        log.wrote(Line("run-2", "three"))
        assert [await content.readline() for _ in range(2)] == [b"==> run-2 <==\n", b"three\n"]
        assert proxy.phase_is(Asleep)
        assert proxy.controller.target.in_flight == 0


async def test_nothing_is_left_of_who_leaves() -> None:
    log = written("one")
    async with stage(output=log) as proxy:
        async with following(proxy) as content:
            await content.readline()
            assert len(log._followers) == 1
        await proxy.until(lambda: not log._followers and not proxy.server._active)


async def test_a_slow_reader_loses_lines_and_is_told_how_many_and_what_is_kept_is_bounded() -> None:
    buffer = engine_logs.Buffer()
    for number in range(5000):
        buffer.wrote(Line("run-1", str(number)))
    told = buffer.taken().decode().splitlines()
    assert told[1:-1] == [str(number) for number in range(2000)]
    assert told[-1] == "vllm-chill: 3000 lines were lost here, as they came faster than they were read"
    buffer.wrote(Line("run-1", "on"))
    assert buffer.taken() == b"on\n"
    for _ in range(1000):
        buffer.wrote(Line("run-1", "x" * 4096))
    assert len(buffer.taken()) < (512 << 10) + 8192


async def test_a_reader_that_stands_still_holds_nothing_up_and_costs_no_more_than_its_buffer() -> None:
    log = OutputLog()
    async with stage(output=log) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address, limit=1024)
        writer.write(f"GET {LOGS}?follow=true HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await proxy.until(lambda: bool(log._followers))
        [(buffer, _)] = log._followers
        assert isinstance(buffer, engine_logs.Buffer)
        await proxy.until(lambda: _flood(log, buffer), seconds=20)
        said = b""
        async with asyncio.timeout(20):
            while b"lines were lost here" not in said:
                said = said[-200:] + await reader.read(65536)
        writer.close()
        await proxy.until(lambda: not log._followers)


def _flood(log: OutputLog, buffer: engine_logs.Buffer) -> bool:
    for _ in range(100):
        log.wrote(Line("run-1", "x" * 4096))
    return buffer._missed > 1000


async def test_a_proxy_that_shuts_down_ends_who_follows() -> None:
    async with stage(output=written("one")) as proxy, following(proxy) as content:
        await content.readline()
        assert await proxy.server.drain(0, 5)
        assert (await content.read()).endswith(b"vllm-chill: the proxy shuts down\n")


async def test_there_are_no_more_followers_than_may_be() -> None:
    async with stage(output=written("one")) as proxy:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(32):
                await (await stack.enter_async_context(following(proxy))).readline()
            async with proxy.session.get(f"{proxy.url}{LOGS}?follow=true") as response:
                assert (response.status, envelope(await response.read())["code"]) == (429, "too_many_followers")
        await proxy.until(lambda: not proxy.server._active)
        async with following(proxy):
            pass


class Passing(OutputLog):
    """Output that cannot be read for a while."""

    async def follow(self, lines: int, observer: OutputObserver, replica: str | None = None) -> None:
        for _ in range(3):
            observer.lost("the node is away")
        await super().follow(lines, observer, replica)
        raise BackendUnavailable("unreachable")


async def test_a_trouble_is_told_once() -> None:
    log = Passing()
    async with stage(output=log) as proxy, following(proxy) as content:
        log.wrote(Line("pod", "one"))
        assert [await content.readline() for _ in range(3)] == [
            b"vllm-chill: the node is away\n",
            b"==> pod <==\n",
            b"one\n",
        ]


def key(name: str, *, admin: bool = False) -> Key:
    return Key(name, hashlib.sha256(f"secret-{name}".encode()).digest(), admin=admin)


@pytest.mark.parametrize("operators", [Operators.ALL, Operators.KEYS])
async def test_where_there_are_keys_an_admin_key_is_asked_for_as_prompts_may_be_in_it(operators: Operators) -> None:
    gate = Gate(Keys((key("user"), key("admin", admin=True))), asyncio.get_running_loop().time)
    async with stage(output=written("one"), doorkeeper=Doorkeeper(gate, operators=operators)) as proxy:
        for said, status in (("", 401), ("secret-user", 403), ("secret-admin", 200)):
            headers = {"Authorization": f"Bearer {said}"} if said else {}
            async with proxy.session.get(proxy.url + LOGS, headers=headers) as response:
                assert response.status == status
                assert (await response.text() == "==> run-1 <==\none\n") is (status == 200)


async def test_the_status_has_the_last_lines_while_it_starts() -> None:
    log = written("old", replica="run-0")
    async with stage(output=log, start=30.0) as proxy:
        assert (await proxy.get("/proxy/status"))[1]["targets"][0]["output"] is None
        asking = asyncio.create_task(proxy.post("/v1/chat/completions", json={}))
        await proxy.until(lambda: bool(proxy.controller.target.observed and proxy.controller.target.observed.members))
        assert proxy.controller.target.observed is not None
        name = proxy.controller.target.observed.members[0].name
        for number in range(12):
            log.wrote(Line(name, f"line {number} " + "x" * 1000))
        [target] = (await proxy.get("/proxy/status"))[1]["targets"]
        assert [line.partition(" x")[0] for line in target["output"]] == [f"line {number}" for number in range(2, 12)]
        assert max(map(len, target["output"])) == 500
        asking.cancel()
        await asyncio.wait([asking])
