"""A large body is poured through one buffer, and nobody on either side can tell."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

import pytest
import uvloop
from aiohttp import web

from tests.proxy.wire import Peer
from tests.scenarios.stage import Stage, stage
from vllm_chill.proxy.pour import POURED_BYTES, Pour

BODY = random.Random(1).randbytes(16 * POURED_BYTES)  # more than the kernel takes between the two ends
GET = b"GET /v1/responses/x HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)

Run = Callable[[Coroutine[None, None, None]], None]


class Wire(asyncio.Transport):
    """A transport that notes what becomes of it."""

    def __init__(self, *, closing: bool = False) -> None:
        super().__init__()
        self.closing = closing
        self.protocol: asyncio.BaseProtocol | None = None
        self.limits: list[int | None] = []

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert not self.closing
        self.limits.append(high)


class Told(asyncio.Protocol):
    """A protocol that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.said.append(data)

    def eof_received(self) -> bool:
        self.said.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.said.append(exc)

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")


def fed(pour: Pour, data: bytes) -> None:
    room = pour.get_buffer(-1)
    room[: len(data)] = data
    pour.buffer_updated(len(data))


class TestPour:
    def test_only_pieces_that_may_be_kept_are_copied(self) -> None:
        told, source, sink = Told(), Wire(), Wire()
        pour = Pour(told, source, sink, 60_005, 40_000)
        for piece in (b"a" * 40_000, b"b" * 5, b"c" * 20_000):
            assert source.protocol is pour
            fed(pour, piece)
        large, small, last = told.said
        assert isinstance(large, memoryview)
        assert (small, last) == (b"b" * 5, b"c" * 20_000)
        assert isinstance(small, bytes)
        assert isinstance(last, bytes)
        assert source.protocol is told

    def test_what_is_behind_comes_with_the_last_piece(self) -> None:
        told, source = Told(), Wire()
        fed(Pour(told, source, Wire(), 30_000, 40_000), b"a" * 30_001)
        assert told.said == [b"a" * 30_001]
        assert source.protocol is told

    def test_the_sink_keeps_nothing_unsaid_meanwhile(self) -> None:
        sink = Wire()
        pour = Pour(Told(), Wire(), sink, 5, 10)
        assert sink.limits == [0]
        fed(pour, b"a" * 5)
        assert sink.limits == [0, None]

    def test_a_sink_that_has_gone_is_left_alone(self) -> None:
        fed(Pour(Told(), Wire(), Wire(closing=True), 5, 10), b"a" * 5)

    def test_all_else_is_the_protocols(self) -> None:
        told, lost = Told(), ConnectionResetError()
        pour = Pour(told, Wire(), Wire(), 5, 10)
        pour.pause_writing()
        pour.resume_writing()
        assert pour.eof_received()
        pour.connection_lost(lost)
        assert told.said == ["pause", "resume", "eof", lost]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a scenario on an event loop of each kind: they differ in what a transport keeps of what is written."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


@contextlib.asynccontextmanager
async def client_of(s: Stage) -> AsyncIterator[Peer]:
    peer = Peer(*await asyncio.open_connection(*s.address, limit=1 << 16))
    try:
        yield peer
    finally:
        peer.reset()


async def is_read_slowly(peer: Peer) -> bool:
    """Whether the body comes as it is, to a client that takes its time."""
    await asyncio.sleep(0.1)
    head = await peer.head()
    body = await peer.exactly(len(BODY))
    assert b"200 OK" in head
    return body == BODY


@pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
class TestBothWays:
    def test_a_slow_reader_gets_every_byte_and_the_connection_goes_on(self, run: Run, fast: bool) -> None:
        async def upstream(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(body=BODY)

        async def scenario() -> None:
            async with asyncio.timeout(20), stage(upstream, fast=fast) as s, client_of(s) as client:
                for _ in range(2):
                    await client.send(GET)
                    assert await is_read_slowly(client)

        run(scenario())

    def test_a_slow_upstream_gets_every_byte_and_the_request_behind_is_served(self, run: Run, fast: bool) -> None:
        async def upstream(request: web.BaseRequest) -> web.StreamResponse:
            await asyncio.sleep(0.1)
            body = b"".join([piece async for piece in request.content.iter_any()])
            return web.Response(text=f"{len(body)} {body == BODY}")

        async def scenario() -> None:
            async with asyncio.timeout(20), stage(upstream, fast=fast) as s, client_of(s) as client:
                sending = asyncio.create_task(client.send(POST + BODY + POST + BODY + GET))
                said = [(await client.response())[1] for _ in range(3)]
                assert said == [b"%d True" % len(BODY), b"%d True" % len(BODY), b"0 False"]
                await sending

        run(scenario())

    def test_an_upstream_that_breaks_off_cuts_the_client(self, run: Run, fast: bool) -> None:
        async def upstream(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": str(len(BODY))})
            await response.prepare(request)
            await response.write(BODY[: 2 * POURED_BYTES])
            assert request.transport is not None
            request.transport.abort()
            return response

        async def scenario() -> None:
            async with asyncio.timeout(20), stage(upstream, fast=fast) as s, client_of(s) as client:
                await client.send(GET)
                await client.head()
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await client.exactly(len(BODY))
                await s.until(lambda: not s.server._active)

        run(scenario())

    def test_an_upstream_that_leaves_within_the_body_is_told(self, run: Run, fast: bool) -> None:
        async def upstream(request: web.BaseRequest) -> web.StreamResponse:
            await request.content.read(POURED_BYTES)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        async def scenario() -> None:
            async with asyncio.timeout(20), stage(upstream, fast=fast) as s, client_of(s) as client:
                sending = asyncio.create_task(client.send(POST + BODY))
                assert (await client.head()).startswith(b"HTTP/1.1 502 ")
                client.reset()
                await asyncio.wait([sending])
                await s.until(lambda: not s.server._active)

        run(scenario())
