"""Clients that leave, and requests that are not what they seem."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.wire import BIG, CHUNKED, GET, HELLO, OK, POST, TO_CHUNKS, Peer, answering, waiting, wired


@pytest.mark.parametrize(
    ("request_bytes", "first"),
    [
        (GET, b""),
        (GET, OK),
        (GET, OK + b"Content-Length: 10\r\n\r\nhello"),
        (GET, CHUNKED + b"5\r\nhello\r\n"),
        (GET, OK + b"\r\nhello"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\nhello", b""),
        (TO_CHUNKS + b"5\r\nhello\r\n", b""),
        (TO_CHUNKS + b"5\r\nhello\r\n", CHUNKED + b"5\r\nhello\r\n"),
    ],
    ids=[
        "while it waits",
        "within the head",
        "within a body with a length",
        "within chunks",
        "within a body to the close",
        "within its own body",
        "within its own chunks",
        "within both bodies",
    ],
)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_ends_the_upstream_connection(request_bytes: bytes, first: bytes, how: str) -> None:
    gone, seen = asyncio.Event(), asyncio.Event()
    async with wired(waiting(first, gone, seen)) as wire:
        client = await wire.client()
        await client.send(request_bytes)
        await seen.wait()
        client.close() if how == "close" else client.reset()
        await asyncio.wait_for(gone.wait(), 2)
        assert not wire.relayed


async def test_a_client_that_leaves_within_a_small_body_has_asked_nothing() -> None:
    async with wired(answering(HELLO)) as wire:
        client = await wire.client()
        await client.send(POST[:-1])
        await wire.until(lambda: wire.requests)
        client.reset()
        await asyncio.sleep(0.02)
        assert wire.upstream.connections == 0


async def test_a_client_that_leaves_while_its_response_is_held_back_ends_the_upstream_connection() -> None:
    gone, seen = asyncio.Event(), asyncio.Event()
    async with wired(waiting(OK + b"\r\n" + BIG, gone, seen)) as wire:
        client = await wire.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        await asyncio.sleep(0.2)
        client.reset()
        await asyncio.wait_for(gone.wait(), 2)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 37\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 37\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 37\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nA: b\r\n Transfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 37\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nA: b\rContent-Length: 37\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nA: \0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /\r\nX: HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_a_request_that_two_parsers_may_read_in_two_ways_is_refused(request_bytes: bytes) -> None:
    async with wired(answering(HELLO)) as wire:
        client = await wire.client()
        await client.send(request_bytes + SMUGGLED)
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code": "bad_request"' in answer
        assert not wire.requests
        assert wire.upstream.connections == 0


async def test_connection_names_neither_the_length_nor_the_host_away() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.request()
        assert b"\r\nHost: 127.0.0.1:" in head
        assert body == SMUGGLED
        await peer.send(HELLO)

    async with wired(script) as wire:
        client = await wire.client()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, content-length, host\r\n"
            b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
        )
        assert (await client.response())[1] == b"hello"


async def test_a_target_without_a_path_is_refused_by_name() -> None:
    async with wired(answering(HELLO)) as wire:
        client = await wire.client()
        await client.send(b"CONNECT vllm:443 HTTP/1.1\r\nHost: vllm:443\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        assert b"CONNECT cannot be forwarded" in await client.rest()
        assert wire.upstream.connections == 0
