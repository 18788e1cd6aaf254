from __future__ import annotations

from tests.proxy.wire import Peer, wired


async def test_a_request_and_its_response_pass_through() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async with wired(script) as wire:
        client = await wire.client()
        for _ in range(3):
            await client.send(b"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
            assert await client.response() == (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello")
        assert wire.upstream.connections == 1
