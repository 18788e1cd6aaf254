"""WebSockets and other upgrades through the proxy, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from tests.proxy.wire import Peer, upstream_of
from tests.scenarios.stage import stage
from vllm_chill.core.target import Asleep, Observation, Ready
from vllm_chill.proxy.aiohttp_seam import cut_off
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold

REALTIME = "/v1/realtime"


async def websocket(request: web.BaseRequest) -> web.StreamResponse:
    """Echo messages; close when told to."""
    socket = web.WebSocketResponse(max_msg_size=16 << 20)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data == "close":
            await socket.close(code=4000)
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(f"echo {message.data}")
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def test_a_websocket_wakes_the_target_and_messages_pass_both_ways() -> None:
    async with stage(websocket, start=0.1) as s, s.session.ws_connect(s.url + REALTIME + "?model=x") as socket:
        for number in range(20):
            await socket.send_str(str(number))
            assert await socket.receive_str() == f"echo {number}"
        assert s.hits == ["GET /v1/realtime?model=x"]


async def test_a_websocket_is_held_in_silence() -> None:
    terms = HoldOptions(beat_after_seconds=0.05, beat_seconds=0.05, json=JsonHold.WHITESPACE)
    async with stage(websocket, start=0.3, terms=terms) as s, s.session.ws_connect(s.url + REALTIME) as socket:
        await socket.send_str("x")
        assert await socket.receive_str() == "echo x"


async def test_a_large_message_passes_whole() -> None:
    message = bytes(range(256)) * (20 << 10)
    async with (
        stage(websocket, awake=True) as s,
        s.session.ws_connect(s.url + REALTIME, max_msg_size=16 << 20) as socket,
    ):
        await socket.send_bytes(message)
        assert await socket.receive_bytes() == message


async def test_a_websocket_in_silence_counts_as_use_for_as_long_as_it_is_open() -> None:
    async with stage(websocket, awake=True, idle=0.1) as s:
        async with s.session.ws_connect(s.url + REALTIME) as socket:
            await asyncio.sleep(0.5)
            assert s.phase_is(Ready)
            await socket.send_str("x")
            assert await socket.receive_str() == "echo x"
        await s.until(lambda: s.phase_is(Asleep))
        assert s.metric("vllm_chill_requests_total", method="GET", route="proxied", status="101") == 1


async def test_the_upstreams_close_reaches_the_client_with_its_code() -> None:
    async with stage(websocket, awake=True) as s, s.session.ws_connect(s.url + REALTIME) as socket:
        await socket.send_str("close")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 4000)
    await s.until(lambda: s.controller.target.in_flight == 0)


async def test_a_client_that_vanishes_frees_the_upstream_and_the_lease() -> None:
    gone = asyncio.Event()

    async def watched(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await websocket(request)
        finally:
            gone.set()

    async with stage(watched, awake=True) as s:
        async with aiohttp.ClientSession() as other:
            socket = await other.ws_connect(s.url + REALTIME)
            await socket.send_str("x")
            await socket.receive_str()
            transport = socket.get_extra_info("socket")
            assert transport is not None
            assert socket._response.connection is not None
            assert isinstance(socket._response.connection.transport, asyncio.Transport)
            socket._response.connection.transport.abort()
            await asyncio.wait_for(gone.wait(), 2)
        await s.until(lambda: s.controller.target.in_flight == 0)


async def test_an_upgrade_that_is_refused_is_answered_with_the_refusal() -> None:
    async def refuses(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"error": "no realtime here"}, status=403)

    async with stage(refuses, awake=True) as s:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await s.session.ws_connect(s.url + REALTIME)
        assert error.value.status == 403
        await s.until(lambda: s.controller.target.in_flight == 0)


async def test_any_other_protocol_passes_too_and_what_comes_early_is_not_lost() -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nUpgrade: shout\r\n" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
        while piece := await reader.read(1000):
            writer.write(piece.upper())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(upper, "127.0.0.1", 0)
    async with server, stage(awake=True) as s:
        s.backend.endpoint = type(s.backend.endpoint)(*server.sockets[0].getsockname())
        s.backend.ready()
        reader, writer = await asyncio.open_connection(*s.address)
        writer.write(b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 2) == b"HELLO"
        writer.close()
        await writer.wait_closed()
        await s.until(lambda: s.controller.target.in_flight == 0)


async def test_h2c_is_not_passed_on() -> None:
    async with stage(awake=True) as s:
        answer = await s.raw(
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"h2c" not in answer.lower().split(b"\r\n\r\n", 1)[1]


async def test_an_upgrade_from_an_upstream_that_is_not_there_is_an_error_in_openais_shape() -> None:
    async def hangs_up(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with stage(hangs_up, awake=True) as s:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await s.session.ws_connect(s.url + REALTIME)
        assert error.value.status == 502


async def test_one_that_is_held_is_told_nothing_before_the_upgrade() -> None:
    terms = HoldOptions(json=JsonHold.WHITESPACE, beat_after_seconds=0.01, beat_seconds=0.01)
    async with stage(websocket, start=0.3, terms=terms) as s, s.session.ws_connect(s.url + REALTIME) as socket:
        await socket.send_str("x")
        assert await socket.receive_str() == "echo x"


@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", b"\r\n"], ids=["a length", "no length"])
async def test_a_refusal_that_breaks_off_is_broken_off_and_nothing_is_written_behind_it(framing: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 403 Forbidden\r\n" + framing + b"hello")
        await asyncio.sleep(0.1)
        cut_off(peer.writer.transport, reset=True)  # type: ignore[arg-type]

    async with upstream_of(script) as upstream, stage(awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        reader, writer = await asyncio.open_connection(*s.address)
        writer.write(b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.readuntil(b"hello")
        with pytest.raises(ConnectionResetError) if framing == b"\r\n" else contextlib.nullcontext():
            assert await reader.read() == b""
        writer.transport.abort()
