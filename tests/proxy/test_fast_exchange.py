"""What an exchange on the fast lane keeps, gives back and takes for its own, whatever its client does."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from tests.proxy.wire import Peer
from tests.scenarios.stage import Stage, echo, stage
from vllm_chill.control.lease import Bounds
from vllm_chill.proxy.fast_lane import FastConnection, FastServer
from vllm_chill.proxy.hold import STREAMED_BYTES, Budget
from vllm_chill.proxy.hold_terms import HoldOptions

PATH = b"/v1/completions"
LANES = pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
JSON = b"Content-Type: application/json"


def post(body: bytes, *fields: bytes) -> bytes:
    """A plain request."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (PATH, lines, len(body), body)


ClientOf = Callable[[Stage], Awaitable[Peer]]


@pytest.fixture
async def client_of() -> AsyncIterator[ClientOf]:
    """Makes clients, which are gone after the test."""
    peers = []

    async def connected(s: Stage) -> Peer:
        peers.append(Peer(*await asyncio.open_connection(*s.address, limit=1 << 26)))
        return peers[-1]

    yield connected
    for peer in peers:
        peer.reset()


def connections(s: Stage) -> set[FastConnection]:
    server = s.server._runner._server
    assert isinstance(server, FastServer)
    return server.fast


def budget_of(s: Stage) -> Budget:
    return s.desk.budget


class TestAnAnswerBeforeTheBodyIsHere:
    EVIL = b"GET /proxy/version HTTP/1.1\r\nHost: a\r\n\r\n"

    @pytest.mark.parametrize(
        ("bounds", "terms", "status"),
        [
            (Bounds(waiting=0), HoldOptions(), b"429"),
            (Bounds(), HoldOptions(body_budget=10), b"503"),
        ],
        ids=["too many wait", "the budget is spent"],
    )
    @LANES
    async def test_the_rest_of_the_body_is_never_taken_for_a_request(
        self, client_of: ClientOf, bounds: Bounds, terms: HoldOptions, status: bytes, fast: bool
    ) -> None:
        async with asyncio.timeout(20), stage(start=5, bounds=bounds, terms=terms, fast=fast) as s:
            client = await client_of(s)
            request = post(self.EVIL)
            await client.send(request[: -len(self.EVIL)])
            head, _ = await client.response()
            assert head.split()[1] == status
            await client.send(self.EVIL)
            client.writer.write_eof()
            assert await client.rest() == b""

    async def test_it_is_said_to_be_the_last_and_arrives_although_the_body_goes_on(self, client_of: ClientOf) -> None:
        async with asyncio.timeout(20), stage(start=5, bounds=Bounds(waiting=0)) as s:
            client = await client_of(s)
            sending = asyncio.create_task(client.send(post(b"x" * 900_000)))
            head, body = await client.response()
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"Connection: close" in head
            assert b"too_many_waiting" in body
            await sending
            assert await client.closed()
            client.close()
            await s.until(lambda: not connections(s))


async def test_a_client_that_reads_no_answers_is_read_no_further(client_of: ClientOf) -> None:
    async with asyncio.timeout(20), stage(start=60, bounds=Bounds(waiting=0)) as s:
        client = await client_of(s)
        await s.until(lambda: len(connections(s)) == 1)
        [connection] = connections(s)
        for transport, option in (
            (client.writer.transport, socket.SO_RCVBUF),
            (connection.transport, socket.SO_SNDBUF),
        ):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 1 << 16)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def send() -> None:
            while True:
                await client.send(post(b"{}") * 10)

        sending = asyncio.create_task(send())
        await s.until(lambda: connection.writing_paused)
        await asyncio.sleep(0.5)
        assert connection.transport.get_write_buffer_size() < 70_000
        sending.cancel()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(1000):
            assert (await client.response())[0].startswith(b"HTTP/1.1 429 ")


async def test_a_connection_that_was_not_read_for_a_while_is_read_again_behind_an_answer(client_of: ClientOf) -> None:
    async with asyncio.timeout(20), stage(start=60, hold=0.1, replay_bytes=100) as s:
        client = await client_of(s)
        request = post(b"x" * 66_000)
        await client.send(request[:65_000])
        await asyncio.sleep(0.02)
        await client.send(request[65_000:])
        for _ in range(2):
            assert (await client.response())[0].startswith(b"HTTP/1.1 503 ")
            await client.send(post(b"{}"))


