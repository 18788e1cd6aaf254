from __future__ import annotations

import asyncio
import gzip
import os
import socket

import pytest

from tests.proxy.wire import LOCALHOST, Peer, Script, Wire, wired
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import (
    BadRequest,
    ChillError,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamReset,
    UpstreamSilent,
)
from vllm_chill.proxy.relay import Relayed, RelayTimeouts

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20
BIG = os.urandom(MIB) * 12
TO_CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def answering(*responses: bytes) -> Script:
    """Answers each request of a connection with the next response; the last one for good."""

    async def script(peer: Peer) -> None:
        left = list(responses)
        while True:
            await peer.request()
            await peer.send(left.pop(0) if len(left) > 1 else left[0])

    return script


def saying(response: bytes) -> Script:
    """Answers one request, and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)

    return script


async def until_relayed(wire: Wire, count: int = 1) -> Relayed | ChillError:
    await wire.until(lambda: len(wire.relayed) >= count)
    return wire.relayed[-1]


# --- what passes


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
            relayed = await until_relayed(wire, 2)
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


async def settled(value: object) -> int:
    """What a growing number comes to rest at."""
    assert callable(value)
    last = -1
    while last != (now := int(value())):
        last = now
        await asyncio.sleep(0.1)
    return last


# --- clients of HTTP/1.0, and connections that close


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


# --- back-pressure


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


# --- the client leaves


def waiting(first: bytes, gone: asyncio.Event, seen: asyncio.Event) -> Script:
    """Reads a request's head, says `first`, and then only watches for the end of the connection."""

    async def script(peer: Peer) -> None:
        await peer.head()
        try:
            await peer.send(first)
            seen.set()
            await peer.rest()
        finally:
            gone.set()

    return script


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


# --- the upstream fails


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
            assert isinstance(await until_relayed(wire, count), error)
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
        relayed = await until_relayed(wire)
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
        relayed = await until_relayed(wire)
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
        relayed = await until_relayed(wire)
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
        await until_relayed(wire)
        await client.send(b"6\r\nsecond\r\n0\r\n\r\n")
        assert (await client.response())[1] == b"hello"
        assert bodies == [b"first", b"firstsecond"]


# --- early responses


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


# --- requests that are not what they seem

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
        assert (await client.rest()).startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
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
        assert isinstance(wire.relayed[0], BadRequest)
        assert wire.upstream.connections == 0


# --- what a handler may do to it


async def test_a_handler_that_gives_up_within_a_response_sends_no_second_one(caplog: pytest.LogCaptureFixture) -> None:
    gone, seen = asyncio.Event(), asyncio.Event()
    first = CHUNKED + b"5\r\nhello\r\n"
    async with wired(waiting(first, gone, seen)) as wire:
        wire.give_up_seconds = 0.1
        client = await wire.client()
        await client.send(GET)
        assert await client.rest() == first
        await asyncio.wait_for(gone.wait(), 2)
