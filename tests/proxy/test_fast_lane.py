"""The fast lane on real sockets: what it takes, what it leaves to the handler, and either side gone at any stage."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

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
from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.core.routing import Routes
from vllm_chill.core.target import Endpoint, Limits, TargetRef
from vllm_chill.proxy.fast_lane import FastServer
from vllm_chill.proxy.handler import ProxyHandler, ProxyOptions
from vllm_chill.proxy.hold import Budget, HoldDesk
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.recorder import TargetRecorder
from vllm_chill.telemetry.start_record import StartRecord
from vllm_chill.web.server import ProxyServer


@dataclass
class Lane:
    """A proxy with the fast lane before a scripted upstream. `slow` has the requests that took the long way."""

    upstream: Upstream
    controller: ScaleController
    backend: MemoryBackend
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
async def lane_to(
    script: Script, *, response: float | None = 10.0, replay_bytes: int = 1 << 20, replicas: int = 1, start: float = 0.0
) -> AsyncIterator[Lane]:
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(upstream_of(script))
        pool = UpstreamPool()
        stack.push_async_callback(pool.aclose)
        metrics = Metrics(CollectorRegistry(), "test")
        backend = MemoryBackend(upstream.endpoint, replicas=replicas, start_seconds=start)
        controller = ScaleController(
            TargetRef("t", "t"), Limits(300, 300), backend, TargetRecorder(TargetRef("t", "t"), metrics)
        )
        running = asyncio.create_task(controller.run())
        stack.callback(running.cancel)
        options = ProxyOptions(HoldOptions(5), replay_bytes, RelayTimeouts(2, response))
        budget = Budget(options.hold.body_budget)
        desk = HoldDesk(controller, options.hold, budget, lambda _: "waking", lambda: 7)
        served = Served(controller, desk, StartRecord(controller.target.ref, metrics), ModelKnowledge())
        handler = ProxyHandler(Directory(budget, served), pool, metrics, options)
        slow: list[str] = []

        async def proxied(request: web.BaseRequest) -> web.StreamResponse:
            slow.append(request.raw_path)
            return await handler.proxy(request)

        server = ProxyServer(proxied, _no_local_routes, metrics, handler.fast_lane, Routes(("/*",)))
        stack.push_async_callback(server.close)
        [(_, port)] = await server.listen(LOCALHOST, 0)
        while not controller.synced:  # noqa: ASYNC110 - the first observation comes within a few turns of the loop
            await asyncio.sleep(0)
        yield Lane(upstream, controller, backend, metrics, pool, server, port, stack, slow)
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


async def test_plain_requests_take_it_and_share_a_kept_connection() -> None:
    async with lane_to(echo) as lane:
        client = await lane.client()
        for number in range(5):
            await client.send(post(f"/{number}", b"hello"))
            assert (await client.response())[1] == b"POST /%d HTTP/1.1hello" % number
        assert not lane.slow
        assert lane.upstream.connections == 1
        assert lane.count(200) == 5


async def test_a_request_may_come_in_any_two_pieces() -> None:
    async with lane_to(echo) as lane:
        request = post("/x", b"hello")
        head = request.index(b"\r\n\r\n") + 4
        client = await lane.warm()
        for at in range(head, len(request)):
            await client.send(request[:at])
            await lane.until(lambda: lane.server._active)
            await client.send(request[at:])
            assert (await client.response())[1] == b"POST /x HTTP/1.1hello"
            await lane.until(lambda: not lane.server._active)
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


@pytest.mark.parametrize("size", [100, 70_000, MIB, MIB + 1, 12 * MIB])
async def test_a_body_of_any_size_arrives_and_the_lane_goes_on_behind_it(size: int) -> None:
    async with lane_to(echo) as lane:
        client = await lane.warm()
        sending = asyncio.create_task(client.send(post("/big", BIG[:size]) + post("/behind", b"y")))
        assert (await client.response())[1] == b"POST /big HTTP/1.1" + BIG[:size]
        assert (await client.response())[1] == b"POST /behind HTTP/1.1y"
        await sending
        await client.send(post("/small", b"x"))
        assert (await client.response())[1] == b"POST /small HTTP/1.1x"
        assert not lane.slow


class TestAnUploadThatIsNotKept:
    async def test_it_goes_on_as_it_comes(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            for number in range(3):
                assert await peer.exactly(1) == b"%d" % number
                await peer.send(b"" if number else CHUNKED)
                await peer.send(b"1\r\n%d\r\n" % number)
            await peer.send(b"0\r\n\r\n")

        async with lane_to(script, replay_bytes=2) as lane:
            client = await lane.client()
            await client.send(post("/x", b"012")[:-3])
            for number in range(3):
                await client.send(b"%d" % number)
                if not number:
                    await client.head()
                assert await client.chunk() == b"%d" % number
            assert await client.chunk() == b""
            await lane.until(lambda: not lane.in_flight)
            assert not lane.slow

    async def test_an_upstream_that_does_not_read_holds_the_client_back(self) -> None:
        gate = asyncio.Event()
        taken = 0

        async def script(peer: Peer) -> None:
            nonlocal taken
            await peer.head()
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await gate.wait()
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            while taken < 5 * len(BIG):
                taken += len(await peer.reader.read(MIB))
            await peer.send(HELLO)

        async with lane_to(script) as lane:
            client = await lane.client()
            given = 0

            async def send() -> None:
                nonlocal given
                await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (5 * len(BIG)))
                for _ in range(5):
                    for at in range(0, len(BIG), MIB):
                        await client.send(BIG[at : at + MIB])
                        given += MIB

            sending = asyncio.create_task(send())
            assert await settled(lambda: given) < 5 * len(BIG)
            gate.set()
            assert (await client.response())[1] == b"hello"
            await sending
            assert taken == 5 * len(BIG)
            assert not lane.slow

    async def test_an_answer_before_its_end_arrives_and_the_connection_ends(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(HELLO.replace(b"200 OK", b"413 Too Large"))
            await peer.rest()

        async with lane_to(script) as lane:
            client = await lane.client()
            sending = asyncio.create_task(client.send(post("/", BIG)))
            head, body = await client.response()
            assert (head[:12], body) == (b"HTTP/1.1 413", b"hello")
            assert await client.closed()
            client.reset()
            with suppress(ConnectionError):
                await sending
            await lane.until(lambda: lane.count(413) == 1)

    async def test_an_upstream_that_dies_within_it_is_502(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.exactly(MIB)

        async with lane_to(script) as lane:
            client = await lane.client()
            sending = asyncio.create_task(client.send(post("/", BIG)))
            assert (await client.head()).startswith(b"HTTP/1.1 502 ")
            client.reset()
            with suppress(ConnectionError):
                await sending
            await lane.until(lambda: lane.count(502) == 1)
            assert lane.metrics.registry.get_sample_value("vllm_chill_replays_total") == 0

    async def test_a_client_that_leaves_within_it_frees_the_upstream(self) -> None:
        gone = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.head()
            with suppress(ConnectionError):
                await peer.rest()
            gone.set()

        async with lane_to(script) as lane:
            client = await lane.client()
            await client.send(post("/", BIG[: 2 * MIB])[:-1])
            await lane.until(lambda: lane.in_flight)
            client.reset()
            await asyncio.wait_for(gone.wait(), 2)
            await lane.until(lambda: lane.count(499) == 1)

    async def test_a_held_one_takes_little_of_the_client_meanwhile(self) -> None:
        async with lane_to(echo, replicas=0, start=0.2) as lane:
            client = await lane.client()
            sending = asyncio.create_task(client.send(post("/big", BIG)))
            await lane.until(lambda: lane.controller.target.waiting)
            await asyncio.sleep(0.1)
            assert not sending.done()
            assert (await client.response())[1] == b"POST /big HTTP/1.1" + BIG
            await sending
            assert not lane.slow


async def test_local_routes_are_not_relayed() -> None:
    async with lane_to(echo) as lane:
        client = await lane.warm()
        await client.send(GET.replace(b"/ ", b"/healthy "))
        assert b"GET /healthy" in (await client.response())[1]
        assert not lane.slow
        await client.send(GET.replace(b"/ ", b"/health?x "))
        assert b"HEALTH" in (await client.response())[1]


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
        await lane.until(lambda: lane.server._active)
        assert not lane.in_flight
        client.reset()
        await lane.until(lambda: lane.count(499) == 1)
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


class TestAHold:
    async def test_a_request_at_zero_wakes_the_target_and_waits_on_the_lane(self) -> None:
        async with lane_to(echo, replicas=0, start=0.05) as lane:
            clients = [await lane.client() for _ in range(20)]
            for client in clients:
                await client.send(post("/x", b"hello") + post("/y", b"behind"))
            await lane.until(lambda: lane.controller.target.waiting == 20)
            for client in clients:
                assert (await client.response())[1] == b"POST /x HTTP/1.1hello"
                assert (await client.response())[1] == b"POST /y HTTP/1.1behind"
            assert lane.backend.writes == [1]
            assert not lane.slow

    async def test_a_body_is_kept_once(self) -> None:
        count, body = 8, bytes(MIB // 2)
        async with lane_to(echo, replicas=0, start=30) as lane:
            clients = [await lane.client() for _ in range(count)]
            tracemalloc.start()
            try:
                for client in clients:
                    await client.send(post("/x", body))
                await lane.until(lambda: lane.controller.target.waiting == count)
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert count * len(body) <= kept < 1.5 * count * len(body)
            for client in clients:
                client.close()
            await lane.until(lambda: lane.count(499) == count)

    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_a_client_that_leaves_no_longer_waits(self, how: str) -> None:
        async with lane_to(echo, replicas=0, start=30) as lane:
            client = await lane.client()
            await client.send(POST)
            await lane.until(lambda: lane.controller.target.waiting)
            client.close() if how == "close" else client.reset()
            await lane.until(lambda: lane.count(499) == 1)
            await lane.until(lambda: not lane.controller.target.waiting)

    async def test_a_wake_that_fails_is_answered_and_the_connection_stays(self) -> None:
        async with lane_to(echo, replicas=0) as lane:
            lane.backend.fail_start = "no room"
            client = await lane.client()
            for _ in range(2):
                await client.send(POST)
                head, body = await client.response()
                assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                assert b"\r\nRetry-After: " in head
                assert b"no room" in json.loads(body)["error"]["message"].encode()
            assert lane.count(503) == 2
            assert not lane.slow

    async def test_a_refused_connection_is_tried_again(self) -> None:
        async with lane_to(echo) as lane:
            client = await lane.client()
            lane.backend._tell(replace(lane.backend.seen, endpoints=(Endpoint(LOCALHOST, 1),)))
            await client.send(POST)
            await asyncio.sleep(0.05)
            lane.backend.ready()
            assert (await client.response())[1] == b"POST / HTTP/1.1{}"
            assert not lane.slow

    async def test_a_bug_is_answered_with_500(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with lane_to(echo, replicas=0) as lane:

            async def broken(*_: object) -> None:
                raise LookupError("not for clients")

            monkeypatch.setattr(lane.controller, "lease", broken)
            client = await lane.client()
            await client.send(POST)
            head, body = await client.response()
            assert head.startswith(b"HTTP/1.1 500 ")
            assert b"not for clients" not in body
            assert lane.count(500) == 1


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
            assert not lane.slow
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

    async def test_while_draining_a_request_is_answered_and_its_connection_closed(self) -> None:
        async with lane_to(echo) as lane:
            client = await lane.warm()
            assert await lane.server.drain(0, 5)
            await client.send(POST)
            await client.response()
            assert not lane.slow
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


async def test_an_idle_connection_is_closed_in_time_and_one_in_use_is_spared() -> None:
    gate = asyncio.Event()
    async with lane_to(TestTheEnd.scripted(gate)) as lane:
        client = await lane.warm()
        server = lane.server._runner.server
        assert isinstance(server, FastServer)
        await client.send(POST)
        await client.head()
        idle = await lane.client()
        await lane.until(lambda: len(server.fast) == 2)
        server._idle_seconds = 0.0
        server._look()
        assert await idle.closed()
        gate.set()
        assert await client.chunks() == b"a"
        await lane.until(lambda: not lane.server._active)
        server._look()
        assert await client.closed()
        assert not server.fast


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
