from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.proxy.wire import LOCALHOST, Peer, Upstream, upstream_of
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import ChillError, UpstreamRefused
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool


async def staying(peer: Peer) -> None:
    await peer.rest()


@asynccontextmanager
async def pooled(**limits: float) -> AsyncIterator[tuple[UpstreamPool, Upstream]]:
    async with upstream_of(staying) as upstream, asyncio.timeout(10):
        pool = UpstreamPool(
            idle_limit=int(limits.get("idle_limit", 10)),
            idle_seconds=limits.get("idle_seconds", 10.0),
            orphan_seconds=limits.get("orphan_seconds"),
        )
        try:
            yield pool, upstream
        finally:
            await pool.aclose()


async def connected(pool: UpstreamPool, upstream: Upstream, count: int) -> list[UpstreamConnection]:
    return [await pool.connect(upstream.endpoint, 5) for _ in range(count)]


class Listener:
    """An exchange that remembers what it was told."""

    def __init__(self) -> None:
        self.data = b""
        self.failure: ChillError | None = None
        self.over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def received(self, data: bytes) -> None:
        self.data += data

    @property
    def sent(self) -> int:
        return len(self.data)

    def fail(self, failure: ChillError) -> None:
        self.failure = failure

    def ended(self, error: Exception | None) -> None:
        self.over.set_result(error)


async def test_a_connection_sends_at_once_and_notices_a_dead_node() -> None:
    async with pooled() as (pool, upstream):
        (connection,) = await connected(pool, upstream, 1)
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_the_latest_idle_connection_is_taken_first() -> None:
    async with pooled() as (pool, upstream):
        assert pool.take(upstream.endpoint) is None
        first, second = await connected(pool, upstream, 2)
        assert not first.reused
        pool.release(first)
        pool.release(second)
        assert pool.take(upstream.endpoint) is second
        assert second.reused
        assert pool.take(upstream.endpoint) is first
        assert pool.take(upstream.endpoint) is None


async def test_connections_are_kept_per_endpoint() -> None:
    async with pooled() as (pool, upstream), upstream_of(staying) as other:
        (connection,) = await connected(pool, upstream, 1)
        pool.release(connection)
        assert pool.take(other.endpoint) is None
        assert pool.take(Endpoint(upstream.endpoint.host, upstream.endpoint.port)) is connection


async def test_no_more_than_the_limit_are_kept() -> None:
    async with pooled(idle_limit=2) as (pool, upstream):
        connections = await connected(pool, upstream, 3)
        for connection in connections:
            pool.release(connection)
        assert connections[2].transport.is_closing()
        assert [pool.take(upstream.endpoint) for _ in range(3)] == [connections[1], connections[0], None]


async def test_a_connection_that_has_waited_too_long_is_not_taken_and_then_closed() -> None:
    async with pooled(idle_seconds=0.05) as (pool, upstream):
        old, older = await connected(pool, upstream, 2)
        pool.release(older)
        pool.release(old)
        await asyncio.sleep(0.051)
        assert pool.take(upstream.endpoint) is None
        pool.release(await pool.connect(upstream.endpoint, 5))
        (left,) = pool._homes[upstream.endpoint].idle
        await left.wait_closed()
        assert not pool._homes[upstream.endpoint].idle


async def test_an_idle_connection_that_the_upstream_closes_is_forgotten() -> None:
    async with pooled() as (pool, upstream):
        connections = await connected(pool, upstream, 2)
        for connection in connections:
            pool.release(connection)
        await upstream.stop()
        for connection in connections:
            await connection.wait_closed()
        assert pool.take(upstream.endpoint) is None


async def test_an_idle_connection_that_says_something_is_closed() -> None:
    async def talking(peer: Peer) -> None:
        await peer.exactly(1)
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.rest()

    async with upstream_of(talking) as upstream, asyncio.timeout(5):
        pool = UpstreamPool()
        (connection,) = await connected(pool, upstream, 1)
        connection.transport.write(b"?")
        pool.release(connection)
        await connection.wait_closed()
        assert pool.take(upstream.endpoint) is None
        await pool.aclose()


