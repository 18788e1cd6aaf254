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
from vllm_chill.proxy import aiohttp_seam
from vllm_chill.proxy.aiohttp_seam import (
    ClientConnection,
    ClientServer,
    Relayed,
    cut_off,
    drain,
    message_of,
    missing_internals,
    when_writable,
)

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


@pytest.mark.parametrize("drained_first", [False, True])
async def test_whoever_waits_for_a_slow_client_is_called_when_it_reads(drained_first: bool) -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    protocol.transport = asyncio.Transport()  # connected
    protocol.pause_writing()
    assert protocol.writing_paused
    calls: list[None] = []
    assert_handler(protocol)
    if drained_first:
        waiting = asyncio.ensure_future(drain(protocol))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        when_writable(protocol, lambda: calls.append(None))  # type: ignore[arg-type]
    else:
        when_writable(protocol, lambda: calls.append(None))  # type: ignore[arg-type]
        waiting = asyncio.ensure_future(drain(protocol))  # type: ignore[arg-type]
        await asyncio.sleep(0)
    assert not calls
    protocol.resume_writing()
    await waiting
    assert calls == [None]
    assert not protocol.writing_paused


@pytest.mark.parametrize("error", [None, ConnectionResetError("gone")])
async def test_whoever_waits_for_a_client_that_leaves_is_called(error: Exception | None) -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    protocol.transport = asyncio.Transport()
    protocol.pause_writing()
    called = asyncio.Event()
    when_writable(protocol, called.set)  # type: ignore[arg-type]
    protocol.connection_lost(error)
    await asyncio.wait_for(called.wait(), 1)


def assert_handler(protocol: BaseProtocol) -> None:
    """The server's protocol pauses and drains as its base class does, which the tests above use alone."""
    for name in ("pause_writing", "resume_writing", "_drain_helper", "writing_paused"):
        assert getattr(RequestHandler, name) is getattr(BaseProtocol, name)
        assert hasattr(protocol, name)


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


def idle(connection: ClientConnection) -> bool:
    return connection.parser_is_idle


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(text="hello")


def test_nothing_that_is_touched_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_internals() == []
    monkeypatch.setattr(aiohttp_seam, "INTERNALS", ("_waiter", "_no_longer_there"))
    assert missing_internals() == ["_no_longer_there"]


async def test_the_server_is_idle_before_a_request_and_after_it_and_not_in_between() -> None:
    gate = asyncio.Event()

    async def waits(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.Response(text="hello")

    async with connected(waits) as (connection, client):
        assert idle(connection)
        assert not connection.is_busy
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.02)
        assert not idle(connection)
        gate.set()
        await client.response()
        await asyncio.sleep(0.02)
        assert idle(connection)
        connection.close()
        assert connection.is_closing
        assert not idle(connection)


async def test_the_end_of_a_request_is_told_before_the_server_is_idle() -> None:
    ended: list[bool] = []

    class Told(ClientConnection):
        __slots__ = ()

        def request_ended(self) -> None:
            ended.append(self.parser_is_idle)

    class Server(ClientServer):
        connection = Told

    async with asyncio.timeout(5):
        listening = await asyncio.get_running_loop().create_server(Server(hello, access_log=None), LOCALHOST, 0)
        client = Peer(*await asyncio.open_connection(*listening.sockets[0].getsockname()))
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.response()
        await asyncio.sleep(0.01)
        assert ended == [False]
        client.reset()
        listening.close()


async def test_a_busy_connection_is_spared_by_the_timer_and_waited_for_by_the_shutdown() -> None:
    async with connected(hello) as (connection, client):
        connection.begin_exchange()
        connection._next_keepalive_close_time = 0
        connection._process_keepalive()
        assert not connection.is_closing
        connection.close()
        shutdown = asyncio.create_task(connection.shutdown(5))
        await asyncio.sleep(0.02)
        assert not shutdown.done()
        connection.end_exchange(asyncio.get_running_loop().time())
        await shutdown
        assert await client.closed()


async def test_an_idle_connection_ends_by_the_timer() -> None:
    async with connected(hello) as (connection, client):
        connection._next_keepalive_close_time = 0
        connection._process_keepalive()
        assert await client.closed()


async def test_a_reader_is_told_of_a_malformed_chunk() -> None:
    failures: list[Exception] = []

    async def reads(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await request.read()
        except web.RequestPayloadError as error:
            failures.append(error)
        return web.Response(status=400, text="broken")

    async with connected(reads) as (_, client):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0.02)
        await client.send(b"no size\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        assert await client.rest() == b"broken"
        assert len(failures) == 1
