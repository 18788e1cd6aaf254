"""Either side gone at every byte: nobody takes a part for the whole, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket

import pytest

from tests.proxy.wire import Peer, length_in, upstream_of
from tests.scenarios.stage import Stage, stage
from vllm_chill.core.target import Observation
from vllm_chill.proxy.aiohttp_seam import cut_off

LANES = pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
HOW = pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])

REQUESTS = {
    "a length": b"POST /v1/audio/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"POST /v1/audio/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\nT: t\r\n\r\n",
}
OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES = {
    "a length": OK + b"Content-Length: 5\r\n\r\nhello",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: t\r\n\r\n",
    "an interim head before it": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi",
}


async def at_rest(s: Stage) -> None:
    await s.until(lambda: not s.server._active and not s.controller.target.in_flight)
    assert not s.desk.budget.taken


def files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a number is all that is wanted


def hang_up(peer: Peer, *, reset: bool) -> None:
    cut_off(peer.writer.transport, reset=reset)  # type: ignore[arg-type]


@LANES
@HOW
@pytest.mark.parametrize("data", REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_client_that_leaves_at_any_byte_of_its_request_leaves_nothing(
    fast: bool, reset: bool, data: bytes
) -> None:
    whole = 0

    async def script(peer: Peer) -> None:
        nonlocal whole
        while True:
            head = await peer.head()
            await (peer.chunks() if b"ransfer-E" in head else peer.exactly(5))
            whole += 1
            await peer.send(RESPONSES["a length"])

    async with upstream_of(script) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        before = 0
        for size in range(len(data) + 1):
            peer = Peer(*await asyncio.open_connection(*s.address))
            with contextlib.suppress(ConnectionError):
                await peer.send(data[:size])
            hang_up(peer, reset=reset)
            if size == 10:
                await at_rest(s)
                before = files()
        await at_rest(s)
        await s.until(lambda: files() <= before + 3)  # what is kept to the upstream
        assert whole <= 2  # all but its last byte is no request; of a chunked one its trailers are not needed


@LANES
async def test_an_upstream_that_leaves_at_any_byte_of_its_response_is_never_taken_for_one_that_answered(
    fast: bool,
) -> None:
    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        kind, how, size = head.split(b" ")[1].rpartition(b"/")[2].split(b"-")
        if piece := list(RESPONSES.values())[int(kind)][: int(size)]:
            await peer.send(piece)
            await asyncio.sleep(0.001)
        hang_up(peer, reset=how == b"reset")

    async def check(s: Stage, kind: int, response: bytes, how: str, size: int) -> None:
        answer = await _answer_of(s, f"{kind}-{how}-{size}".encode())
        assert answer is None or answer.startswith(b"HTTP/1.1 502 "), (response, size, answer)

    async with upstream_of(script) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        async with asyncio.TaskGroup() as tasks:
            for kind, response in enumerate(RESPONSES.values()):
                for size in range(len(response)):
                    for how in ("reset", "close"):
                        tasks.create_task(check(s, kind, response, how, size))
        for kind, response in enumerate(RESPONSES.values()):
            answer = await _answer_of(s, f"{kind}-close-{len(response)}".encode())
            assert (answer or b"").startswith(b"HTTP/1.1 200 ")
        await at_rest(s)


async def _answer_of(s: Stage, name: bytes) -> bytes | None:
    """What a client gets, if it is a whole response."""
    peer = Peer(*await asyncio.open_connection(*s.address))
    try:
        await peer.send(REQUESTS["a length"].replace(b"/x ", b"/%b " % name))
        async with asyncio.timeout(10):
            head = await peer.head()
            if b"ransfer-E" not in head:
                return head + await peer.exactly(length_in(head))
            body = b""
            while not body.endswith(b"0\r\nT: t\r\n\r\n"):
                body += await peer.exactly(1)
            return head + body
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    finally:
        peer.reset()


@LANES
async def test_a_client_that_sends_all_and_closes_its_side_has_left(fast: bool) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.rest()
        gone.set()

    async with upstream_of(script) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        peer = Peer(*await asyncio.open_connection(*s.address))
        await peer.send(REQUESTS["a length"])
        await s.until(lambda: s.controller.target.in_flight == 1)
        peer.writer.write_eof()
        await asyncio.wait_for(gone.wait(), 2)
        await at_rest(s)
        peer.reset()


@LANES
async def test_a_client_that_has_vanished_is_noticed_by_the_kernel(fast: bool) -> None:
    async with stage(fast=fast, awake=True) as s:
        peer = Peer(*await asyncio.open_connection(*s.address))
        await peer.send(REQUESTS["a length"])
        await peer.head()
        client = peer.writer.get_extra_info("sockname")
        found = [each for each in _sockets() if _peer_name(each) == client]
        assert [each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for each in found] == [1]
        assert found[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        peer.reset()


def _sockets() -> list[socket.socket]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, socket.socket) and each.fileno() >= 0]


def _peer_name(each: socket.socket) -> object:
    try:
        return each.getpeername()
    except OSError:
        return None
