"""Clients that are slow, too large, too many, or no clients of HTTP at all: what they get, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.proxy.wire import Peer
from tests.scenarios.stage import Stage, envelope, models_stage, stage
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.target import Asleep, TargetRef
from vllm_chill.proxy.client_limits import ClientLimits

LANES = pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
POST = b"POST /v1/audio/x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
QUICK = ClientLimits(head_seconds=0.2, body_seconds=0.2, send_seconds=0.3, body_bytes=1000)


@asynccontextmanager
async def connected(s: Stage) -> AsyncIterator[Peer]:
    peer = Peer(*await asyncio.open_connection(*s.address, limit=1 << 22))
    try:
        async with asyncio.timeout(5):
            yield peer
    finally:
        peer.reset()


def told(answer: bytes) -> tuple[int, str]:
    """The status and the code of an error in OpenAI's shape, which is the last that a connection gets."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    return int(head.split(b" ")[1]), envelope(body)["code"]


async def at_rest(s: Stage) -> None:
    await s.until(lambda: not s.server._active and not s.controller.target.in_flight)
    assert not s.controller.target.waiting
    assert not s.desk.budget.taken


@LANES
@pytest.mark.parametrize(
    "start", [b"P", POST, POST + b"A: b\r\n", POST[:-1]], ids=["a byte", "two lines", "three", "no LF"]
)
async def test_a_head_that_is_not_whole_in_time_is_answered_408(fast: bool, start: bytes) -> None:
    async with stage(fast=fast, limits=QUICK) as s, connected(s) as client:
        await client.send(start)
        assert told(await client.rest()) == (408, "request_timeout")
        assert s.phase_is(Asleep)
        assert s.metric("vllm_chill_requests_refused_total", code="request_timeout") == 1


@LANES
async def test_a_head_that_comes_byte_by_byte_has_no_more_time(fast: bool) -> None:
    async with stage(fast=fast, limits=QUICK) as s, connected(s) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await client.send(b"P" if not _ else b"O")
                await asyncio.sleep(0.02)
        assert told(await client.rest()) == (408, "request_timeout")


@LANES
@pytest.mark.parametrize(
    "start",
    [
        POST + b"Content-Length: 10\r\n\r\nhello",
        POST + b"Content-Length: 10\r\n\r\n",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED,
        POST + b"Content-Length: 900\r\n\r\nhello",
    ],
    ids=["half a body", "no body", "half a chunk", "a chunk", "no chunk", "a body that is streamed"],
)
async def test_a_body_that_does_not_go_on_is_answered_408_and_frees_the_lease(fast: bool, start: bytes) -> None:
    async with stage(fast=fast, limits=QUICK, awake=True, replay_bytes=100) as s, connected(s) as client:
        await client.send(start)
        assert told(await client.rest()) == (408, "request_timeout")
        await at_rest(s)
        assert s.metric("vllm_chill_requests_total", method="POST", route="proxied", status="408") == 1


