"""The probe on real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.adapters.contract import Seen
from tests.proxy.wire import CHUNKED, HELLO, LOCALHOST, OK, Peer, Script, Upstream, answering, saying, upstream_of
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.prober import Probing, ProbingBackend
from vllm_chill.core.readiness import Answered, Refused, Unclear
from vllm_chill.core.target import Endpoint, Stage, TargetRef
from vllm_chill.proxy.probe import BODY_BYTES, Prober
from vllm_chill.proxy.upstream import UpstreamPool

BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
MODELS = b'{"object": "list", "data": [{"id": "tiny"}]}'
REF = TargetRef("test", "vllm")


@asynccontextmanager
async def probing(script: Script) -> AsyncIterator[tuple[Prober, UpstreamPool, Upstream]]:
    async with upstream_of(script) as upstream, aclosing(UpstreamPool()) as pool, asyncio.timeout(10):
        yield Prober(pool), pool, upstream


def with_body(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def unused() -> Endpoint:
    with socket.create_server((LOCALHOST, 0)) as server:
        return Endpoint(LOCALHOST, server.getsockname()[1])


async def test_it_asks_as_a_client_of_http_1_1_does() -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.send(HELLO)
        await peer.rest()

    async with probing(script) as (prober, _, upstream):
        assert await prober.ask(upstream.endpoint, "/health", 5) == Answered(200, b"hello")
    assert heads[0].split(b"\r\n")[:2] == [b"GET /health HTTP/1.1", f"Host: {upstream.endpoint}".encode()]


async def test_the_connection_waits_in_the_pool_for_the_first_request() -> None:
    async with probing(answering(HELLO)) as (prober, pool, upstream):
        for _ in range(3):
            await prober.ask(upstream.endpoint, "/health", 5)
        assert upstream.connections == 1
        connection = pool.take(upstream.endpoint)
        assert connection is not None
        assert connection.reused, "a request that finds it closed goes out on a new one"


@pytest.mark.parametrize(
    ("response", "answer", "kept"),
    [
        pytest.param(BUSY, Answered(503), True, id="not ready"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\n", Answered(200), True, id="no body"),
        pytest.param(CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", Answered(200, b"hello"), True, id="chunks"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, Answered(200, b"hello"), True, id="an interim head"),
        pytest.param(OK + b"Connection: close\r\n\r\nhello", Answered(200, b"hello"), False, id="up to its end"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nhello", Answered(200, b"hello"), False, id="HTTP/1.0"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", Unclear(), False, id="another protocol"),
        pytest.param(b"\x00" * 100, Unclear(), False, id="garbage"),
        pytest.param(CHUNKED + b"zz\r\n", Unclear(), False, id="chunks that are none"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nhel", Unclear(), False, id="half of a response"),
        pytest.param(b"", Unclear(), False, id="nothing"),
        pytest.param(with_body(b"x" * (BODY_BYTES + 1)), Answered(200), True, id="more than is taken"),
        pytest.param(with_body(b"x" * 3 * BODY_BYTES), Answered(200), False, id="more than is read"),
    ],
)
async def test_what_comes_of_a_response(response: bytes, answer: Answered | Unclear, kept: bool) -> None:
    async with probing(answering(response) if kept else saying(response)) as (prober, pool, upstream):
        assert await prober.ask(upstream.endpoint, "/v1/models", 5) == answer
        assert (pool.take(upstream.endpoint) is not None) == kept


async def test_the_largest_list_that_is_read_is_read_whole() -> None:
    body = b"x" * BODY_BYTES
    async with probing(saying(with_body(body))) as (prober, _, upstream):
        assert await prober.ask(upstream.endpoint, "/v1/models", 5) == Answered(200, body)


async def test_what_is_sent_behind_a_response_closes_the_connection() -> None:
    async with probing(saying(HELLO + b"and more")) as (prober, pool, upstream):
        assert await prober.ask(upstream.endpoint, "/health", 5) == Answered(200, b"hello")
        assert pool.take(upstream.endpoint) is None


async def test_a_refused_connection_is_known_at_once() -> None:
    async with aclosing(UpstreamPool()) as pool:
        began = time.monotonic()
        assert await Prober(pool).ask(unused(), "/health", 5) == Refused()
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("first", [b"", OK + b"Content-Length: 5\r\n\r\n"], ids=["says nothing", "says half"])
async def test_a_server_that_hangs_costs_the_timeout(first: bytes) -> None:
    async def hangs(peer: Peer) -> None:
        await peer.head()
        await peer.send(first)
        assert await peer.closed(), "the connection is of no use any more"

    async with probing(hangs) as (prober, pool, upstream):
        began = time.monotonic()
        assert await prober.ask(upstream.endpoint, "/health", 0.2) == Unclear()
        assert 0.19 < time.monotonic() - began < 1
        assert pool.take(upstream.endpoint) is None


async def test_a_kept_connection_that_the_engine_has_closed_is_no_answer() -> None:
    async def once(peer: Peer) -> None:
        await peer.head()
        await peer.send(HELLO)
        await peer.head()

    async with probing(once) as (prober, _, upstream):
        for _ in range(2):
            assert await prober.ask(upstream.endpoint, "/health", 5) == Answered(200, b"hello")
        assert upstream.connections == 2


async def test_a_prober_that_is_ended_leaves_no_connection() -> None:
    gone = asyncio.Event()

    async def hangs(peer: Peer) -> None:
        await peer.head()
        assert await peer.closed()
        gone.set()

    async with probing(hangs) as (prober, _, upstream):
        asking = asyncio.create_task(prober.ask(upstream.endpoint, "/health", 5))
        await asyncio.sleep(0.05)
        asking.cancel()
        await gone.wait()


async def test_an_engine_that_comes_up_step_by_step_is_found_ready_at_the_last() -> None:
    health, listing = BUSY, with_body(b'{"object": "list", "data": []}')

    async def engine(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            await peer.send(listing if b"/v1/models" in head else health)

    async with probing(engine) as (prober, pool, upstream):
        lists: list[bytes] = []
        backend, seen = MemoryBackend(upstream.endpoint, start_seconds=60), Seen()
        how = Probing(prober.ask, listed=lambda _, body: lists.append(body))
        watching = asyncio.create_task(ProbingBackend(backend, how, direct=True).watch(REF, seen))
        await seen.until(lambda _: True)
        await backend.scale(REF, 1)
        await seen.until(lambda o: o.progress is not None and o.progress.stage is Stage.LOADING)
        health = HELLO
        await seen.until(lambda o: o.progress is not None and o.progress.stage is Stage.LISTING)
        assert seen.last is not None
        assert not seen.last.endpoints
        listing = with_body(MODELS)
        ready = await seen.until(lambda o: bool(o.endpoints))
        assert ready.endpoints == (upstream.endpoint,)
        assert lists == [MODELS]
        assert upstream.connections == 1
        assert pool.take(upstream.endpoint) is not None
        watching.cancel()
        await asyncio.wait([watching])
