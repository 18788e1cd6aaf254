"""Each test names one thing that the seam needs of aiohttp's insides: one that fails after an update says which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import HttpVersion11, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from tests.proxy.wire import LOCALHOST, Peer
from vllm_chill.proxy.aiohttp_seam import (
    INTERNALS,
    ClientConnection,
    ClientServer,
    Relayed,
    arrived,
    cut_off,
    drain,
    message_of,
)
from vllm_chill.proxy.door import Refusal

ALIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def served(handler: object, requests: bytes) -> bytes:
    """What a client gets from the server until its connection closes."""
    server = web.Server(handler, handler_cancellation=True, auto_decompress=False, access_log=None)  # type: ignore[arg-type]
    listening = await asyncio.get_running_loop().create_server(server, LOCALHOST, 0)
    client = Peer(*await asyncio.open_connection(*listening.sockets[0].getsockname()))
    try:
        async with asyncio.timeout(5):
            await client.send(requests)
            return await client.rest()
    finally:
        client.reset()
        listening.close()
        await server.shutdown(0.1)


async def test_the_server_writes_nothing_for_a_relayed_response_and_keeps_the_connection_as_it_says() -> None:
    paths: list[str] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        paths.append(request.path)
        assert request.transport is not None
        request.transport.write(ALIVE)
        return Relayed(200, len(ALIVE), keep_alive=request.path != "/last")

    get = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n"
    assert await served(handler, get % b"/1" + get % b"/2" + get % b"/last" + get % b"/never") == ALIVE * 3
    assert paths == ["/1", "/2", "/last"]


async def test_the_access_log_takes_a_relayed_response(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(ALIVE)
        return Relayed(200, len(ALIVE), keep_alive=False)

    caplog.set_level("INFO", "aiohttp.access")
    server = web.Server(handler)
    listening = await asyncio.get_running_loop().create_server(server, LOCALHOST, 0)
    client = Peer(*await asyncio.open_connection(*listening.sockets[0].getsockname()))
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert await client.rest() == ALIVE
    client.reset()
    listening.close()
    await server.shutdown(0.1)
    assert f'"GET / HTTP/1.1" 200 {len(ALIVE)}' in caplog.text


async def test_the_message_has_the_request_as_it_was_received() -> None:
    seen: list[RawRequestMessage] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(message_of(request))
        return web.Response(text="")

    head = b"PUT http://h/a%2Fb?c HTTP/1.1\r\nhOST: h\r\nA: 1\r\na:\t2 \r\n"
    await served(handler, head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n")
    (message,) = seen
    assert (message.method, message.path, message.version) == ("PUT", "http://h/a%2Fb?c", HttpVersion11)
    assert message.chunked
    assert message.should_close
    assert message.raw_headers[:3] == ((b"hOST", b"h"), (b"A", b"1"), (b"a", b"2"))


async def test_a_handler_is_cancelled_when_its_client_leaves() -> None:
    cancelled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        cut_off(request.transport, reset=True)
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            cancelled.set_result(True)
            raise
        return web.Response()

    with pytest.raises(ConnectionResetError):
        await served(handler, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert await cancelled


async def slow_client() -> ClientConnection:
    """A connection whose client takes nothing just now."""
    connection = ClientServer(hello).slow_connection()
    connection.transport = asyncio.Transport()
    connection.pause_writing()
    assert connection.writing_paused
    return connection


@pytest.mark.parametrize("drained_first", [False, True])
async def test_whoever_waits_for_a_slow_client_is_called_when_it_reads(drained_first: bool) -> None:
    connection = await slow_client()
    calls: list[None] = []
    if drained_first:
        waiting = asyncio.ensure_future(drain(connection))
        await asyncio.sleep(0)
        connection.when_writable(lambda: calls.append(None))
    else:
        connection.when_writable(lambda: calls.append(None))
        waiting = asyncio.ensure_future(drain(connection))
        await asyncio.sleep(0)
    assert not calls
    connection.resume_writing()
    await waiting
    assert calls == [None]
    assert not connection.writing_paused


@pytest.mark.parametrize("error", [None, ConnectionResetError("gone")])
async def test_whoever_waits_for_a_client_that_leaves_is_called(error: Exception | None) -> None:
    connection = await slow_client()
    called = asyncio.Event()
    connection.when_writable(called.set)
    BaseProtocol.connection_lost(connection, error)
    await asyncio.wait_for(called.wait(), 1)


@asynccontextmanager
async def connected(handler: object) -> AsyncIterator[tuple[ClientConnection, Peer]]:
    """The server's end of a connection, and the client's."""
    async with asyncio.timeout(5):
        server = ClientServer(handler, handler_cancellation=True, auto_decompress=False, access_log=None)  # type: ignore[arg-type]
        listening = await asyncio.get_running_loop().create_server(server, LOCALHOST, 0)
        client = Peer(*await asyncio.open_connection(*listening.sockets[0].getsockname()))
        try:
            while not server.connections:  # noqa: ASYNC110 - it is accepted within a few turns of the loop
                await asyncio.sleep(0.001)
            [connection] = server.connections
            assert isinstance(connection, ClientConnection)
            await asyncio.sleep(0.01)
            yield connection, client
        finally:
            client.reset()
            listening.close()
            await server.shutdown(0.1)


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(text="hello")


def test_nothing_that_is_touched_is_missing() -> None:
    assert [name for name in INTERNALS if not hasattr(RequestHandler, name)] == []


async def test_what_has_come_of_a_body_is_seen_and_is_there_to_be_read_all_the_same() -> None:
    seen: list[bytes] = []

    async def reads(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(arrived(request.content))
        seen.append(await request.read())
        return web.Response(text="done")

    async with connected(reads) as (_, client):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
        await asyncio.sleep(0.02)
        await client.send(b" you!")
        await client.head()
        assert seen == [b"hello", b"hello you!"]


async def test_a_connection_tells_that_it_takes_no_more_requests() -> None:
    async with connected(hello) as (connection, client):
        states = [connection.is_closing]
        connection.close()
        states.append(connection.is_closing)
        assert states == [False, True]
        connection.force_close()
        assert await client.closed()


async def test_a_reader_is_told_of_a_malformed_chunk() -> None:
    failures: list[Exception] = []

    async def reads(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await request.read()
        except Refusal as error:
            failures.append(error)
        return web.Response(status=400, text="broken")

    async with connected(reads) as (_, client):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0.02)
        await client.send(b"no size\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        assert await client.rest() == b"broken"
        assert len(failures) == 1


@pytest.mark.parametrize("turns", range(6))
async def test_a_malformed_chunk_is_told_however_far_its_request_has_come(turns: int) -> None:
    async def reads(request: web.BaseRequest) -> web.StreamResponse:
        with pytest.raises(Refusal):
            await request.read()
        return web.Response(status=400, text="broken")

    async with connected(reads) as (connection, client):
        connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        connection.data_received(b"no size\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
