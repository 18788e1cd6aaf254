"""Upstreams that fail, before the first byte and after it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.proxy.wire import BIG, CHUNKED, GET, HELLO, LOCALHOST, OK, POST, TO_CHUNKS, Peer, saying, waiting, wired
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import ChillError, UpstreamInvalid, UpstreamRefused, UpstreamReset, UpstreamSilent
from vllm_chill.proxy.relay import Relayed, RelayTimeouts


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", UpstreamReset),
        (b"HTTP/1.1 2", UpstreamReset),
        (b"HTTP/1.1 100 Continue\r\n\r\n", UpstreamReset),
        (b"SSH-2.0-OpenSSH\r\n", UpstreamInvalid),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na", UpstreamInvalid),
        (CHUNKED + b"zz\r\n", UpstreamInvalid),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UpstreamInvalid),
    ],
    ids=["no byte", "half a head", "an interim head", "not HTTP", "two lengths", "no chunk", "a switch"],
)
async def test_a_failure_before_the_first_byte_is_an_answer(response: bytes, error: type[ChillError]) -> None:
    async with wired(saying(response)) as wire:
        client = await wire.client()
        for count in (1, 2):
            await client.send(POST)
            assert (await client.head()).startswith(b"HTTP/1.1 502 ")
            await client.exactly(len(b"upstream_reset" if error is UpstreamReset else b"upstream_invalid"))
            assert isinstance(await wire.result(count), error)
        assert wire.upstream.connections == 2, "a fresh connection that fails is not tried again"


async def test_nobody_listening_is_an_answer() -> None:
    async with wired(saying(b"")) as wire:
        with socket.create_server((LOCALHOST, 0)) as unused:
            wire.upstream.endpoint = Endpoint(LOCALHOST, unused.getsockname()[1])
        client = await wire.client()
        await client.send(GET)
        assert (await client.response())[1] == b"upstream_refused"
        assert isinstance(wire.relayed[0], UpstreamRefused)


async def test_a_silent_upstream_is_an_answer_if_there_is_a_limit() -> None:
    gone = asyncio.Event()
    timeouts = RelayTimeouts(response_seconds=0.1)
    async with wired(waiting(b"HTTP/1.1 100 Continue\r\n\r\n", gone, asyncio.Event()), timeouts=timeouts) as wire:
        client = await wire.client()
        for request in (GET, TO_CHUNKS + b"5\r\nhello\r\n0\r\n\r\n"):
            await client.send(request)
            head, body = await client.response()
            assert head.startswith(b"HTTP/1.1 504 ")
            assert body == b"upstream_silent"
            await asyncio.wait_for(gone.wait(), 2)
            gone.clear()
        assert isinstance(wire.relayed[0], UpstreamSilent)


async def test_the_limit_ends_with_the_head() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        await asyncio.sleep(0.25)
        await peer.send(b"0\r\n\r\n")

    async with wired(script, timeouts=RelayTimeouts(response_seconds=0.1)) as wire:
        client = await wire.client()
        await client.send(GET)
        assert (await client.response())[1] == b""


@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: 10\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"9\r\nhello",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\nSum: 1\r\n",
    ],
    ids=["length", "between chunks", "within a chunk", "before the last line", "within trailers"],
)
async def test_a_response_that_breaks_off_is_cut_and_never_looks_whole(response: bytes) -> None:
    async with wired(saying(response)) as wire:
        client = await wire.client()
        await client.send(GET)
        assert await client.exactly(len(response)) == response
        assert await client.closed()
        relayed = await wire.result()
        assert isinstance(relayed, Relayed)
        assert relayed.cut is not None
        assert "closed the connection before its response was whole" in relayed.cut.message
        assert relayed.status == 200
        assert not relayed.keep_alive


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_response_to_the_close_that_breaks_off_is_cut_by_a_reset(version: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send((CHUNKED + b"9\r\nhello") if version == b"1.0" else OK + b"\r\nhello")
        await sent.wait()
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.reset()

    sent = asyncio.Event()
    async with wired(script) as wire:
        client = await wire.client()
        await client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
        await client.head()
        assert await client.exactly(5) == b"hello"
        sent.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()
        relayed = await wire.result()
        assert isinstance(relayed, Relayed)
        assert relayed.cut is not None


async def test_an_illegal_chunk_after_the_first_byte_cuts_the_response() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED + b"5\r\nhello\r\n")
        await asyncio.sleep(0.05)
        await peer.send(b"zz\r\n0\r\n\r\n")

    async with wired(script) as wire:
        client = await wire.client()
        await client.send(GET)
        assert await client.rest() == CHUNKED + b"5\r\nhello\r\n"
        relayed = await wire.result()
        assert isinstance(relayed, Relayed)
        assert relayed.cut is not None


async def test_a_kept_connection_that_closes_is_replaced_unseen() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.request()  # and dies of it

    async with wired(script) as wire:
        client = await wire.client()
        for count in range(1, 4):
            await client.send(POST)
            assert (await client.response())[1] == b"hello"
            assert wire.upstream.connections == count
        assert not any(isinstance(relayed, ChillError) for relayed in wire.relayed)


async def test_a_kept_connection_that_closes_is_not_replaced_once_the_body_is_forgotten() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.head()
        await peer.exactly(300_000)

    async with wired(script, limit=1000) as wire:
        client = await wire.client()
        await client.send(GET)
        await client.response()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n" + BIG[:400_000])
        assert (await client.response())[1] == b"upstream_reset"


async def test_a_streamed_body_that_is_still_kept_is_sent_again_from_its_start() -> None:
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        if wire.upstream.connections == 1:
            bodies.append(await peer.chunk())
            return
        bodies.append(await peer.chunks())
        await peer.send(HELLO)

    async with wired(script) as wire:
        wire.replays = 1
        client = await wire.client()
        await client.send(TO_CHUNKS + b"5\r\nfirst\r\n")
        await wire.result()
        await client.send(b"6\r\nsecond\r\n0\r\n\r\n")
        assert (await client.response())[1] == b"hello"
        assert bodies == [b"first", b"firstsecond"]


async def test_a_handler_that_gives_up_within_a_response_sends_no_second_one(caplog: pytest.LogCaptureFixture) -> None:
    gone, seen = asyncio.Event(), asyncio.Event()
    first = CHUNKED + b"5\r\nhello\r\n"
    async with wired(waiting(first, gone, seen)) as wire:
        wire.give_up_seconds = 0.1
        client = await wire.client()
        await client.send(GET)
        assert await client.rest() == first
        await asyncio.wait_for(gone.wait(), 2)
