"""What an exchange on the fast lane keeps, gives back and takes for its own, whatever its client does."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.proxy.wire import Peer
from tests.scenarios.stage import Stage, stage
from vllm_chill.control.controller import Bounds
from vllm_chill.proxy.fast_lane import FastConnection, FastServer
from vllm_chill.proxy.hold_terms import HoldOptions

PATH = b"/v1/completions"


def post(body: bytes, *fields: bytes) -> bytes:
    """A plain request."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (PATH, lines, len(body), body)


async def client_of(s: Stage) -> Peer:
    return Peer(*await asyncio.open_connection(*s.address, limit=1 << 26))


def connections(s: Stage) -> set[FastConnection]:
    server = s.server._runner._server
    assert isinstance(server, FastServer)
    return server.fast


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
    @pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
    async def test_the_rest_of_the_body_is_never_taken_for_a_request(
        self, bounds: Bounds, terms: HoldOptions, status: bytes, fast: bool
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
            client.close()

    async def test_it_is_said_to_be_the_last_and_arrives_although_the_body_goes_on(self) -> None:
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


async def test_a_client_that_reads_no_answers_is_read_no_further() -> None:
    async with asyncio.timeout(20), stage(start=60, bounds=Bounds(waiting=0)) as s:
        client = await client_of(s)
        await s.until(lambda: len(connections(s)) == 1)
        [connection] = connections(s)
        sides = (client.writer.transport, socket.SO_RCVBUF), (connection.transport, socket.SO_SNDBUF)
        for transport, option in sides:
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
        client.reset()


async def test_a_connection_that_was_not_read_for_a_while_is_read_again_behind_an_answer() -> None:
    async with asyncio.timeout(20), stage(start=60, hold=0.1, replay_bytes=100) as s:
        client = await client_of(s)
        request = post(b"x" * 66_000)
        await client.send(request[:65_000])
        await asyncio.sleep(0.02)
        await client.send(request[65_000:])
        for _ in range(2):
            assert (await client.response())[0].startswith(b"HTTP/1.1 503 ")
            await client.send(post(b"{}"))
        client.reset()
