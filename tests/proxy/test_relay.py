"""What passes through the relay, and which connections it keeps."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from tests.proxy.wire import BIG, CHUNKED, GET, HELLO, MIB, OK, POST, Peer, answering, saying, wired
from vllm_chill.proxy.relay import Relayed


async def test_requests_of_many_clients_share_a_kept_connection() -> None:
    async with wired(answering(HELLO)) as wire:
        for _ in range(2):
            client = await wire.client()
            for _ in range(3):
                await client.send(POST)
                assert await client.response() == (HELLO[:-5], b"hello")
        assert wire.upstream.connections == 1


async def test_a_response_in_single_bytes_arrives_whole() -> None:
    body = b"5;a=b\r\nhello\r\n0\r\nSum: 1\r\n\r\n"

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            for byte in CHUNKED + body:
                await peer.send(bytes([byte]))
                await asyncio.sleep(0)

    async with wired(script) as wire:
        client = await wire.client()
        for _ in range(2):
            await client.send(GET)
            assert await client.head() == CHUNKED
            assert await client.exactly(len(body)) == body
        assert wire.upstream.connections == 1


async def test_each_streamed_chunk_arrives_before_the_next_is_sent() -> None:
    turns: asyncio.Queue[None] = asyncio.Queue()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for number in range(20):
            await turns.get()
            await peer.send(b"9\r\ndata: %03d\r\n" % number)
        await peer.send(b"0\r\n\r\n")

    async with wired(script) as wire:
        client = await wire.client()
        await client.send(GET)
        await client.head()
        for number in range(20):
            turns.put_nowait(None)
            assert await client.chunk() == b"data: %03d" % number
        assert await client.chunk() == b""


async def test_a_large_download_is_byte_for_byte_the_same() -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (70_001, BIG[at : at + 70_001]) for at in range(0, 70_001 * 150, 70_001))
    for response, size in [
        (OK + b"Content-Length: %d\r\n\r\n" % len(BIG) + BIG, len(BIG)),
        (CHUNKED + chunks + b"0\r\n\r\n", len(chunks) + 5),
    ]:
        async with wired(answering(response)) as wire:
            client = await wire.client()
            for _ in range(2):
                await client.send(GET)
                head = await client.head()
                assert head + await client.exactly(size) == response
            relayed = await wire.result(2)
            assert isinstance(relayed, Relayed)
            assert (relayed.status, relayed.response_bytes, relayed.cut) == (200, len(response), None)
            assert wire.upstream.connections == 1


async def test_a_download_that_ends_with_the_connection_is_the_same() -> None:
    async with wired(saying(OK + b"A: b\r\n\r\n" + BIG)) as wire:
        client = await wire.client()
        await client.send(GET)
        assert await client.rest() == OK + b"A: b\r\nConnection: close\r\n\r\n" + BIG


@pytest.mark.parametrize("size", [100, 200_000, MIB, MIB + 1, len(BIG)])
async def test_an_upload_is_byte_for_byte_the_same(size: int) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            head, body = await peer.request()
            heads.append(head)
            assert body == BIG[:size]
            await peer.send(HELLO)

    async with wired(script) as wire:
        client = await wire.client()
        for _ in range(2):
            await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + BIG[:size])
            assert (await client.response())[1] == b"hello"
        assert wire.upstream.connections == 1
        assert b"\r\nContent-Length: %d\r\n\r\n" % size in heads[0]


async def test_a_chunked_upload_is_the_same_without_its_trailers() -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            heads.append(await peer.head())
            assert await peer.chunks() == BIG
            await peer.send(HELLO)

    async with wired(script) as wire:
        client = await wire.client()
        for _ in range(2):
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTrailer: Sum\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(BIG), 99_999):
                piece = BIG[at : at + 99_999]
                await client.send(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
            await client.send(b"0\r\nSum: 1\r\n\r\n")
            assert (await client.response())[1] == b"hello"
        assert wire.upstream.connections == 1
        assert b"railer" not in heads[0]
        assert heads[0].endswith(b"\r\nTransfer-Encoding: chunked\r\n\r\n")


async def test_a_compressed_upload_passes_as_it_is() -> None:
    body = gzip.compress(b"hello" * 100)
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append((await peer.request())[1])
        await peer.send(HELLO)

    async with wired(script) as wire:
        client = await wire.client()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        await client.send(head + body)
        await client.response()
        assert seen == [body]


async def test_the_path_is_forwarded_as_it_came() -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append((await peer.head()).split(b"\r\n")[0])
            await peer.send(HELLO)

    targets = [b"/a%2Fb", b"//a/../b", b"/a?", b"/?q=%zz;x", b"/a;b", b"/a\\b", b"/%00"]
    async with wired(script) as wire:
        client = await wire.client()
        for target in targets:
            await client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.response()
    assert seen == [b"GET " + target + b" HTTP/1.1" for target in targets]


async def test_interim_heads_are_dropped() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with wired(answering(early + HELLO)) as wire:
        client = await wire.client()
        for _ in range(2):
            await client.send(GET)
            assert await client.response() == (HELLO[:-5], b"hello")


@pytest.mark.parametrize(
    ("method", "response"),
    [
        (b"HEAD", OK + b"Content-Length: 500\r\n\r\n"),
        (b"HEAD", CHUNKED),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
    ],
    ids=["HEAD with a length", "HEAD with chunks", "204", "304"],
)
async def test_a_response_without_a_body_keeps_both_connections(method: bytes, response: bytes) -> None:
    async with wired(answering(response, HELLO)) as wire:
        client = await wire.client()
        await client.send(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await client.head() == response
        await client.send(GET)
        assert (await client.response())[1] == b"hello"
        assert wire.upstream.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(peer: Peer) -> None:
        while True:
            path = (await peer.head()).split(b" ")[1]
            await peer.send(OK + b"Content-Length: %d\r\n\r\n" % len(path) + path)

    async with wired(script) as wire:
        client = await wire.client()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(50)))
        for number in range(50):
            assert (await client.response())[1] == b"/%d" % number
        assert wire.upstream.connections == 1


async def test_a_client_of_http_10_gets_no_chunks() -> None:
    async with wired(answering(CHUNKED + b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n")) as wire:
        for connection in (b"", b"Connection: keep-alive\r\n"):
            client = await wire.client()
            await client.send(b"GET / HTTP/1.0\r\n" + connection + b"\r\n")
            assert await client.rest() == OK + b"Connection: close\r\n\r\nhello world"
        assert wire.upstream.connections == 1


async def test_a_client_of_http_10_may_keep_its_connection() -> None:
    async with wired(answering(HELLO)) as wire:
        client = await wire.client()
        for _ in range(2):
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert await client.head() == OK + b"Content-Length: 5\r\nConnection: keep-alive\r\n\r\n"
            assert await client.exactly(5) == b"hello"
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert await client.rest() == OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello"


async def test_a_client_that_wants_to_close_is_closed() -> None:
    async with wired(answering(HELLO)) as wire:
        client = await wire.client()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert await client.rest() == OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello"


async def test_an_upstream_that_closes_does_not_close_the_client() -> None:
    response = OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello"
    async with wired(saying(response)) as wire:
        client = await wire.client()
        for _ in range(2):
            await client.send(GET)
            assert await client.response() == (HELLO[:-5], b"hello")
        assert wire.upstream.connections == 2


async def test_bytes_after_a_response_end_its_connection_and_reach_nobody() -> None:
    async with wired(answering(HELLO + HELLO.replace(b"hello", b"other"))) as wire:
        client = await wire.client()
        for _ in range(2):
            await client.send(GET)
            assert (await client.response())[1] == b"hello"
        assert wire.upstream.connections == 2