@LANES
async def test_a_body_that_trickles_is_too_slow(fast: bool) -> None:
    async with stage(fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        await client.send(POST + b"Content-Length: 900\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(60):
                await client.send(b"x")
                await asyncio.sleep(0.02)
        assert told(await client.rest()) == (408, "request_timeout")
        await at_rest(s)


@LANES
async def test_a_body_that_goes_on_has_all_the_time_it_needs(fast: bool) -> None:
    async with stage(fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        await client.send(POST + b"Content-Length: 900\r\n\r\n")
        for _ in range(10):
            await client.send(b"x" * 90)
            await asyncio.sleep(0.06)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@LANES
async def test_who_is_held_and_waits_to_be_told_to_send_is_not_slow(fast: bool) -> None:
    async with stage(fast=fast, limits=QUICK, start=0.8) as s, connected(s) as client:
        await client.send(POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 100 ")
        await client.send(b"2\r\n{}\r\n0\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@LANES
async def test_who_was_told_to_send_and_does_not_is_slow(fast: bool) -> None:
    async with stage(fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 100 ")
        assert told(await client.rest()) == (408, "request_timeout")
        await at_rest(s)


@LANES
@pytest.mark.parametrize("first", [b"", POST + b"Content-Length: 2\r\n\r\n{}", CHUNKED + b"0\r\n\r\n"])
async def test_an_idle_connection_is_not_slow(fast: bool, first: bytes) -> None:
    async with stage(fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        if first:
            await client.send(first)
            await client.response()
        await asyncio.sleep(0.7)
        await client.send(POST + b"Content-Length: 2\r\n\r\n{}")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@LANES
async def test_a_model_that_thinks_does_not_make_its_client_slow(fast: bool) -> None:
    async def thinks(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        await asyncio.sleep(0.8)
        return web.Response(text="done")

    async with stage(thinks, fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        await client.send(POST + b"Content-Length: 2\r\n\r\n{}")
        assert (await client.response())[1] == b"done"


@LANES
async def test_a_client_that_does_not_read_its_answer_is_cut_off(fast: bool) -> None:
    async def pours(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x" * 100_000)
        return response

    async with stage(pours, fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(POST + b"Content-Length: 2\r\n\r\n{}")
        await s.until(lambda: s.controller.target.in_flight == 1)
        await at_rest(s)


@LANES
async def test_a_client_that_reads_slowly_is_served_to_the_end(fast: bool) -> None:
    size = 20 << 20

    async def large(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(size))

    async with stage(large, fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        await client.send(POST + b"Content-Length: 2\r\n\r\n{}")
        await client.head()
        got = 0
        while got < size:
            got += len(await client.reader.read(2 << 20))
            await asyncio.sleep(0.05)
        assert got == size


@LANES
@pytest.mark.parametrize("size", [64 * 1024, 200_000, 3_000_000])
@pytest.mark.parametrize("how", ["one field", "a target", "many fields"])
async def test_a_head_that_is_too_large_is_answered_431(fast: bool, size: int, how: str) -> None:
    data = {
        "one field": POST + b"A: " + b"x" * size + b"\r\n\r\n",
        "a target": b"POST /" + b"x" * size + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "many fields": POST + b"A: 2345\r\n" * (size // 9) + b"\r\n",
    }[how]
    async with stage(fast=fast) as s, connected(s) as client:
        sending = asyncio.create_task(client.send(data))
        assert told(await client.rest()) == (431, "head_too_large")
        with contextlib.suppress(ConnectionError):
            await sending
        assert s.phase_is(Asleep)


@LANES
@pytest.mark.parametrize("path", [b"/v1/audio/x", b"/proxy/operations/start"])
async def test_a_body_that_says_that_it_is_too_large_is_answered_413_and_wakes_nothing(fast: bool, path: bytes) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n" % path
    async with stage(fast=fast, limits=QUICK) as s:
        for data in (head + b"\r\n", head + b"\r\n" + b"x" * 1001, head + b"Expect: 100-continue\r\n\r\n"):
            async with connected(s) as client:
                await client.send(data)
                answer = await client.head()
                assert answer.startswith(b"HTTP/1.1 413 ")
                assert b"\r\nConnection: close" in answer
        assert s.phase_is(Asleep)
        await at_rest(s)


@LANES
async def test_a_chunked_body_is_answered_413_while_it_streams(fast: bool) -> None:
    async with stage(fast=fast, limits=QUICK, awake=True) as s, connected(s) as client:
        await client.send(CHUNKED + b"1f4\r\n%b\r\n" % (b"x" * 500))
        await s.until(lambda: s.controller.target.in_flight == 1)
        await client.send(b"1f4\r\n%b\r\n" % (b"x" * 500))
        await client.send(b"1\r\nx\r\n0\r\n\r\n")
        assert told(await client.rest()) == (413, "request_too_large")
        await at_rest(s)


@LANES
async def test_what_is_no_request_is_answered_400_behind_what_came_before_it(fast: bool) -> None:
    async with stage(fast=fast, awake=True) as s, connected(s) as client:
        await client.send(POST + b"Content-Length: 2\r\n\r\n{}" + POST + b"Content-Length: +2\r\n\r\n{}" + POST)
        status, _, body = (await client.rest()).partition(b"HTTP/1.1 400 ")
        assert status.startswith(b"HTTP/1.1 200 ")
        assert envelope(body.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
        assert len(s.hits) == 1
        assert s.metric("vllm_chill_requests_refused_total", code="bad_request") == 1


@LANES
async def test_thousands_that_are_refused_at_once_are_answered_one_after_the_other(fast: bool) -> None:
    entries = [ModelEntry(name, TargetRef("test", name), f"org/{name}", "m") for name in "ab"]
    head = b"POST /v1/audio/x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    async with models_stage(*entries, fast=fast) as s, asyncio.timeout(20):
        client = Peer(*await asyncio.open_connection(*s.address, limit=1 << 22))
        sending = asyncio.create_task(client.send((head + b'{"model":"n"}') * 2000))
        for _ in range(2000):
            answer, _ = await client.response()
            assert answer.startswith(b"HTTP/1.1 404 ")
        await sending
        client.reset()


@LANES
async def test_beyond_the_limit_those_that_are_idle_for_longest_make_room(fast: bool) -> None:
    async with (
        stage(fast=fast, limits=ClientLimits(connections=3), awake=True) as s,
        contextlib.AsyncExitStack() as all_of,
    ):
        clients = []
        for _ in range(5):
            clients.append(await all_of.enter_async_context(connected(s)))
            await clients[-1].send(POST + b"Content-Length: 2\r\n\r\n{}")
            await clients[-1].response()
        assert await clients[0].closed()
        assert await clients[1].closed()
        for client in clients[2:]:
            await client.send(POST + b"Content-Length: 2\r\n\r\n{}")
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@LANES
async def test_if_none_is_idle_one_more_is_answered_503(fast: bool) -> None:
    gate = asyncio.Event()

    async def waits(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.json_response({})

    async with stage(waits, fast=fast, limits=ClientLimits(connections=1), awake=True) as s, connected(s) as busy:
        await busy.send(POST + b"Content-Length: 2\r\n\r\n{}")
        await s.until(lambda: bool(s.hits))
        async with connected(s) as client:
            answer = await client.rest()
            assert told(answer) == (503, "too_many_connections")
            assert b"\r\nRetry-After: 5\r\n" in answer
        gate.set()
        assert json.loads((await busy.response())[1]) == {}
