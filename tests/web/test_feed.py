"""The feed: told at once and not too often, to a bounded number, and never more than the newest to one that is slow."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec import structs

from tests.scenarios.stage import Stage, envelope, stage
from vllm_chill.api.status import ProxyStatus, StartStatus, TargetStatus
from vllm_chill.core.target import Asleep, Ready, Waking
from vllm_chill.errors import TooManyListeners
from vllm_chill.proxy.aiohttp_seam import ClientServer
from vllm_chill.proxy.answer import answer
from vllm_chill.web.feed import BEAT_SECONDS, LOOK_SECONDS, STARTING_SECONDS, Feed, Newest

EVENTS = "/proxy/events"
START = StartStatus(stage="loading", elapsed_seconds=1.0)


class Told:
    """What a feed tells of: `signs` is what the test makes of it. `asked` counts how often it was."""

    def __init__(self, cause: str = "", start: StartStatus | None = None) -> None:
        self.signs, self.asked, self.looks = 0, 0, 0
        target = TargetStatus(target="t", phase="ready", waiting=0, in_flight=0, cause=cause, start=start)
        self.status = ProxyStatus(version="test", draining=False, targets=[target])

    def newest(self, **more: Any) -> Newest:
        return Newest(self._tell, self._look, **more)

    def _tell(self) -> ProxyStatus:
        self.asked += 1
        return structs.replace(self.status, version=str(self.signs))

    def _look(self) -> int:
        self.looks += 1
        return self.signs


def said(event: bytes) -> dict[str, Any]:
    kind, data, *rest = event.decode().split("\n")
    assert (kind, rest) == ("event: status", ["", ""])
    return dict(json.loads(data.removeprefix("data: ")))


class TestWhenThereIsAnother:
    def test_what_has_not_changed_is_the_same_event(self) -> None:
        told = Told()
        newest = told.newest()
        first = newest.at(100.0)
        assert newest.at(100.0 + LOOK_SECONDS) is first
        assert newest.at(100.0 + 2 * LOOK_SECONDS, rung=True) is first
        assert (told.asked, said(first)["version"]) == (1, "0")

    def test_what_has_changed_is_seen_at_the_next_look_and_at_once_by_the_bell(self) -> None:
        told = Told()
        newest = told.newest()
        newest.at(100.0)
        newest.at(101.0)
        told.signs = 1
        assert said(newest.at(101.01))["version"] == "0", "nobody looks all the time"
        assert said(newest.at(101.02, rung=True))["version"] == "1"
        told.signs = 2
        assert said(newest.at(101.02 + LOOK_SECONDS))["version"] == "2"

    def test_however_much_changes_events_are_apart(self) -> None:
        told = Told()
        newest = told.newest()
        for millisecond in range(1000):
            told.signs += 1
            newest.at(millisecond / 1000, rung=True)
        assert told.asked == 4

    @pytest.mark.parametrize(("start", "seconds"), [(None, BEAT_SECONDS), (START, STARTING_SECONDS)])
    def test_it_is_told_again_after_a_while(self, start: StartStatus | None, seconds: float) -> None:
        newest = Told(start=start).newest()
        first = newest.at(100.0)
        assert newest.at(100.0 + seconds - 0.01) is first
        assert newest.at(100.0 + seconds + LOOK_SECONDS) is not first

    def test_nothing_of_it_is_kept_for_nobody(self) -> None:
        told = Told()
        newest = told.newest()
        newest.at(100.0)
        newest.forget()
        assert newest.event is None
        told.signs = 1
        assert said(newest.at(100.0))["version"] == "1"


class Listener:
    """One who follows the events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, seconds: float = 5) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while True:
                event = await self.response.content.readuntil(b"\n\n")
                if event.startswith(b"event:"):
                    return said(event)

    async def until(self, phase: str) -> dict[str, Any]:
        while (found := await self.next())["targets"][0]["phase"] != phase:
            pass
        return found


@asynccontextmanager
async def listening(s: Stage, **headers: str) -> AsyncIterator[Listener]:
    async with s.session.get(s.url + EVENTS, headers=headers) as response:
        yield Listener(response)