async def test_closing_an_endpoint_closes_the_idle_now_and_the_used_when_they_come_back() -> None:
    async with pooled() as (pool, upstream):
        idle, used = await connected(pool, upstream, 2)
        pool.release(idle)
        pool.close_endpoint(upstream.endpoint)
        pool.close_endpoint(upstream.endpoint)
        assert idle.transport.is_closing()
        assert not used.transport.is_closing()
        new = await pool.connect(upstream.endpoint, 5)
        pool.release(used)
        assert used.transport.is_closing()
        pool.release(new)
        assert pool.take(upstream.endpoint) is new


async def test_closing_the_pool_closes_all_and_tells_who_had_them() -> None:
    async with pooled() as (pool, upstream):
        idle, used, leaving = await connected(pool, upstream, 3)
        pool.release(idle)
        listener = used.exchange = Listener()
        pool.close_endpoint(upstream.endpoint)
        await pool.aclose()
        assert all(connection.transport.is_closing() for connection in (idle, used, leaving))
        assert listener.over.done()


async def test_an_exchange_is_told_once_that_the_upstream_closed_even_with_bytes_unsent() -> None:
    async def half(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.writer.write_eof()
        await asyncio.sleep(5)

    async with upstream_of(half) as upstream, asyncio.timeout(5):
        pool = UpstreamPool()
        (connection,) = await connected(pool, upstream, 1)
        listener = connection.exchange = Listener()
        connection.transport.write(b"x" * 50_000_000)
        assert await listener.over is None
        await connection.wait_closed()
        await pool.aclose()


async def test_a_writer_waits_until_the_upstream_reads_or_is_gone() -> None:
    for ending in ("reads", "is gone"):
        go = asyncio.Event()

        async def slow(peer: Peer, go: asyncio.Event = go, ending: str = ending) -> None:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await go.wait()
            if ending == "reads":
                peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
                while await peer.reader.read(1 << 20):
                    pass

        async with upstream_of(slow) as upstream, asyncio.timeout(5):
            pool = UpstreamPool()
            (connection,) = await connected(pool, upstream, 1)
            connection.writelines([b"x" * 25_000_000, b"y" * 25_000_000])
            waiting = asyncio.ensure_future(connection.drain())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            go.set()
            await waiting
            await pool.aclose()


async def test_nobody_listening_is_refused_by_name() -> None:
    pool = UpstreamPool()
    with socket.create_server((LOCALHOST, 0)) as unused:
        endpoint = Endpoint(LOCALHOST, unused.getsockname()[1])
    with pytest.raises(UpstreamRefused, match=f"{endpoint} took no connection .*; see whether the model server"):
        await pool.connect(endpoint, 5)
    with pytest.raises(UpstreamRefused, match=r"nowhere\.invalid:80 took no connection"):
        await pool.connect(Endpoint("nowhere.invalid", 80), 5)
    await pool.aclose()


async def test_a_connect_that_takes_too_long_is_refused() -> None:
    pool = UpstreamPool()
    with socket.create_server((LOCALHOST, 0), backlog=0) as full:
        endpoint = Endpoint(LOCALHOST, full.getsockname()[1])
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((endpoint.host, endpoint.port))
        with pytest.raises(UpstreamRefused, match=r"took no connection within 0\.1 s"):
            await pool.connect(endpoint, 0.1)
        for filler in fillers:
            filler.close()
    await pool.aclose()


async def test_a_silent_response_is_given_up_only_once_its_replica_is_gone() -> None:
    async with pooled(orphan_seconds=0.1) as (pool, upstream):
        silent, talking = await connected(pool, upstream, 2)
        silent.exchange, talking.exchange = quiet, heard = Listener(), Listener()
        await asyncio.sleep(0.3)
        before = quiet.failure
        pool.close_endpoint(upstream.endpoint)
        for _ in range(8):
            heard.received(b"x")
            await asyncio.sleep(0.03)
        assert before is heard.failure is None
        assert "gone" in str(quiet.failure)