async def test_a_client_that_left_unseen_is_answered_in_vain_and_without_a_word(client_of: ClientOf) -> None:
    troubles: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    async with asyncio.timeout(20), stage(start=60, hold=0.3, replay_bytes=10) as s:
        client = await client_of(s)
        sending = asyncio.create_task(client.send(post(b"x" * 20_000_000)))
        await s.until(lambda: [connection for connection in connections(s) if connection._paused] != [])
        client.reset()
        await asyncio.wait([sending])
        await s.until(lambda: not connections(s) and not s.server._active)
        assert s.metric("vllm_chill_requests_total", method="POST", route="proxied", status="503") == 1
    gc.collect()
    assert not troubles


class TestTheBudget:
    @LANES
    async def test_a_large_body_in_json_wakes_the_target_and_is_answered(self, client_of: ClientOf, fast: bool) -> None:
        body = json.dumps({"model": "m", "prompt": "x" * 300_000}).encode()
        async with asyncio.timeout(20), stage(start=0.2, fast=fast, replay_bytes=100_000) as s:
            client = await client_of(s)
            sending = asyncio.create_task(client.send(post(body, JSON)))
            head, _ = await client.response()
            assert head.startswith(b"HTTP/1.1 200 ")
            await sending

    @LANES
    async def test_what_may_be_here_of_a_large_body_counts_while_it_is_held_and_no_longer(
        self, client_of: ClientOf, fast: bool
    ) -> None:
        gate = asyncio.Event()

        async def upstream(request: web.BaseRequest) -> web.StreamResponse:
            await gate.wait()
            return web.json_response({"size": len(await request.read())})

        terms = HoldOptions(body_budget=STREAMED_BYTES + 10)
        async with asyncio.timeout(20), stage(upstream, start=0.3, fast=fast, replay_bytes=10, terms=terms) as s:
            client, other = await client_of(s), await client_of(s)
            sending = asyncio.create_task(client.send(post(b"x" * 2_000_000)))
            await s.until(lambda: s.controller.target.waiting == 1)
            assert budget_of(s).taken == STREAMED_BYTES
            await other.send(post(b"x" * 11))
            head, body = await other.response()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"hold_budget_spent" in body
            await s.until(lambda: s.controller.target.in_flight == 1 and not budget_of(s).taken)
            gate.set()
            await client.response()
            await sending

    @LANES
    async def test_bodies_that_come_slowly_count_while_the_target_is_ready_too_and_then_go_on_as_they_come(
        self, client_of: ClientOf, fast: bool
    ) -> None:
        async with asyncio.timeout(20), stage(awake=True, fast=fast, terms=HoldOptions(body_budget=1000)) as s:
            slow, other = await client_of(s), await client_of(s)
            request = post(b"x" * 900)
            await slow.send(request[:-1])
            await s.until(lambda: budget_of(s).taken == 900)
            assert not s.controller.target.in_flight
            await other.send(request[:-1])
            await s.until(lambda: s.controller.target.in_flight == 1)
            assert budget_of(s).taken == 900
            for client in (other, slow):
                await client.send(request[-1:])
                assert b'"size": 900' in (await client.response())[1]
            await s.until(lambda: not budget_of(s).taken)

    @LANES
    async def test_while_others_wait_for_a_place_as_many_as_may_are_turned_away_without_their_bodies(
        self, client_of: ClientOf, fast: bool
    ) -> None:
        gate = asyncio.Event()

        async def upstream(request: web.BaseRequest) -> web.StreamResponse:
            await gate.wait()
            return await echo(request)

        async with asyncio.timeout(20), stage(upstream, awake=True, fast=fast, bounds=Bounds(1, 1)) as s:
            clients = [await client_of(s) for _ in range(3)]
            for number, client in enumerate(clients[:2]):
                await client.send(post(b"x"))
                await s.until(lambda: s.controller.target.in_flight + s.controller.target.waiting > number)  # noqa: B023
            await clients[2].send(post(b"x" * 10)[:-1])
            assert (await clients[2].response())[0].startswith(b"HTTP/1.1 429 ")
            gate.set()
            for client in clients[:2]:
                await client.response()
