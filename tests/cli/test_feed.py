"""How the statuses of a proxy come: from its feed, by asking, and again after it was away."""

from __future__ import annotations

import asyncio
import queue
import socket
from collections.abc import Iterable

import pytest
from aiohttp import web
from msgspec.json import encode

from tests.cli.serves import Answer, asks_no_more, serves
from vllm_chill.api.status import ProxyStatus, TargetStatus
from vllm_chill.cli import feed
from vllm_chill.cli.asking import Proxy, Told
from vllm_chill.cli.feed import Away, Heard, data_of, follow_aside
from vllm_chill.errors import ChillError, NotAllowed


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(feed, "_PAUSES_SECONDS", (0.02, 0.05))


def status(waiting: int) -> bytes:
    target = TargetStatus(target="process/vllm", phase="ready", waiting=waiting, in_flight=0)
    return encode(ProxyStatus(version="1", draining=False, targets=[target]))


def without_feed(count: list[int]) -> Answer:
    """A proxy that has no feed, and of which one more waits with every look."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/proxy/status":
            return web.json_response({"error": {"message": "not here"}}, status=404)
        count[0] += 1
        return web.Response(body=status(count[0]), content_type="application/json")

    return answer


def with_feed(events: Iterable[bytes], asked: list[str]) -> Answer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/proxy/status":
            return web.Response(body=status(0), content_type="application/json")
        assert request.headers["Accept"] == "text/event-stream"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        await asyncio.Event().wait()
        return response

    return answer


class Followed:
    """What is heard, one by one."""

    def __init__(self, url: str) -> None:
        self._heard: queue.SimpleQueue[Heard | ChillError] = queue.SimpleQueue()
        self.over = follow_aside(Proxy(url), self._heard.put)

    async def end(self) -> None:
        """Return when it asks no more."""
        self.over.set()
        await asyncio.to_thread(asks_no_more, "feed")

    async def next(self) -> int | str | ChillError:
        """How many wait, or why it is not known."""
        heard = await asyncio.to_thread(self._heard.get, timeout=10)
        if isinstance(heard, Told):
            return heard.value.targets[0].waiting
        return heard.reason if isinstance(heard, Away) else heard


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        pytest.param(b"data: 1\n\n", [b"1"], id="one"),
        pytest.param(b": alive\n\nretry: 5\n\nevent: status\ndata:1\nid: 7\n\n", [b"1"], id="with other fields"),
        pytest.param(b"data: 1\ndata: 2\n\ndata\n\n", [b"1\n2", b""], id="of several lines, and none"),
        pytest.param(b"data: 1\n\ndata: 2\n", [b"1"], id="the last is cut"),
    ],
)
def test_events_are_read_as_the_standard_has_them(stream: bytes, data: list[bytes]) -> None:
    assert list(data_of(iter(stream.splitlines()))) == data


async def test_a_feed_is_followed_and_nothing_else_is_asked_meanwhile() -> None:
    asked: list[str] = []
    events = [b"data: %b\n\n" % status(7), b": alive\n\n", b"event: other\ndata: {}\n\n", b"data: %b\n\n" % status(9)]
    async with serves(with_feed(events, asked)) as url:
        followed = Followed(url)
        assert [await followed.next() for _ in range(3)] == [0, 7, 9]
        followed.over.set()
    assert asked == ["/proxy/status", "/proxy/events"]


async def test_a_proxy_without_a_feed_is_asked_again_and_again() -> None:
    async with serves(without_feed([0])) as url:
        followed = Followed(url)
        assert [await followed.next() for _ in range(4)] == [1, 2, 3, 4]
        await followed.end()


async def test_a_proxy_that_goes_away_is_told_of_and_found_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    followed = Followed(f"http://127.0.0.1:{port}")
    assert "Connection refused" in str(await followed.next())
    here, proxy = [True], without_feed([0])

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if not here[0]:
            assert request.transport is not None
            request.transport.close()
        return await proxy(request)

    async with serves(answer, port):
        while isinstance(told := await followed.next(), str):
            assert "Connection refused" in told
        here[0] = False
        while isinstance(told, int):
            told = await followed.next()
        assert "closed connection" in str(told)
        here[0] = True
        while not isinstance(told, int):
            told = await followed.next()
        await followed.end()


async def test_who_may_not_see_it_is_told_once() -> None:
    async def refuse(_: web.BaseRequest) -> web.Response:
        return web.json_response({"error": {"message": "this needs a key."}}, status=401)

    async with serves(refuse) as url:
        followed = Followed(url)
        told = await followed.next()
    assert isinstance(told, NotAllowed)
    assert "this needs a key." in told.message
