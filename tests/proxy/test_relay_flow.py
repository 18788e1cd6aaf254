"""Who is slow stops the other side, and neither waits for the other to finish."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.wire import BIG, CHUNKED, GET, HELLO, MIB, OK, TO_CHUNKS, Peer, answering, settled, wired


async def test_a_client_that_does_not_read_stops_the_upstream() -> None:
    written = 0

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % (len(BIG) * 4))
        for at in range(0, len(BIG) * 4, MIB):
            await peer.send(BIG[:MIB])
            written = at + MIB

    async with wired(script) as wire:
        client = await wire.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        assert await settled(lambda: written) < len(BIG) * 4
        transport = wire.requests[0].transport
        assert transport is not None
        assert 0 < transport.get_write_buffer_size() < 400_000
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.head()
        for _ in range(48):
            assert await client.exactly(MIB) == BIG[:MIB]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_an_upstream_that_does_not_read_stops_the_client(chunked: bool) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.head()
        for _ in range(48):
            assert await (peer.chunks_of(MIB) if chunked else peer.exactly(MIB)) == BIG[:MIB]
        await peer.send(HELLO)

    async with wired(script) as wire:
        client = await wire.client()
        written = 0

        async def upload() -> None:
            nonlocal written
            framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (48 * MIB)
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
            for _ in range(48):
                await client.send(b"%x\r\n%b\r\n" % (MIB, BIG[:MIB]) if chunked else BIG[:MIB])
                written += MIB
            await client.send(b"0\r\n\r\n" if chunked else b"")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(upload())
            assert await settled(lambda: written) < 48 * MIB
            (connection,) = wire.pool._homes[wire.upstream.endpoint].open
            assert 0 < connection.transport.get_write_buffer_size() < 1_200_000
            assert wire.requests[0].content._size < 1_200_000
            go.set()
            assert (await client.response())[1] == b"hello"


async def test_a_client_that_pipelines_and_does_not_read_is_not_served_ahead() -> None:
    big = OK + b"Content-Length: 60000\r\n\r\n" + BIG[:60_000]
    async with wired(answering(big)) as wire:
        client = await wire.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET * 2000)
        served = await settled(lambda: len(wire.relayed))
        transport = wire.requests[-1].transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 400_000
        assert served < 2000


async def test_a_response_may_come_while_the_request_is_still_sent() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        while chunk := await peer.chunk():
            await peer.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await peer.send(b"0\r\n\r\n")

    async with wired(script) as wire:
        client = await wire.client()
        await client.send(TO_CHUNKS)
        assert await client.head() == CHUNKED
        for number in range(5):
            await client.send(b"2\r\n%02d\r\n" % number)
            assert await client.chunk() == b"%02d" % number
        await client.send(b"0\r\n\r\n")
        assert await client.chunk() == b""


async def test_a_response_that_does_not_wait_for_the_request_arrives_and_ends_the_upstream_connection() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        try:
            while await peer.reader.read(1 << 16):
                pass
        finally:
            gone.set()

    async with wired(script) as wire:
        client = await wire.client()
        await client.send(TO_CHUNKS + b"5\r\nhello\r\n")
        assert (await client.response())[1] == b"no"
        await asyncio.wait_for(gone.wait(), 2)
        await client.send(b"5\r\nhello\r\n0\r\n\r\n" + GET)
        assert (await client.response())[1] == b"no"
        assert wire.upstream.connections == 2