class TestOverSockets:
    async def test_the_first_event_is_the_status_and_comes_at_once(self) -> None:
        async with stage() as s, listening(s) as listener:
            await s.until(lambda: s.controller.synced)
            assert (listener.response.status, listener.response.content_type) == (200, "text/event-stream")
            assert listener.response.headers["Cache-Control"] == "no-store"
            assert listener.response.headers["Server"] == "vllm-chill"
            await listener.until("asleep")
        async with stage() as s:
            await s.until(lambda: s.controller.synced)
            async with listening(s) as listener:
                told = await listener.next(1)
            _, status = await s.get("/proxy/status")
            for one in (told, status):
                one["targets"][0]["phase_seconds"] = None
            assert told == status

    async def test_every_phase_of_a_wake_is_told_and_nothing_is_woken_by_listening(self) -> None:
        async with stage(start=0.6) as s, listening(s) as listener:
            await listener.until("asleep")
            assert not s.backend.writes
            request = asyncio.create_task(s.post("/v1/chat/completions", json={}))
            assert (await listener.until("waking"))["targets"][0]["waiting"] == 1
            assert (await listener.until("ready"))["targets"][0]["waiting"] == 0
            assert (await request)[0] == 200

    async def test_a_request_that_waits_is_told_though_no_phase_changes(self) -> None:
        async with stage(start=60) as s, listening(s) as listener:
            await s.controller.wake(wait=False)
            await listener.until("waking")
            request = asyncio.create_task(s.post("/v1/chat/completions", json={}))
            while (await listener.next())["targets"][0]["waiting"] != 1:
                pass
            request.cancel()
            while (await listener.next())["targets"][0]["waiting"]:
                pass

    async def test_a_drain_ends_it_with_a_last_word(self) -> None:
        async with stage() as s, listening(s) as listener:
            assert not (await listener.next())["draining"]
            assert await s.server.drain(0, 5)
            while not (await listener.next())["draining"]:
                pass
            assert await listener.response.content.read() == b""

    async def test_head_has_no_stream(self) -> None:
        async with stage() as s, s.session.head(s.url + EVENTS) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")


@asynccontextmanager
async def served(feed: Feed) -> AsyncIterator[tuple[str, int]]:
    """The address of a server that has this feed and nothing else."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await feed.follow(request)
        except TooManyListeners as error:
            return answer(error)

    runner = web.ServerRunner(ClientServer(handle, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][:2]
    finally:
        await runner.cleanup()


async def until_there_are(feed: Feed, listeners: int) -> None:
    async with asyncio.timeout(5):
        while feed.listeners != listeners:  # noqa: ASYNC110 - a connection comes and goes by itself
            await asyncio.sleep(0.005)


class TestManyAndSlow:
    async def test_all_hear_of_a_ring_and_one_look_is_for_all(self) -> None:
        told = Told()
        feed = Feed(told.newest(look_seconds=0.05))
        async with served(feed) as (host, port), aiohttp.ClientSession() as session:
            responses = [await session.get(f"http://{host}:{port}/") for _ in range(20)]
            listeners = [Listener(response) for response in responses]
            assert {(await listener.next())["version"] for listener in listeners} == {"0"}
            for signs in range(1, 6):
                told.signs = signs
                feed.ring()
                assert {(await listener.next(1))["version"] for listener in listeners} == {str(signs)}
            assert told.asked == 6
            for response in responses:
                response.close()
            await until_there_are(feed, 0)
            looks = told.looks
            told.signs = 7
            feed.ring()
            await asyncio.sleep(0.2)
            assert (told.looks, told.asked) == (looks, 6), "nobody listens"

    async def test_there_is_room_for_so_many(self) -> None:
        feed = Feed(Told().newest(), most=2)
        async with served(feed) as (host, port), aiohttp.ClientSession() as session:
            url = f"http://{host}:{port}/"
            first, second = [await session.get(url) for _ in range(2)]
            async with session.get(url) as response:
                assert response.status == 429
                assert int(response.headers["Retry-After"]) > 0
                error = envelope(await response.text())
            assert error["code"] == "too_many_listeners"
            assert "/proxy/status" in error["message"]
            first.close()
            await until_there_are(feed, 1)
            async with session.get(url) as response:
                assert response.status == 200
            second.close()

    async def test_one_that_is_slow_gets_the_newest_and_holds_up_nobody(self) -> None:
        megabyte = Told("x" * (1 << 20))
        feed = Feed(megabyte.newest(look_seconds=0.01))
        async with served(feed) as (host, port), aiohttp.ClientSession() as session:
            loop = asyncio.get_running_loop()
            with socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                slow.setblocking(False)
                await loop.sock_connect(slow, (host, port))
                await loop.sock_sendall(slow, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await until_there_are(feed, 1)
                async with session.get(f"http://{host}:{port}/", read_bufsize=1 << 22) as response:
                    listener = Listener(response)
                    for signs in range(1, 21):
                        megabyte.signs = signs
                        while (await listener.next())["version"] != str(signs):
                            pass
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                told, last = bytearray(), b'"version":"20"'
                async with asyncio.timeout(10):
                    while last not in told[-(3 << 19) :] or not told.endswith(b"\n\n\r\n"):
                        told += await loop.sock_recv(slow, 1 << 20)
            assert told.count(b"event: status") < 12, "what it did not take was not kept for it"


@pytest.mark.parametrize("phase", [Asleep, Waking, Ready])
async def test_a_listener_that_leaves_changes_nothing(phase: type[Any]) -> None:
    async with stage(awake=phase is Ready, start=60) as s:
        if phase is Waking:
            await s.until(lambda: s.controller.synced)
            await s.controller.wake(wait=False)
        await s.until(lambda: s.phase_is(phase))
        async with listening(s) as listener:
            await listener.next()
        await s.until(lambda: not s.server._active)
        assert s.phase_is(phase)
