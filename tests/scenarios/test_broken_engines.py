"""Engines that answer with what is no answer, and what comes of it behind the proxy."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.wire import Peer, upstream_of
from tests.scenarios.stage import envelope, stage
from vllm_chill.core.target import Observation

LANES = pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
POST = b"POST /v1/audio/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

MALFORMED = {
    "no end of a line": b"data: hello",
    "carriage returns alone": b"data: a\r\rdata: b\r\r",
    "no field": b"hello\n\n: \n:\n\n",
    "NUL and what is no UTF-8": b"data: \0\xff\xfe\xc3\x28\n\n",
    "a line without end": b"data: " + b"x" * 300_000,
    "a mark of the byte order": b"\xef\xbb\xbfdata: {}\n\n",
    "broken JSON": b'data: {"choices": [\n\ndata: [DONE]\n\ndata: more\n\n',
}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@LANES
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_stream_of_events_passes_byte_for_byte(fast: bool, body: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM)
        for start in range(0, len(body), max(1, len(body) // 3)):
            await peer.send(chunk(body[start : start + max(1, len(body) // 3)]))
            await asyncio.sleep(0.001)
        await peer.send(b"0\r\n\r\n")

    async with upstream_of(script) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        client = Peer(*await asyncio.open_connection(*s.address))
        await client.send(POST)
        await client.head()
        async with asyncio.timeout(5):
            assert await client.chunks() == body
        client.reset()


@LANES
async def test_a_malformed_stream_that_breaks_off_ends_with_an_event_of_its_own(fast: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"data: half an ev"))
        await asyncio.sleep(0.01)

    async with upstream_of(script) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        client = Peer(*await asyncio.open_connection(*s.address))
        await client.send(POST)
        await client.head()
        body = await client.chunks()
        half, event, rest = body.split(b"\n\n", 2)
        assert half == b"data: half an ev"
        assert envelope(event.removeprefix(b"data: "))["code"] == "upstream_reset"
        assert rest == b"data: [DONE]\n\n"
        client.reset()


@LANES
@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        OK + b"A: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
        OK + b"A: b\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK + b"Content-Length: 2\r\n\r\nok",
    ],
    ids=["two lengths", "a length and chunks", "chunked twice", "a fold", "a bare LF", "101", "too many 1xx"],
)
async def test_a_response_that_could_be_read_in_two_ways_is_502(fast: bool, response: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)
        await peer.rest()

    async with upstream_of(script) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        client = Peer(*await asyncio.open_connection(*s.address))
        await client.send(POST)
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert envelope(body)["code"] == "upstream_invalid"
        client.reset()


@LANES
async def test_more_than_the_length_reaches_nobody(fast: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await peer.rest()

    async with upstream_of(script) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        client = Peer(*await asyncio.open_connection(*s.address))
        for _ in range(3):
            await client.send(POST)
            assert (await client.response())[1] == b"ok"
        assert upstream.connections == 3
        client.reset()
