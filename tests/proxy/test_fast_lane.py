"""The fast lane on real sockets: what it takes, what it leaves to the handler, and either side gone at any stage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from tests.proxy.wire import (
    BIG,
    CHUNKED,
    GET,
    HELLO,
    LOCALHOST,
    MIB,
    OK,
    POST,
    TO_CHUNKS,
    Peer,
    Script,
    Upstream,
    answering,
    settled,
    upstream_of,
    waiting,
)
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.controller import ScaleController
from vllm_chill.core.routing import Routes
from vllm_chill.core.target import Limits, TargetRef
from vllm_chill.proxy import fast_lane
from vllm_chill.proxy.fast_lane import FastConnection
from vllm_chill.proxy.handler import ProxyHandler, ProxyOptions
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.recorder import TargetRecorder
from vllm_chill.web.server import ProxyServer


@dataclass
class Lane:
    """A proxy with the fast lane before a scripted upstream. `slow` has the requests that took the long way."""

    upstream: Upstream
    controller: ScaleController
    metrics: Metrics
    pool: UpstreamPool
    server: ProxyServer
    port: int
    stack: AsyncExitStack
    slow: list[str] = field(default_factory=list)

    async def client(self) -> Peer:
        peer = Peer(*await asyncio.open_connection(LOCALHOST, self.port, limit=1 << 26))
        self.stack.callback(peer.reset)
        return peer

    async def warm(self) -> Peer:
        """A client after its first request, which has taken the long way and left a connection in the pool."""
        peer = await self.client()
        await peer.send(GET)
        await peer.response()
        await self.until(lambda: not self.in_flight)
        del self.slow[:]
        return peer

    @property
    def in_flight(self) -> int:
        return self.controller.target.in_flight

    def count(self, status: int, method: str = "POST") -> float:
        labels = {"method": method, "route": "proxied", "status": str(status)}
        return self.metrics.registry.get_sample_value("vllm_chill_requests_total", labels) or 0.0

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():  # noqa: ASYNC110 - what is awaited is anything at all
            await asyncio.sleep(0.002)


@asynccontextmanager
async def lane_to(script: Script, *, response: float | None = 10.0, replay_bytes: int = 1 << 20) -> AsyncIterator[Lane]:
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(upstream_of(script))
        pool = UpstreamPool()
        stack.push_async_callback(pool.aclose)
        metrics = Metrics(CollectorRegistry(), "test")
        backend = MemoryBackend(upstream.endpoint, replicas=1)
        controller = ScaleController(TargetRef("t", "t"), Limits(300, 300), backend, TargetRecorder(metrics))
        running = asyncio.create_task(controller.run())
        stack.callback(running.cancel)
        handler = ProxyHandler(controller, pool, metrics, ProxyOptions(5, replay_bytes, RelayTimeouts(2, response)))
        slow: list[str] = []

        async def proxied(request: web.BaseRequest) -> web.StreamResponse:
            slow.append(request.raw_path)
            return await handler.proxy(request)

        server = ProxyServer(proxied, _no_local_routes, metrics, handler.fast_lane, Routes(("/*",)))
        stack.push_async_callback(server.close)
        [(_, port)] = await server.listen(LOCALHOST, 0)
        while not controller.synced:  # noqa: ASYNC110 - the first observation comes within a few turns of the loop
            await asyncio.sleep(0)
        yield Lane(upstream, controller, metrics, pool, server, port, stack, slow)
        assert not controller.target.in_flight
        assert not server._active


async def _no_local_routes(route: object, request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=str(route))


async def echo(peer: Peer) -> None:
    """Answers with the first line and the body, in chunks of which the first is sent at once."""
    while True:
        head, body = await peer.request()
        line = head.split(b"\r\n")[0]
        await peer.send(CHUNKED + b"%x\r\n%b\r\n" % (len(line), line))
        await peer.send((b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n")


def post(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


async def test_a_plain_request_takes_it_once_a_connection_is_there() -> None:
    async with lane_to(echo) as lane:
        client = await lane.client()
        for number in range(5):
            await client.send(post(f"/{number}", b"hello"))
            assert (await client.response())[1] == b"POST /%d HTTP/1.1hello" % number
        assert lane.slow == ["/0"]
        assert lane.upstream.connections == 1
        assert lane.count(200) == 5


async def test_a_request_may_come_in_any_two_pieces() -> None:
    async with lane_to(echo) as lane:
        request = post("/x", b"hello")
        head = request.index(b"\r\n\r\n") + 4
        client = await lane.warm()
        for at in range(head, len(request)):
            await client.send(request[:at])
            await lane.until(lambda: lane.in_flight)
            await client.send(request[at:])
            assert (await client.response())[1] == b"POST /x HTTP/1.1hello"
        assert not lane.slow
        for at in range(1, head, 7):
            other = await lane.warm()
            await other.send(request[:at])
            await asyncio.sleep(0.002)
            await other.send(request[at:])
            assert (await other.response())[1] == b"POST /x HTTP/1.1hello"
            assert lane.slow == ["/x"]


async def test_what_is_not_plain_takes_the_long_way_for_good() -> None:
    async with lane_to(echo) as lane:
        client = await lane.warm()
        await client.send(GET.replace(b"Host", b"X: \xff\r\nHost"))
        await client.response()
        await client.send(GET)
        await client.response()
        assert lane.slow == ["/", "/"]


@pytest.mark.parametrize("size", [fast_lane.BODY_BYTES, fast_lane.BODY_BYTES + 1, 3 << 20])
async def test_a_body_of_any_size_arrives_and_the_lane_goes_on_behind_it(size: int) -> None:
    async with lane_to(echo) as lane:
        client = await lane.warm()
        sending = asyncio.create_task(client.send(post("/big", BIG[:size])))
        assert (await client.response())[1] == b"POST /big HTTP/1.1" + BIG[:size]
        await sending
        assert lane.slow == ["/big"] * (size > fast_lane.BODY_BYTES)
        await client.send(post("/small", b"x"))
        assert (await client.response())[1] == b"POST /small HTTP/1.1x"
        assert "/small" not in lane.slow


async def test_a_body_larger_than_may_be_sent_again_is_streamed() -> None:
    async with lane_to(echo, replay_bytes=10) as lane:
        client = await lane.warm()
        for body in (b"x" * 10, b"x" * 11):
            await client.send(post("/x", body))
            await client.response()
        assert lane.slow == ["/x"]


async def test_local_routes_are_not_relayed() -> None:
    async with lane_to(echo) as lane:
        client = await lane.warm()
        await client.send(GET.replace(b"/ ", b"/health?x "))
        assert b"HEALTH" in (await client.response())[1]
        await client.send(GET.replace(b"/ ", b"/healthy "))
        assert b"GET /healthy" in (await client.response())[1]
        assert not lane.slow


@pytest.mark.parametrize("first", [b"", GET.replace(b"Host", b"X: \xff\r\nHost")], ids=["fast", "not plain first"])
async def test_pipelined_requests_are_answered_in_order(first: bytes) -> None:
    async with lane_to(echo) as lane:
        client = await lane.warm()
        requests = [post(f"/{number}", b"x" * number) for number in range(200)]
        await client.send(first + b"".join(requests) + first)
        if first:
            await client.response()
        for number in range(200):
            assert (await client.response())[1] == b"POST /%d HTTP/1.1" % number + b"x" * number
        if first:
            await client.response()
        else:
            assert not lane.slow


async def test_a_client_that_pipelines_too_much_is_not_read() -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await gate.wait()
        await answering(HELLO)(peer)

    async with lane_to(script) as lane:
        client = await lane.warm()
        many = 10_000
        sending = asyncio.create_task(client.send(post("/", b"x" * 1000) * many))
        await asyncio.sleep(0.3)
        assert not sending.done()
        gate.set()
        for _ in range(many):
            assert (await client.response())[1] == b"hello"
        await sending
        assert not lane.slow


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("request_bytes", "first"),
    [
        (POST, b""),
        (POST, OK),
        (POST, OK + b"Content-Length: 10\r\n\r\nhello"),
        (POST, CHUNKED + b"5\r\nhello\r\n"),
        (POST, OK + b"\r\nhello"),
        (POST + POST, b""),
        (POST + POST, CHUNKED + b"5\r\nhello\r\n"),
    ],
    ids=["waiting", "in the head", "in a length", "in chunks", "to the close", "pipelining", "pipelining, in chunks"],
)
async def test_a_client_that_leaves_frees_the_upstream_and_the_lease(
    request_bytes: bytes, first: bytes, how: str
) -> None:
    gone, seen = asyncio.Event(), asyncio.Event()
    rest = waiting(first, gone, seen)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await rest(peer)

    async with lane_to(script) as lane:
        client = await lane.warm()
        await client.send(request_bytes)
        await seen.wait()
        assert lane.in_flight == 1
        client.close() if how == "close" else client.reset()
        await asyncio.wait_for(gone.wait(), 2)
        await lane.until(lambda: not lane.in_flight)
        assert not lane.slow
        assert lane.count(499) == 1


async def test_a_client_that_leaves_within_its_body_has_asked_nothing() -> None:
    async with lane_to(answering(HELLO)) as lane:
        client = await lane.warm()
        await client.send(POST[:-1])
        await lane.until(lambda: lane.in_flight)
        client.reset()
        await lane.until(lambda: not lane.in_flight)
        assert lane.count(499) == 1
        assert lane.upstream.connections == 1


async def test_a_slow_client_holds_the_upstream_back_and_keeps_its_lease_to_the_last_byte() -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(HELLO)
        await peer.request()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % (len(BIG) * 4))
        for _ in range(0, len(BIG) * 4, MIB):
            await peer.send(BIG[:MIB])
            sent += MIB
        await peer.rest()

    async with lane_to(script) as lane:
        client = await lane.warm()
        await client.send(POST)
        await client.head()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        assert await settled(lambda: sent) < len(BIG) * 4
        assert lane.in_flight == 1
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(0, len(BIG) * 4, MIB):
            assert await client.exactly(MIB) == BIG[:MIB]
        await lane.until(lambda: not lane.in_flight)
        assert lane.count(200) == 1
        assert not lane.slow


class TestFailuresBeforeTheFirstByte:
    async def test_a_stale_connection_is_replaced_without_a_word(self) -> None:
        async def once(peer: Peer) -> None:
            await peer.request()
            await peer.send(HELLO)
            await peer.request()

        async with lane_to(once) as lane:
            client = await lane.warm()
            await client.send(POST)
            assert (await client.response())[1] == b"hello"
            assert lane.slow == ["/"]
            assert lane.upstream.connections == 2
            assert lane.metrics.registry.get_sample_value("vllm_chill_replays_total") == 0
            assert lane.count(200) == 1

    async def test_an_upstream_that_dies_in_its_head_is_asked_once_more(self) -> None:
        served = 0

        async def script(peer: Peer) -> None:
            nonlocal served
            served += 1
            await peer.request()
            await peer.send(HELLO)
            await peer.request()
            await peer.send(OK)

        async with lane_to(script) as lane:
            client = await lane.warm()
            await client.send(POST)
            assert (await client.response())[1] == b"hello"
            assert lane.metrics.registry.get_sample_value("vllm_chill_replays_total") == 1
            assert served == 2
            assert lane.count(200) == 1

    async def test_silence_is_504_in_time(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(HELLO)
            await peer.rest()

        async with lane_to(script, response=0.1) as lane:
            client = await lane.warm()
            began = asyncio.get_running_loop().time()
            await client.send(POST)
            assert (await client.head()).startswith(b"HTTP/1.1 504 ")
            assert 0.09 < asyncio.get_running_loop().time() - began < 1
            assert lane.upstream.connections == 1
            await lane.until(lambda: lane.count(504) == 1)

    async def test_a_response_in_time_is_never_cut_by_its_timer(self) -> None:
        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                await peer.send(CHUNKED + b"1\r\na\r\n")
                await asyncio.sleep(0.15)
                await peer.send(b"0\r\n\r\n")

        async with lane_to(script, response=0.1) as lane:
            client = await lane.warm()
            for _ in range(3):
                await client.send(POST)
                assert (await client.response())[1] == b"a"
            assert not lane.slow

    async def test_what_is_not_http_is_502(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(HELLO)
            await peer.request()
            await peer.send(b"SSH-2.0\r\n\r\n")

        async with lane_to(script) as lane:
            client = await lane.warm()
            await client.send(POST)
            assert (await client.head()).startswith(b"HTTP/1.1 502 ")
            await lane.until(lambda: lane.count(502) == 1)

    async def test_what_was_pipelined_behind_it_is_answered_too(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(HELLO)
            await peer.request()
            await asyncio.sleep(0.02)

        async with lane_to(script) as lane:
            client = await lane.warm()
            await client.send(POST + POST)
            for _ in range(2):
                assert (await client.response())[1] == b"hello"
            assert lane.count(200) == 2

    async def test_a_client_that_leaves_as_it_is_handed_over_is_counted_once(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(HELLO)
            await peer.request()
            await peer.send(b"x\r\n\r\n")

        async with lane_to(script) as lane:
            for _ in range(10):
                client = await lane.warm()
                await client.send(POST)
                client.reset()
            await lane.until(lambda: sum(lane.count(status) for status in (499, 502)) == 10)


async def test_after_the_first_byte_the_client_is_cut_off_and_it_is_counted() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.request()
        await peer.send(CHUNKED + b"5\r\nhello\r\n")

    async with lane_to(script) as lane:
        client = await lane.warm()
        await client.send(POST)
        await client.head()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.chunks()
        assert lane.metrics.registry.get_sample_value("vllm_chill_responses_cut_total") == 1
        assert lane.count(200) == 1


@pytest.mark.parametrize(
    "response", [OK + b"\r\nhello", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"]
)
async def test_the_clients_connection_ends_with_a_response_that_has_no_other_end(response: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.request()
        await peer.send(response)

    async with lane_to(script) as lane:
        client = await lane.warm()
        await client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 200")
        if b"Length" in response:
            assert await client.exactly(5) == b"hello"
            await client.send(POST)
            assert (await client.response())[1] == b"hello"
        else:
            assert await client.rest() == b"hello"


class TestTheEnd:
    @staticmethod
    def scripted(gate: asyncio.Event) -> Script:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(HELLO)
            await peer.request()
            await peer.send(CHUNKED + b"1\r\na\r\n")
            await gate.wait()
            await peer.send(b"0\r\n\r\n")

        return script

    async def test_a_stream_finishes_within_the_drain_and_its_connection_ends(self) -> None:
        gate = asyncio.Event()
        async with lane_to(self.scripted(gate)) as lane:
            client = await lane.warm()
            await client.send(POST)
            await client.head()
            draining = asyncio.create_task(lane.server.drain(0, 5))
            await asyncio.sleep(0.02)
            assert not draining.done()
            gate.set()
            assert await draining
            assert await client.chunks() == b"a"
            assert await client.closed()

    async def test_while_draining_a_request_takes_the_long_way(self) -> None:
        async with lane_to(echo) as lane:
            client = await lane.warm()
            assert await lane.server.drain(0, 5)
            await client.send(POST)
            await client.response()
            assert lane.slow == ["/"]
            assert await client.closed()

    async def test_a_stream_finishes_within_the_grace_of_the_close(self) -> None:
        gate = asyncio.Event()
        async with lane_to(self.scripted(gate)) as lane:
            client = await lane.warm()
            await client.send(POST)
            await client.head()
            closing = asyncio.create_task(lane.server.close())
            await asyncio.sleep(0.02)
            gate.set()
            assert await client.chunks() == b"a"
            await closing

    async def test_what_takes_longer_is_cut_off_by_the_close(self) -> None:
        async with lane_to(self.scripted(asyncio.Event())) as lane:
            client = await lane.warm()
            await client.send(POST)
            await client.head()
            await lane.server.close()
            assert lane.count(499) == 1
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await client.chunks()

    async def test_idle_connections_do_not_hold_up_the_close(self) -> None:
        async with lane_to(echo) as lane:
            client = await lane.warm()
            await client.send(POST)
            await client.response()
            began = asyncio.get_running_loop().time()
            await lane.server.close()
            assert asyncio.get_running_loop().time() - began < 0.5
            assert await client.closed()


async def test_the_keep_alive_timer_spares_an_exchange_and_ends_an_idle_connection() -> None:
    gate = asyncio.Event()
    async with lane_to(TestTheEnd.scripted(gate)) as lane:
        client = await lane.warm()
        [connection] = lane.server._runner.server.connections  # type: ignore[union-attr]
        assert isinstance(connection, FastConnection)
        connection._keepalive_timeout = 0.05
        await client.send(POST)
        await client.head()
        connection._next_keepalive_close_time = 0
        connection._process_keepalive()
        await asyncio.sleep(0.12)
        gate.set()
        assert await client.chunks() == b"a"
        assert await client.closed()


@pytest.mark.parametrize("body", [b"5\r\nhello\r\nZZ\r\n\r\n", b"5\r\nhelloworld"])
async def test_a_broken_chunk_ends_the_request_with_400_and_frees_the_lease(body: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.rest()

    async with lane_to(script) as lane:
        client = await lane.client()
        await client.send(TO_CHUNKS)
        await lane.until(lambda: lane.in_flight)
        await client.send(body)
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"onnection: close" in head
        await client.rest()
        await lane.until(lambda: not lane.in_flight)
        assert lane.count(400) == 1


async def test_a_broken_chunk_within_the_response_cuts_the_client_off() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        await peer.rest()

    async with lane_to(script) as lane:
        client = await lane.client()
        await client.send(TO_CHUNKS + b"5\r\nhello\r\n")
        await client.head()
        await client.send(b"ZZ\r\n\r\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.chunks()
        await lane.until(lambda: not lane.in_flight)
